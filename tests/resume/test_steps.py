"Fits whose epochs end within a pass, or early, resume exactly: in training, in validation, and between epochs."
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from miniai import CancelFitException, CheckpointCB, MaxBatchesCB, ResumeError
from miniai.callbacks.wrapped import WrappedLoader
from miniai.data import DataLoaders
from miniai.data.stream import StreamLoader
from miniai.resume.workers import set_workers
from resuming import Noisy, StopCB, Watcher, assert_resumes_exactly, digest, fit_until_stopped, loaders, run
from small import batches, learner

STEPS, EVERY = 17, 5  # passes have 7 or 8 batches: they end within an epoch, in the middle and at its end
# A stop after a pass ended in an epoch, after the last batch of an epoch, and after the last of all
STOPS = (1, 3), (1, 4), (3, 1)


class Stream(IterableDataset):
    "Noisy images in random order."
    def __init__(self): self.ds = Noisy(38)
    def __iter__(self): return (self.ds[i] for i in torch.randperm(38).tolist())


def hugging_face():
    datasets = pytest.importorskip('datasets')
    ds = Noisy(38)
    rows = datasets.Dataset.from_dict(dict(x=ds.x.tolist(), y=ds.y.tolist())).with_format('torch')
    return rows.to_iterable_dataset(num_shards=2).shuffle(seed=4, buffer_size=9)


def pairs(rows): return torch.stack([r['x'] for r in rows]), torch.stack([r['y'] for r in rows])
def valid(): return DataLoader(Noisy(20), 10)
def tensors(**kwargs): return DataLoader(TensorDataset(Noisy().x, Noisy().y), 5, shuffle=True, **kwargs)


LOADERS = dict(
    memory=lambda: loaders('memory'), shuffled=lambda: loaders('0'), workers=lambda: loaders('2'),
    generator=lambda: DataLoaders(tensors(generator=torch.Generator().manual_seed(6)), valid()),
    stream=lambda: DataLoaders(DataLoader(Stream(), 5), valid()),
    stream_with_workers=lambda: DataLoaders(DataLoader(Stream(), 5, num_workers=1), valid()),
    hugging_face=lambda: DataLoaders(StreamLoader(hugging_face(), 5, collate_fn=pairs), valid()))


def maker(kind):
    "A function that makes a run, with everything that could keep it from resuming exactly."
    def make(folder, *cbs, **saving):
        learn = run(folder, cbs=cbs, sched_steps=STEPS, **saving)
        torch.manual_seed(2)
        learn.dls = LOADERS[kind]()
        return learn
    return make


class CancelCB(Watcher):
    "Cancels the fit at an event of an epoch, which saves it there."
    def __init__(self, event, epoch, training, batch=None):
        def cancel(learn):
            if (learn.epoch, learn.training) == (epoch, training) and batch in (None, learn.iter):
                raise CancelFitException()
        setattr(self, event, cancel)


CANCELS = ('after_batch', 1, False, 0), ('after_epoch', 1, True), ('cleanup_epoch', 1, False), ('before_epoch', 2, True)


@pytest.mark.filterwarnings('ignore:the first .* batches were loaded again to resume')
@pytest.mark.parametrize('kind', LOADERS)
def test_a_fit_of_steps_resumes_exactly_from_any_batch(kind, tmp_path):
    assert_resumes_exactly(maker(kind), tmp_path, STOPS, None, steps=STEPS, valid_every=EVERY)


@pytest.mark.filterwarnings('ignore:the first .* batches were loaded again to resume')
@pytest.mark.parametrize('kind', ['memory', 'shuffled', 'stream', 'generator'])
def test_and_from_validation_and_between_epochs_twice_in_a_row(kind, tmp_path):
    make, fit = maker(kind), dict(steps=STEPS, valid_every=EVERY)
    whole = make(tmp_path/'whole')
    whole.fit(**fit)
    for at in CANCELS:
        folder = tmp_path/str(at)
        make(folder, CancelCB(*at), batches=None, epochs=None).fit(**fit)
        make(folder, CancelCB('after_batch', 2, True, 2), batches=None, epochs=None).fit(**fit, resume=True)
        resumed = make(folder, batches=None, epochs=None)
        torch.manual_seed(99)
        resumed.fit(**fit, resume=True)
        assert digest(resumed) == digest(whole), at


def test_epochs_of_whole_passes_resume_exactly(tmp_path):
    for kind in ('memory', 'shuffled'):
        assert_resumes_exactly(maker(kind), tmp_path/kind, ((0, 3), (1, 6), (2, 0)), None, steps=STEPS)


@pytest.mark.filterwarnings('ignore:the first .* batches were loaded again to resume')
@pytest.mark.parametrize('kind', LOADERS)
def test_passes_that_end_early_resume_exactly(kind, tmp_path):
    def make(folder, *cbs): return maker(kind)(folder, MaxBatchesCB(train=4, valid=1), *cbs)
    assert_resumes_exactly(make, tmp_path, ((0, 3), (1, 0), (1, 2)))


def test_passes_that_end_early_may_follow_one_another(tmp_path):
    def make(folder, *cbs): return maker('shuffled')(folder, MaxBatchesCB(train=3), *cbs)
    assert_resumes_exactly(make, tmp_path, ((0, 1), (1, 2)), None, steps=11, valid_every=4)


def test_persistent_workers_continue_from_epoch_to_epoch(tmp_path):
    made = []
    def make(folder, *cbs):
        learn = run(folder, cbs=cbs, sched_steps=STEPS)
        learn.dls = DataLoaders(tensors(num_workers=1, persistent_workers=True), valid())
        made.append(learn.dls.train)
        return learn
    try: assert_resumes_exactly(make, tmp_path, ((0, 2), (2, 1)), None, steps=STEPS, valid_every=EVERY)
    finally:
        for dl in made: set_workers(dl, False)


# What may change

def small(folder, *cbs): return learner([CheckpointCB(folder, batches=1), *cbs])


def test_other_epochs_are_refused_and_other_callbacks_too(tmp_path):
    fit_until_stopped(small(tmp_path, StopCB(0, 1)), None, steps=9, valid_every=3)
    with pytest.raises(ResumeError, match=r'StepsCB\.every was 3 in the checkpoint and is 4 now'):
        small(tmp_path).fit(steps=9, valid_every=4, resume=True)
    with pytest.raises(ResumeError, match=r'callbacks of miniai was StepsCB'): small(tmp_path).fit(3, resume=True)
    with pytest.raises(ResumeError, match=r'callbacks of miniai was StepsCB'):
        small(tmp_path, MaxBatchesCB(3)).fit(steps=9, valid_every=3, resume=True)


def test_a_fit_may_be_given_more_steps_unless_its_last_epoch_was_short(tmp_path):
    whole = small(tmp_path/'whole')
    whole.fit(steps=11, valid_every=3)
    small(tmp_path/'even').fit(steps=6, valid_every=3)
    more = small(tmp_path/'even')
    more.fit(steps=11, valid_every=3, resume=True)
    assert digest(more) == digest(whole)
    small(tmp_path/'short').fit(steps=5, valid_every=3)
    with pytest.raises(ResumeError, match=r'the run has ended, with 2 steps in its last epoch instead of 3'):
        small(tmp_path/'short').fit(steps=11, valid_every=3, resume=True)
    small(tmp_path/'short').fit(steps=5, valid_every=3, resume=True)


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    small(tmp_path).fit(steps=9, valid_every=3)
    with pytest.raises(ResumeError, match='has done 3 epochs, but this fit has only 2: pass a larger number'):
        small(tmp_path).fit(steps=6, valid_every=3, resume=True)


def test_a_loader_that_a_callback_replaced_cannot_be_continued(tmp_path):
    class Replace(Watcher):
        order = 1
        def before_epoch(self, learn):
            if learn.training: learn.dl = WrappedLoader(batches(3))
    fit_until_stopped(small(tmp_path, StopCB(0, 1)), None, steps=9, valid_every=2)
    with pytest.raises(ResumeError, match='cannot resume within a pass'):
        small(tmp_path, Replace()).fit(steps=9, valid_every=2, resume=True)
