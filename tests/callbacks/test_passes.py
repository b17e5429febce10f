"Epochs of a number of batches, compared with plain loops: the same batches, rates, weights and rows of history."
import multiprocessing
from functools import partial
from itertools import chain, count, islice

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from miniai import AccumulateCB, BatchSchedCB, EpochSchedCB, MaxBatchesCB, MetricsCB, PlateauCB
from miniai.data import DataLoaders
from miniai.learner import CancelEpochException, Learner, LRFinderCB, TrainCB
from resuming import Watcher
from small import Heard, Unsized, batches, learner, mlp, raising, same, weights


def order(n, i): return torch.randperm(n, generator=torch.Generator().manual_seed(100 + i)).tolist()


class ByPass:
    "Batches of a list, in another order in each pass."
    def __init__(self, n): self.bs, self.passes = batches(n), 0
    def __len__(self): return len(self.bs)
    def __iter__(self):
        self.passes += 1
        return iter([self.bs[i] for i in order(len(self.bs), self.passes - 1)])


class Seen(Watcher):
    "The batches of each pass, by training or not, and the rates of the training batches."
    def before_fit(self, learn): self.passes, self.rates = {True: [], False: []}, []
    def before_epoch(self, learn): self.passes[learn.training].append([])
    def before_batch(self, learn):
        self.passes[learn.training][-1].append(learn.batch)
        if learn.training: self.rates.append(learn.opt.param_groups[0]['lr'])


def same_batches(a, b): return len(a) == len(b) and all(map(torch.equal, (x for x, _ in a), (x for x, _ in b)))
def linear(opt, steps, told): return told.append(steps) or LambdaLR(opt, lambda i: 1 - i/(steps + 1))


class Plain:
    "A plain loop over `epochs`, lists of batches: a step for every `n` batches, by the mean of all their samples."
    def __init__(self, epochs, n=1):
        torch.manual_seed(3)
        self.model, self.losses, self.rates = mlp(), [], []
        opt = torch.optim.SGD(self.model.parameters(), .1)
        sched = linear(opt, sum(map(len, epochs)), [])
        for epoch in epochs:
            self.losses.append([])
            for group in [epoch[i:i + n] for i in range(0, len(epoch), n)]:
                self.rates += [opt.param_groups[0]['lr']]*len(group)
                losses = [F.cross_entropy(self.model(x), y) for x, y in group]
                (sum(losses)/len(losses)).backward()
                self.losses[-1] += [float(x.detach()) for x in losses]
                opt.step()
                opt.zero_grad()
                for _ in group: sched.step()


def assert_is_plain(learn, seen, epochs, n):
    plain = Plain(epochs, n)
    assert all(map(same_batches, seen.passes[True], epochs))
    assert seen.rates == pytest.approx(plain.rates)
    for p, q in zip(learn.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    rows = [(r['epoch'], r['loss']) for r in learn.history if r['phase'] == 'train']
    assert rows == [(i, pytest.approx(sum(x)/len(x))) for i, x in enumerate(plain.losses)]
    assert [r['epoch'] for r in learn.history if r['phase'] == 'eval'] == list(range(len(epochs)))


def run(dl, n, told, *cbs):
    seen, sched = Seen(), BatchSchedCB(partial(linear, told=told))
    return learner([*cbs, MetricsCB(), sched, AccumulateCB(n), seen], dls=DataLoaders(dl, batches(2, seed=2))), seen


# The first batches of each pass

@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_an_epoch_is_the_first_batches_of_a_pass_of_its_own(length, most, n_epochs, n, sized):
    dl, told = ByPass(length), []
    learn, seen = run(dl if sized else Unsized(dl), n, told, MaxBatchesCB(train=most))
    learn.fit(n_epochs)
    short = min(most, length)
    assert told == [n_epochs*(short if sized else most)]
    if told == [n_epochs*short]:  # a stream may end before its limit, and a schedule is told the limit
        assert_is_plain(learn, seen, [[dl.bs[i] for i in order(length, e)][:most] for e in range(n_epochs)], n)
    assert len(seen.rates) == n_epochs*short
    assert dl.passes == n_epochs


def test_validation_has_a_limit_of_its_own_and_none_is_no_limit():
    for train, valid in ((2, None), (None, 1), (9, 9), (1, 1)):
        seen = Seen()
        learner([MaxBatchesCB(train, valid), seen]).fit(2)
        assert [len(p) for p in seen.passes[True]] == [min(train or 4, 4)]*2
        assert [len(p) for p in seen.passes[False]] == [min(valid or 2, 2)]*2


def test_an_epoch_cut_short_ends_as_a_whole_one():
    def events(dls, *cbs):
        heard = Heard()
        learner([*cbs, heard], dls=dls).fit(2)
        return heard.log
    short = DataLoaders(batches(4)[:3], batches(2, seed=2)[:1])
    assert events(None, MaxBatchesCB(3, 1)) == events(short)


def test_schedules_by_epoch_step_once_for_it():
    sched = EpochSchedCB(lambda opt, steps: LambdaLR(opt, lambda i: 1/(i + steps)))
    learner([MaxBatchesCB(1), sched]).fit(3)
    assert sched.schedo.last_epoch == 3


def test_an_endless_stream_has_epochs_too():
    learn, seen = run(Unsized(Endless()), 1, [], MaxBatchesCB(train=3))
    learn.fit(2)
    assert_is_plain(learn, seen, [batches(4)[:3]]*2, 1)


class Endless:
    def __iter__(self): return (b for _ in count() for b in batches(4))


def workers(persistent=False, n=24):
    x = torch.arange(4.*n).view(n, 4)
    return DataLoader(TensorDataset(x, torch.zeros(n, dtype=torch.long)), 2, num_workers=2, prefetch_factor=4,
                      persistent_workers=persistent)


@pytest.mark.parametrize('fit', [dict(cbs=MaxBatchesCB(train=3), n_epochs=2), dict(steps=6, valid_every=4)])
def test_workers_of_a_pass_that_is_cut_short_stop(fit):
    after = []
    class Count(Watcher):
        def after_epoch(self, learn):
            if learn.training: after.append(len(multiprocessing.active_children()))
    learner(Count(), dls=DataLoaders(workers(), batches(1))).fit(**fit)
    assert multiprocessing.active_children() == []
    assert after == ([0, 0] if 'cbs' in fit else [2, 2])  # a pass that continues keeps its workers


def test_persistent_workers_begin_a_new_pass_after_one_that_was_cut_short():
    dl, seen = workers(persistent=True), Seen()
    learner([MaxBatchesCB(train=3), seen], dls=DataLoaders(dl, batches(1))).fit(3)
    first = [x[0, 0].item() for x, _ in seen.passes[True][0]]
    assert first == [0., 8., 16.]
    assert [[x[0, 0].item() for x, _ in p] for p in seen.passes[True]] == [first]*3
    dl._iterator._shutdown_workers()


def test_predictions_are_of_the_whole_validation_set():
    learn = learner(MaxBatchesCB(1, 1))
    assert len(learn.capture_preds()[0]) == 12
    assert len(learn.tta(lambda x: x)[0]) == 12


def test_a_search_for_a_learning_rate_takes_the_shorter_epochs():
    finder = LRFinderCB(gamma=1.001)
    learner([MaxBatchesCB(train=3), Heard()], lr=1e-5).fit(4, valid=False, cbs=finder)
    assert len(finder.lrs) == 12


@pytest.mark.parametrize('n', [0, -1, 2.5, True, '3'])
def test_a_limit_is_a_whole_number(n):
    with pytest.raises(ValueError, match=r'MaxBatchesCB: valid must be a whole number of batches, 1 or more, got'):
        MaxBatchesCB(valid=n)


# Steps

def stretches(dl, steps, every):
    "What a plain loop takes from passes that follow one another."
    batches = (dl.bs[i] for k in count() for i in order(len(dl.bs), k))
    return [list(islice(batches, min(every, steps - i))) for i in range(0, steps, every)]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(1, 14), st.none() | st.integers(1, 15), st.integers(1, 3), st.booleans())
def test_steps_are_those_of_a_plain_loop_over_passes_that_follow_one_another(length, steps, every, n, sized):
    dl, told = ByPass(length), []
    learn, seen = run(dl if sized else Unsized(dl), n, told)
    learn.fit(steps=steps, valid_every=every)
    assert_is_plain(learn, seen, stretches(dl, steps, every or (length if sized else steps)), n)
    assert told == [steps]
    assert len(seen.rates) == steps
    assert dl.passes == -(-steps//length)


def test_without_accumulation_they_are_the_same_to_the_bit():
    dl = ByPass(3)
    learn, _ = run(dl, 1, [])
    learn.fit(steps=7, valid_every=2)
    assert same(weights(learn), Plain(stretches(dl, 7, 2)).model.state_dict())


def test_epochs_of_whole_passes_are_those_of_an_ordinary_fit():
    def fit(**kwargs):
        heard = Heard()
        learn, _ = run(ByPass(3), 2, [], heard)
        learn.fit(**kwargs)
        return heard.log, weights(learn)
    (events, ws), (others, vs) = fit(steps=6), fit(n_epochs=2)
    assert events == others
    assert same(ws, vs)


@pytest.mark.parametrize('persistent', [False, True])
def test_a_shuffling_loader_with_workers_gives_whole_passes(persistent):
    def made(): return DataLoader(TensorDataset(torch.arange(44.).view(11, 4), torch.zeros(11, dtype=torch.long)), 2,
                                  shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(7),
                                  num_workers=1, persistent_workers=persistent)
    seen, loader, other = Seen(), made(), made()
    learner(seen, dls=DataLoaders(loader, batches(1))).fit(steps=10, valid_every=4)
    want = [*other, *other]
    assert same_batches([*chain(*seen.passes[True])], want)
    for dl in (loader, other) if persistent else (): dl._iterator._shutdown_workers()


def test_every_validation_reaches_a_plateau_and_epoch_schedules_step():
    plateau, rec = PlateauCB(factor=.5, patience=0), Seen()
    epochs = EpochSchedCB(lambda opt, steps: LambdaLR(opt, lambda i: 1.))
    learn = learner([plateau, MetricsCB(), epochs, rec], lr=3.)
    learn.fit(steps=11, valid_every=3)
    assert (plateau.schedo.last_epoch, epochs.schedo.last_epoch, learn.n_epochs) == (4, 4, 4)


def test_a_pass_that_has_given_all_its_batches_ends_before_validation():
    log = []
    class Ends(list):
        def __iter__(self):
            yield from super().__iter__()
            log.append('end')
    class Note(Watcher):
        def before_epoch(self, learn): log.append(learn.training)
    learner(Note(), dls=DataLoaders(Ends(batches(2)), batches(1))).fit(steps=4)
    assert log == [True, 'end', False]*2


def test_a_loader_that_gives_more_batches_than_its_length_loses_none():
    class More(list):
        def __len__(self): return 2
    seen = Seen()
    learner(seen, dls=DataLoaders(More(batches(5)), batches(1))).fit(steps=10)
    assert [len(p) for p in seen.passes[True]] == [2]*5
    assert same_batches([*chain(*seen.passes[True])], batches(5)*2)


def test_a_pass_is_at_most_as_long_as_max_batches_says():
    dl, seen = ByPass(4), Seen()
    learn = learner([MaxBatchesCB(train=3), seen], dls=DataLoaders(dl, batches(1)))
    learn.fit(steps=8, valid_every=5)
    want = [dl.bs[i] for k in range(3) for i in order(4, k)[:3]]
    assert same_batches([*chain(*seen.passes[True])], want[:8])
    learn.fit(steps=5)
    assert [len(p) for p in seen.passes[True]] == [3, 2]


def test_a_cancelled_epoch_takes_no_more_batches_and_the_next_continues_the_pass():
    seen, dl = Seen(), ByPass(6)
    class Cancel(Watcher):
        def before_batch(self, learn):
            if learn.training and (learn.epoch, learn.iter) == (0, 1): raise CancelEpochException()
    learner([seen, Cancel()], dls=DataLoaders(dl, batches(1))).fit(steps=8, valid_every=3)
    assert [len(p) for p in seen.passes[True]] == [2, 3, 2]
    assert same_batches([*chain(*seen.passes[True])], [dl.bs[i] for k in range(2) for i in order(6, k)][:7])


@pytest.mark.parametrize('dl', [Unsized([]), Unsized(DataLoader(type('No', (IterableDataset,), dict(
    __iter__=lambda ds: iter(())))()))])
def test_a_loader_that_gives_no_batch_is_an_error(dl):
    with pytest.raises(ValueError, match='the loader gave no batch in epoch 0: it is empty, or an iterator'):
        learner(dls=DataLoaders(dl, batches(1))).fit(steps=3)


def test_an_iterator_gives_its_batches_and_then_an_error():
    seen = Seen()
    with pytest.raises(ValueError, match='the loader gave no batch in epoch 1: it is empty, or an iterator'):
        learner(seen, dls=DataLoaders(iter(batches(5)), batches(1))).fit(steps=9, valid_every=3)
    assert len(seen.rates) == 5
    learner(seen, dls=DataLoaders(iter(Endless()), batches(1))).fit(steps=9)
    assert len(seen.rates) == 9


@pytest.mark.parametrize(('fit', 'says'), [
    (dict(n_epochs=2, steps=9), 'fit was called with n_epochs=2 and steps=9: pass one of them'),
    (dict(n_epochs=0, steps=9), 'fit was called with n_epochs=0 and steps=9: pass one of them'),
    (dict(valid_every=3), r'valid_every=3 counts training batches of fit\(steps=…\): pass steps too'),
    (dict(n_epochs=2, valid_every=3), r'valid_every=3 counts training batches of fit\(steps=…\): pass steps too'),
    (dict(steps=9, train=False), r'fit\(steps=…\) counts training batches, but was called with train=False'),
    *((dict(steps=n), 'fit: steps must be a whole number of batches, 1 or more, got') for n in (0, -3, 2., True, '9')),
    *((dict(steps=9, valid_every=n), 'fit: valid_every must be a whole number of batches, 1 or more, got')
      for n in (0, -3, 2., True))])
def test_arguments_that_do_not_go_together_are_refused_before_anything_happens(fit, says):
    heard = Heard()
    learn = learner(heard)
    with pytest.raises(ValueError, match=says): learn.fit(**fit)
    assert not [e for e in heard.log if e not in ('before_fit', 'cleanup_fit')]
    assert learn.cbs == [heard]
    assert not learn.fitting


def test_it_works_with_phases_from_a_callback_and_leaves_nothing_behind():
    learn = learner([TrainCB()], cls=Learner)
    learn.fit(steps=5, valid_every=2)
    assert [type(cb) for cb in learn.cbs] == [TrainCB]
    assert learn.dl is learn.dls.valid
    learn.fit(2)
    assert learn.n_epochs == 2


def test_an_error_stops_the_workers_of_the_pass():
    learn = learner(Heard({'after_step': raising(RuntimeError('stopped'))}), dls=DataLoaders(workers(), batches(1)))
    with pytest.raises(RuntimeError, match='stopped'): learn.fit(steps=5, valid_every=3)
    assert multiprocessing.active_children() == []


# Samplers that are told the epoch

class Orders(DistributedSampler):
    "Keeps the order of each pass."
    def __init__(self, ds): super().__init__(ds, 1, 0), setattr(self, 'orders', [])
    def __iter__(self): return iter(self.orders.append(list(super().__iter__())) or self.orders[-1])


@pytest.mark.parametrize('fit', [dict(n_epochs=3), dict(steps=12), dict(steps=12, valid_every=3)])
def test_a_sampler_is_told_the_number_of_the_pass(fit):
    x, y = (torch.cat(o) for o in zip(*batches(), strict=True))
    ds = TensorDataset(x, y)
    sampler, plain = Orders(ds), DistributedSampler(ds, 1, 0)
    learn = learner(dls=DataLoaders(DataLoader(ds, 6, sampler=sampler), ()))
    learn.fit(**fit, valid=False)
    expected = []
    for epoch in range(3):
        plain.set_epoch(epoch)
        expected.append(list(plain))
    assert sampler.orders == expected
