"Where a run resumes, and that it ends the same to the bit, from every batch and however often it is stopped."
from functools import partial
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.optim import lr_scheduler as S
from torch.utils.data import DataLoader, TensorDataset

from miniai import Callback, DataLoaders
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.restore import ResumeError
from resuming import Noisy, StopCB, assert_resumes_exactly, checkpoints, digest, fit_until_stopped, net, run
from small import learner
from stopping import ALWAYS


def stopped(folder, *at, **kwargs): fit_until_stopped(run(folder, cbs=[StopCB(*at)], **kwargs))


def resumed(folder, to=2, **kwargs):
    learn = run(folder, **kwargs)
    torch.manual_seed(88)
    learn.fit(to, resume=True)
    return learn


@pytest.fixture(scope='module')
def whole():
    "The digest of a run that is not interrupted, and saves nothing."
    learn = run()
    learn.fit(2)
    return digest(learn)


# The same end

STOPS = [(0, 0, True), (0, 1, False), (0, 6, True), (1, 4, True), (1, 0, False)]  # bench/faults.py stops everywhere


@pytest.mark.parametrize(('kind', 'stops'), [('memory', STOPS), ('0', STOPS[1::2]), ('2', STOPS[3:])])
def test_a_run_resumed_from_any_batch_of_training_or_validation_ends_the_same(kind, stops, tmp_path):
    assert_resumes_exactly(lambda folder, *cbs: run(folder, kind, cbs, minutes=ALWAYS), tmp_path, stops)


def test_checkpoints_do_not_change_a_run_and_resuming_a_finished_one_does_nothing(whole, tmp_path):
    learn = run(tmp_path)
    learn.fit(2)
    assert digest(learn) == whole
    again = resumed(tmp_path)
    assert digest(again) == whole
    assert [r['phase'] for r in again.history] == ['train', 'eval']*2
    assert again.epoch == 1


def test_three_interruptions_in_a_row_change_nothing(whole, tmp_path):
    stopped(tmp_path, 0, 1)
    for at in ((0, 5), (1, 2)): fit_until_stopped(run(tmp_path, cbs=[StopCB(*at)]), resume=True)
    assert digest(resumed(tmp_path)) == whole


@pytest.mark.parametrize('background', [False, True])
def test_checkpoints_once_per_epoch_and_in_the_background_resume_exactly_too(background, whole, tmp_path):
    stopped(tmp_path, 1, 2, batches=None, background=background)
    assert digest(resumed(tmp_path, batches=None, background=background)) == whole


def test_without_a_checkpoint_a_run_starts_at_the_start(whole, tmp_path):
    learn = run(tmp_path)
    learn.fit(2, resume=True)
    assert digest(learn) == whole
    with pytest.raises(ValueError, match=r'resume=True\) needs one CheckpointCB'): learner().fit(1, resume=True)


SCHEDULES = dict(
    restarts=lambda o: S.CosineAnnealingWarmRestarts(o, 3), milestones=lambda o: S.MultiStepLR(o, [2, 5]),
    cyclic=lambda o: S.CyclicLR(o, 1e-4, 1e-2, 4, cycle_momentum=False),
    lambdas=lambda o: S.LambdaLR(o, lambda i: 1/(i + 1)),
    chained=lambda o: S.ChainedScheduler([S.ConstantLR(o, .5, 2), S.ExponentialLR(o, .9)]),
    sequence=lambda o: S.SequentialLR(o, [S.LinearLR(o, .1, 1, 3), S.CosineAnnealingLR(o, 10)], [3]))


@pytest.mark.parametrize('name', SCHEDULES)
@pytest.mark.filterwarnings('ignore:.*lr_scheduler.step:UserWarning', 'ignore:.*epoch parameter:UserWarning')
def test_a_run_resumes_exactly_with_any_schedule(name, tmp_path):
    def make(folder, *cbs):
        learn = run(folder, cbs=cbs, batches=3)
        learn.cbs[2].sched = SCHEDULES[name]
        return learn
    assert_resumes_exactly(make, tmp_path, ((1, 2),))


def test_a_loader_over_tensors_with_workers_resumes_exactly_without_seeded_samples(tmp_path):
    def make(folder, *cbs):
        torch.manual_seed(4)
        dl = DataLoader(TensorDataset(Noisy().x, Noisy().y), 5, shuffle=True, num_workers=1)
        return learner([CheckpointCB(folder, batches=1), *cbs], model=net(), dls=DataLoaders(dl, dl))
    assert_resumes_exactly(make, tmp_path, ((0, 3),), 1)


def test_a_run_without_a_validation_loader_resumes(tmp_path):
    def make(*cbs):
        learn = run(tmp_path, cbs=cbs)
        learn.dls = SimpleNamespace(train=learn.dls.train)
        return learn
    fit_until_stopped(make(StopCB(1, 1)), valid=False)
    learn = make()
    learn.fit(2, valid=False, resume=True)
    assert [r['epoch'] for r in learn.history] == [0, 1]


# More or fewer epochs

def test_a_finished_run_can_go_on_for_more_epochs_if_its_schedule_allows_it(tmp_path):
    whole = run(n_epochs=3)
    whole.fit(3)
    run(tmp_path, sched_steps=21, batches=None).fit(2)
    assert digest(resumed(tmp_path, 3, sched_steps=21)) == digest(whole)
    run(tmp_path/'short', batches=None).fit(2)
    with pytest.raises(ResumeError, match=r'schedo.total_steps was 14 in the checkpoint and is 21 now'):
        resumed(tmp_path/'short', 3, n_epochs=3)


def test_fewer_epochs_than_were_begun_are_refused_and_those_that_were_begun_are_finished(tmp_path):
    stopped(tmp_path, 1, 2)
    with pytest.raises(ResumeError, match='has done 1 epochs and part of another, but this fit has only 1'):
        resumed(tmp_path, 1)
    assert resumed(tmp_path).epoch == 1
    with pytest.raises(ResumeError, match='has done 2 epochs, but this fit has only 1'): resumed(tmp_path, 1)


@pytest.mark.parametrize('change', [lambda learn: None, lambda learn: setattr(learn, 'loss_func', F.mse_loss)])
def test_a_refused_fit_leaves_history_and_optimizer_as_they_were(change, tmp_path):
    learn = run(tmp_path)
    learn.fit(2)
    history, opt = learn.history, learn.opt
    assert len(history) == 4
    change(learn)
    with pytest.raises(ResumeError): learn.fit(2, resume=learn.loss_func is F.mse_loss)
    assert learn.history is history
    assert learn.opt is opt


def test_a_state_that_was_refused_is_not_used_by_the_next_fit(tmp_path):
    run(tmp_path, batches=None).fit(2)
    learn = run(tmp_path)
    with pytest.raises(ResumeError, match='has done 2 epochs'): learn.fit(1, resume=True)
    with pytest.raises(ResumeError, match='of an earlier run'): learn.fit(2)
    with pytest.raises(ValueError, match='train=False'): learn.fit(2, train=False, resume=True)


# Damaged checkpoints

def damage(path): path.write_bytes(path.read_bytes()[:-9])


def test_if_the_newest_checkpoint_is_damaged_the_run_resumes_from_the_one_before(whole, tmp_path):
    stopped(tmp_path, 0, 3)
    newest = max(tmp_path.glob('checkpoint-*'))
    damage(newest)
    with pytest.warns(UserWarning, match=f'skipped .*{newest.name}'): assert digest(resumed(tmp_path)) == whole


def test_if_all_checkpoints_are_damaged_all_are_named(tmp_path):
    stopped(tmp_path, 0, 1, best='-loss')
    for p in tmp_path.glob('checkpoint-*'): damage(p)
    (tmp_path/'best.safetensors').write_text('')
    says = r'all 2 checkpoint\(s\) in .* are damaged: .*-00000001.*-00000002.*best.safetensors, from the best epoch'
    with pytest.warns(UserWarning, match='skipped'), pytest.raises(ResumeError, match=says): resumed(tmp_path)


def test_damaged_and_skipped_files_stay_and_do_not_count_as_kept(tmp_path):
    stopped(tmp_path, 0, 5, batches=3)
    damage(max(tmp_path.glob('checkpoint-*')))
    (tmp_path/'checkpoint-mine.safetensors').write_text('x')
    with pytest.warns(UserWarning, match='skipped'):
        fit_until_stopped(run(tmp_path, cbs=[StopCB(0, 4)], keep=1), resume=True)
    assert checkpoints(tmp_path) == ['00000-1-00000005', '00000-1-00000006', 'mine']
    with pytest.warns(UserWarning, match='skipped'):
        fit_until_stopped(run(tmp_path, cbs=[StopCB(1, 1)], keep=1), resume=True)
    assert checkpoints(tmp_path) == ['00001-1-00000002', 'mine']


# Loaders

@pytest.mark.parametrize('workers', [1, 2])
def test_a_run_whose_dataset_draws_in_workers_resumes_exactly_from_within_an_epoch(workers, tmp_path):
    def make(folder, *cbs):
        torch.manual_seed(1)
        dl = DataLoader(Noisy(20), 5, shuffle=True, num_workers=workers)
        return learner([CheckpointCB(folder, batches=1), *cbs], model=net(), dls=DataLoaders(dl, dl))
    assert_resumes_exactly(make, tmp_path, ((0, 1), (1, 2)))


class Around:
    def __init__(self, inner): self.inner = inner
    def __len__(self): return len(self.inner)
    def __iter__(self): return iter(self.inner)


class ReplaceCB(Callback):
    def __init__(self, f): self.f = f
    def before_epoch(self, learn):
        if learn.training: learn.dl = self.f(learn.dl)


def test_a_callback_may_wrap_the_loader_of_a_resumed_pass(tmp_path):
    class SeenCB(Callback):
        def __init__(self): self.seen = []
        def state_dict(self): return dict(seen=self.seen)
        def load_state_dict(self, state): self.seen = state['seen']
        def before_batch(self, learn): self.seen.append(learn.iter)
    make = lambda folder, *cbs: run(folder, cbs=[ReplaceCB(Around), SeenCB(), *cbs])  # noqa: E731
    assert_resumes_exactly(make, tmp_path, ((1, 2),))


@pytest.mark.parametrize('replace', [lambda own, dl: own, lambda own, dl: list(islice(dl, 4))])
def test_a_callback_may_not_replace_the_loader_of_a_resumed_pass(replace, tmp_path):
    def make(*cbs):
        learn = run(tmp_path, cbs=cbs)
        learn.cbs.append(ReplaceCB(partial(replace, learn.dls.train)))
        return learn
    fit_until_stopped(make(StopCB(0, 2)))
    with pytest.raises(ResumeError, match=r'cannot resume within a pass: .* replaced learn\.dl.*-1-00000003'):
        make().fit(2, resume=True)
