"Fits over a few batches: how many, which, and how long the loader took."
import pytest
import torch

from miniai.datasets import DataLoaders
from miniai.diagnosis import few_batches as module
from miniai.diagnosis.few_batches import FewBatchesCB, check_repeatable
from small import Heard, batches, learner


def seen_by(few, **kwargs):
    seen = []
    def look(learn):
        seen.append((learn.model.training, len(learn.dl), learn.batch[0].clone()))
        learn.batch[0].zero_()  # in place, as some transforms do
    learner(Heard({'before_batch': look}), **kwargs).fit(2, cbs=few)
    return seen


def test_the_first_batches_of_each_pass_with_the_length_of_all():
    seen = seen_by(FewBatchesCB(2, 1))
    assert [(training, n) for training, n, _ in seen] == [(True, 4), (True, 4), (False, 2)]*2


def test_a_pass_that_is_shorter_ends_as_it_does():
    assert len(seen_by(FewBatchesCB(9, 9))) == 2*(4 + 2)


def test_the_first_batch_again_and_again_is_untouched_by_what_was_done_to_it():
    seen = seen_by(FewBatchesCB(7, 1, again=True), dls=DataLoaders(batches(3), batches(1)))
    assert {n for training, n, _ in seen if training} == {7}
    seen = [x for training, _, x in seen if training]
    assert len(seen) == 14
    assert all(torch.equal(x, batches(1)[0][0]) for x in seen)


def test_it_times_the_loader_alone(monkeypatch):
    class Clock:
        now = 0.
        def __call__(self): return self.now
    clock = Clock()
    monkeypatch.setattr(module, 'perf_counter', clock)
    def slow(n, seconds):
        for b in batches(n):
            clock.now += seconds
            yield b
    class Loader:
        def __init__(self, *args): self.args = args
        def __iter__(self): return slow(*self.args)
    few = FewBatchesCB(2, 2)
    def work(learn): clock.now += 10
    learner(Heard({'before_batch': work}), dls=DataLoaders(Loader(3, 2.), Loader(3, .5))).fit(1, cbs=few)
    assert few.waits == dict(train=[2., 2.], valid=[.5, .5])
    assert few.given == 35


def test_a_loader_that_can_be_used_once_is_an_error_that_names_it():
    learn = learner(dls=DataLoaders(iter(batches(3)), []))
    with pytest.raises(ValueError, match=r'learn.check\(\) cannot put back .* from dls.train, a list_iterator, which'):
        check_repeatable(learn, 'check')
    learn.dls = DataLoaders(batches(3), (b for b in batches(2)))
    with pytest.raises(ValueError, match=r'from dls.valid, a generator'): check_repeatable(learn, 'check')
    with pytest.raises(ValueError, match=r'learn.explain\(\) cannot put back'): learn.explain()
    with pytest.raises(ValueError, match=r'learn.check\(\) cannot put back'): learn.check()
