"A run that is saved: it begins in a folder of its own or resumes, and leaves the Learner as it was."
import pytest
import torch

from miniai import Callback, ProfileCB
from miniai.checkpoint import FolderInUseError
from miniai.learner import CancelFitException
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.restore import ResumeError
from miniai.resume.signals import OutlastSignals
from resuming import AtCB, StopCB, Watcher, assert_resumes_exactly, checkpoints, fit_until_stopped, run

# Where it begins

def test_a_new_run_in_a_folder_with_checkpoints_is_refused_and_so_is_a_second_one_at_the_same_time(tmp_path):
    fit_until_stopped(run(tmp_path, cbs=[StopCB(0, 2)]))
    with pytest.raises(ResumeError, match=r'holds 3 checkpoint\(s\) of an earlier run, such as'):
        run(tmp_path, keep=1).fit(2)
    assert len(checkpoints(tmp_path)) == 3
    def second():
        with pytest.raises(FolderInUseError): run(tmp_path).fit(2, resume=True)
        raise CancelFitException()
    run(tmp_path, cbs=[AtCB('before_batch', second, 0)]).fit(2, resume=True)


def test_another_runs_best_checkpoint_is_not_overwritten(tmp_path):
    (tmp_path/'best.safetensors').write_text('')
    for resume in (False, True):
        with pytest.raises(ResumeError, match=r'holds best.safetensors of an earlier run, but no checkpoint to resume'):
            run(tmp_path, best='accuracy').fit(1, resume=resume)
    run(tmp_path, batches=None).fit(1)


# Passes

class BusyCB(Watcher):
    "Draws random numbers, counts, and in training changes the model, as passes and batches begin and end."
    def __init__(self): self.seen = []
    def state_dict(self): return dict(seen=self.seen)
    def load_state_dict(self, state): self.seen = state['seen']
    def before_epoch(self, learn): self._work(learn, 'before_epoch', 2.)
    def cleanup_epoch(self, learn): self._work(learn, 'cleanup_epoch', .75)
    def cleanup_batch(self, learn): self._work(learn, 'cleanup_batch', 1.001)

    def _work(self, learn, event, factor):
        self.seen.append(f'{event} {learn.training} {torch.rand(()).item()}')
        if learn.training: learn.model[0].weight.data.mul_(factor)


def test_what_callbacks_do_as_passes_and_batches_begin_and_end_is_done_once(tmp_path):
    make = lambda folder, *cbs: run(folder, cbs=[BusyCB(), *cbs], minutes=1e-9)  # noqa: E731
    assert_resumes_exactly(make, tmp_path, ((0, 0, True), (1, 2, True), (1, 0, False)))


def test_a_callback_with_a_growing_state_resumes_in_the_same_process(tmp_path):
    class GrowingCB(Callback):
        def __init__(self): self.seen = {}
        def state_dict(self): return self.seen
        def load_state_dict(self, state): self.seen = state
        def after_batch(self, learn): self.seen[f'{learn.epoch} {learn.training} {learn.iter}'] = 1
    stop = StopCB(0, 2)
    learn = run(tmp_path, cbs=[GrowingCB(), stop])
    fit_until_stopped(learn)
    learn.cbs.remove(stop)
    learn.fit(2, resume=True)
    assert len(learn.cbs[-1].seen) == 2*(7 + 2)


def test_the_state_is_released_once_it_is_restored(tmp_path):
    fit_until_stopped(run(tmp_path, cbs=[StopCB(0, 2)]))
    held = []
    class LookCB(Watcher):
        def before_batch(self, learn): held.append(saver._run.point.state)
    learn = run(tmp_path, cbs=[LookCB()])
    saver = next(cb for cb in learn.cbs if isinstance(cb, CheckpointCB))
    learn.fit(2, resume=True)
    assert held
    assert {*held} == {None}


# The Learner

@pytest.mark.parametrize('stop', [(0, 2), (0, 1, False)])
@pytest.mark.parametrize('first', [True, False])
def test_a_resumed_fit_leaves_loaders_and_methods_of_the_learner_alone(first, stop, tmp_path):
    with pytest.raises(RuntimeError, match='stopped'): run(tmp_path, cbs=[StopCB(*stop)], minutes=1e-9).fit(2)
    seen = []
    class Look(Watcher):
        def before_epoch(self, learn): seen.append((learn.dls.train, learn.dls.valid))
    learn = run(tmp_path, cbs=[Look()], minutes=1e-9)
    learn.cbs.insert(0 if first else len(learn.cbs), ProfileCB(quiet=True))
    own = learn.dls.train, learn.dls.valid
    learn.fit(2, resume=True)
    assert seen
    assert all(a is own[0] and b is own[1] for a, b in seen)
    assert 'one_epoch' not in vars(learn)
    assert len(learn.cbs) == len(run(tmp_path).cbs) + 2


def test_workers_survive_signals_for_the_length_of_a_fit(tmp_path):
    seen = []
    def own(worker): pass
    class LookCB(Watcher):
        def before_batch(self, learn): seen.append(learn.dls.train.worker_init_fn)
    learn = run(tmp_path, '2', cbs=[LookCB()], n_epochs=1)
    learn.dls.train.worker_init_fn = own
    learn.fit(1)
    assert {type(f) for f in seen} == {OutlastSignals}
    assert {f.then for f in seen} == {learn.dls.train.worker_init_fn} == {own}
