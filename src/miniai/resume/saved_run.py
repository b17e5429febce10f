"One fit that is saved: where it begins or resumes, what happens as passes begin and end, what a checkpoint holds."
import math
import time
import warnings
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from miniai.callbacks.dry_run import patch
from miniai.callbacks.passes import MaxBatchesCB, StepsCB
from miniai.callbacks.together import join_parts
from miniai.callbacks.wrapped import WrappedLoader
from miniai.checkpoint.parts import taken_out
from miniai.checkpoint.tree import flatten
from miniai.distributed.ranks import failing_together, is_first
from miniai.distributed.wrap import is_sharded, unwrapped
from miniai.inference.model_file import facts_of
from miniai.resume.files import BEST, NoFiles, RunFiles, files_of, place_of
from miniai.resume.loader import resume_warning
from miniai.resume.placed import placed
from miniai.resume.ranks import is_resized, state_of_rank, with_all_ranks
from miniai.resume.restore import ResumeError, check_same, real_weights, restore, versions
from miniai.resume.signals import OutlastSignals, SignalWatch
from miniai.resume.start import ResumedPassCB, ResumePoint, find_resume_point
from miniai.resume.state import RunState, loaders_of
from miniai.steps.average import AverageCB
from miniai.steps.evaluation_point import EvaluationPointCB

__all__ = ['SavedRun']


class SavedRun:
    """One fit that a CheckpointCB, `cb`, saves: its files, its signals, what its checkpoints hold. `in_pass`: a pass
    over a loader is in progress."""
    def __init__(self, cb: Any, learn: Any) -> None:
        self.cb, self.in_pass, self.remaining, self.cancelled = cb, False, None, False
        self.first_batch, self.pass_done, self.resumed_pass = 0, False, None
        self.sharded = is_sharded(learn.model)
        self._end, self.watch = ExitStack(), SignalWatch(cb.signals)
        self._end.callback(self.watch.close)
        try:
            with failing_together():
                first = is_first()
                self.files = NoFiles(cb.folder, cb.background) if not first else RunFiles(
                    cb.folder, cb.keep, cb.background, self.sharded)
        except BaseException:
            self._end.close()
            raise
        self._start_counting()

    def asks(self) -> list[float]:
        "The number of a signal or 0, and whether a save is due by the clock."
        return [float(self.watch.signal or 0), float(time.monotonic() >= self.due)]

    def decided(self) -> tuple[int, bool]:
        "What all processes answered to what each asks."
        signal, due = self.answer or self.asks()
        return int(signal), bool(due)

    def begin(self, learn: Any) -> None:
        "Resume where the run stopped, or begin in a folder without checkpoints."
        self.point = ResumePoint()
        if learn.resume: self.point = find_resume_point(self.files.folder, learn.n_epochs, unwrapped(learn.model))
        with failing_together():
            if is_first() and self.point.state is None: self._refuse_used_folder()
        self.state, self.steps = RunState(learn), next((cb for cb in learn.cbs if isinstance(cb, StepsCB)), None)
        if self.steps: self.steps.when_a_pass_begins(partial(self.state.begin_pass, learn, kind='paused'))
        for path, dl in loaders_of(learn).items():
            why = resume_warning(dl, limited=any(isinstance(cb, MaxBatchesCB) for cb in learn.cbs))
            if why: warnings.warn(f"CheckpointCB: the run may not resume exactly from {path}: {why}", stacklevel=4)
        with failing_together():
            if self.point.state is not None: self._resume(learn)
            else: flatten(self._apart(learn, self.state.take(learn))[0])  # an error now if a part cannot be saved
        self._protect_workers(learn)

    def _refuse_used_folder(self) -> None:
        folder, there = self.files.folder, files_of(self.files.folder)
        if there: raise ResumeError(
            f"{folder} holds {len(there)} checkpoint(s) of an earlier run, such as {there[-1].name}: resume it with "
            f"fit(…, resume=True), or choose another folder")
        if self.cb.best and self.files.has_best(): raise ResumeError(
            f"{folder} holds {BEST} of an earlier run, but no checkpoint to resume from: move it away or choose "
            f"another folder")

    def _resume(self, learn: Any) -> None:
        state = state_of_rank(self.point.state, learn, self.state.nodes)
        state = self.point.state = placed(state, self.point.path, learn, self.state.nodes)
        if is_first() or not is_resized(state): check_same(learn, state, self.state)
        lost = restore(learn, state, self.state.names)
        self.state.continue_from(state)
        if not self.point.batch: self._warn_lost(lost)
        self.files.start_from(state['position'])
        self._move_to(learn, self.point)

    def _warn_lost(self, lost: list[str]) -> None:
        if lost: warnings.warn(f"not restored, because this run has no such object, or it cannot be made again: "
                               f"{', '.join(lost)}", stacklevel=5)

    def _protect_workers(self, learn: Any) -> None:
        "Let the loaders' workers outlive a signal that reaches them too."
        if not self.watch.old_handlers: return
        for dl in loaders_of(learn).values():
            if isinstance(dl, DataLoader) and dl.num_workers:
                patch(self._end, dl, 'worker_init_fn', self._end.enter_context(OutlastSignals(dl.worker_init_fn)))

    def _move_to(self, learn: Any, point: ResumePoint) -> None:
        "Let the fit start at `point`: the remaining epochs, without a pass that is done, from batch `point.batch` on."
        learn.epochs = range(point.epoch, learn.n_epochs)
        if not learn.epochs: learn.epoch = learn.n_epochs - 1
        paused = point.state.get('paused')
        if not (point.trained or point.batch or paused): return
        if paused: self.state.begin_pass(learn, paused, 'paused')
        self.resumed_pass = ResumedPassCB(point, self.state, self.steps)
        learn.cbs.append(self.resumed_pass)
        self._end.callback(lambda: self.resumed_pass in learn.cbs and learn.cbs.remove(self.resumed_pass))

    def begin_pass(self, learn: Any) -> None:
        "Note the state of the data. In a pass that is resumed, restore what callbacks have just reset."
        resumed = self.point.state if self.point.batch else None
        rest = self.resumed_pass and self.resumed_pass.remaining
        self.remaining = None if rest is None or rest.taken else rest
        if resumed and self.remaining is None: self._refuse_replaced_loader()
        if resumed: self._warn_lost(restore(learn, resumed, self.state.names))
        if not (self.steps and learn.training): self.state.begin_pass(learn, resumed and resumed['begun'])
        self.in_pass, self.first_batch = True, self.point.batch if resumed else 0
        self.point.state = None
        learn.dl = WrappedLoader(learn.dl, at_end=self._note_end)
        learn.dl.first_batch = self.first_batch  # a callback's own wrapper may not pass it on

    def _note_end(self) -> None: self.pass_done = True

    def skipping(self, learn: Any) -> bool:
        "Is this the end of the training pass that a resumed run skips?"
        return self.point.trained and learn.training and learn.epoch == self.point.epoch

    def _refuse_replaced_loader(self) -> None:
        inside = [p.name for p in files_of(self.files.folder) if place_of(p.name)[2]]
        raise ResumeError(
            f"cannot resume within a pass: a callback, or the Learner's own one_epoch, replaced learn.dl, so its order "
            f"is unknown. To resume between epochs instead, move these checkpoints away: {inside}")

    def count_batch(self, learn: Any) -> None:
        if self.remaining is not None and not self.remaining.taken: self._refuse_replaced_loader()
        self.remaining = None
        self.batches += learn.training

    def save(self, learn: Any, position: dict[str, Any], best: bool) -> None:
        "Save the run as it stands, at `position`."
        paused = bool(self.steps and self.steps.done)
        join_parts(learn)
        begun = position['batch'] > 0 and not (self.steps and position['phase'] == 'train')
        with real_weights(learn):
            state = self.state.take(learn, ['begun']*begun + ['paused']*paused)
            change = self.state.change(state)
            if change: warnings.warn(f"CheckpointCB: checkpoints saved from now on cannot be resumed: {change}. "
                                     f"Make this change before the fit", stacklevel=5)
            for cb in learn.cbs if best else ():
                if not isinstance(cb, AverageCB | EvaluationPointCB): continue
                state |= dict(raw=state['model'], model=cb.averaged(learn, state['model']))
            state, tensors = self._apart(learn, dict(position=position, versions=versions(learn), **state))
            self.files.save(with_all_ranks(state, learn.model), tensors, best)
        self._start_counting()

    def _apart(self, learn: Any, state: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
        "The state without the tensors of a sharded model, and these by name."
        return taken_out(state | dict(file=facts_of(learn))) if self.sharded else (state, {})

    def _start_counting(self) -> None:
        self.answer, self.batches, self.due = None, 0, time.monotonic() + 60*(self.cb.minutes or math.inf)

    def end(self) -> None:
        "Wait for the save in progress, unless there was a second signal. Then exit if there was a signal."
        with self._end: self.files.close(wait=not self.watch.forced)
        self.watch.leave()
