"Where a run resumes: which checkpoint it continues from."
import math
from pathlib import Path
from typing import Any

from torch import nn

from miniai.callbacks.passes import StepsCB
from miniai.checkpoint.folder import first_whole
from miniai.distributed.ranks import of_first
from miniai.events import Callback, CancelEpochException
from miniai.resume.files import BEST, BEST_FOLDER, files_of
from miniai.resume.loader import RemainingBatches
from miniai.resume.old import in_todays_form, is_old
from miniai.resume.placed import load_together
from miniai.resume.restore import ResumeError
from miniai.resume.state import RunState

__all__ = ['ResumePoint', 'ResumedPassCB', 'find_resume_point']

_PARTS = {'position', 'versions', 'model', 'opt', 'history', 'random', 'objects', 'states', 'attributes', 'settings',
          'shapes', 'running', 'begun'}


class ResumePoint:
    """Where a fit starts: in epoch `epoch`, after its training if `trained`, before batch `batch` of the pass. `state`
    is what to restore, None at the start of a run, and `path` the checkpoint it comes from."""
    def __init__(self, state: dict[str, Any] | None = None, path: Path | None = None) -> None:
        self.path = path
        at = state['position'] if state else dict(epoch=0, phase='train', batch=0)
        self.state, self.epoch, self.batch, self.trained = state, at['epoch'], at['batch'], at['phase'] == 'valid'


class ResumedPassCB(Callback):
    "Runs first as a resumed run begins its passes: skips a training pass that is done, continues one that is not."
    order, only_shows = -math.inf, True
    def __init__(self, point: ResumePoint, state: RunState, steps: StepsCB | None) -> None:
        self.point, self.state, self.steps, self.paused = point, state, steps, point.state.get('paused')
        self.skips, self.remaining = point.trained, None

    def before_epoch(self, learn: Any) -> None:
        if self.skips and learn.training:
            self.skips = False
            raise CancelEpochException()
        state = self.point.state if self.point.batch else None  # None as well once the first epoch has begun
        if learn.training and self.steps and self.steps.paused: begun, done = self.paused, self.steps.done
        elif state and self.remaining is None: begun, done = state['begun'], self.point.batch
        else: return
        now = state and {nm: state[nm] for nm in ('random', 'states', 'attributes')}
        path = f"learn.dls.{'train' if learn.training else 'valid'}"
        learn.dl = self.remaining = RemainingBatches(learn, learn.dl, path, done, begun, now, self.state)


def find_resume_point(folder: Path, n_epochs: int, model: nn.Module) -> ResumePoint:
    """The newest valid checkpoint in `folder`: by its name, the one furthest into the run. If there is none, the start
    of the run. A warning names each newer one that is damaged, for any process. ResumeError if all are damaged, or if
    the run has already done more than `n_epochs`. Every process must call this."""
    there = of_first(lambda: files_of(folder))
    if not there: return ResumePoint()
    found = first_whole(reversed(there), lambda path: load_together(path, model))
    if found is None:
        best = next((f". {nm}, from the best epoch, is also there" for nm in (BEST, BEST_FOLDER)
                     if (folder/nm).exists()), '')
        raise ResumeError(f"all {len(there)} checkpoint(s) in {folder} are damaged: {', '.join(p.name for p in there)}"
                          f"{best}. To start a new run, move them to another folder")
    path, state = found
    try: state = in_todays_form(state, model) if is_old(state) else state
    except ValueError as e: raise ResumeError(f'cannot resume: {e}') from e
    lacking = _PARTS - state.keys()
    if lacking: raise ResumeError(f"cannot resume: {path} is not a checkpoint of a run, which has {min(lacking)!r}")
    point = ResumePoint(state, path)
    partly = bool(point.batch or point.trained)
    if n_epochs >= point.epoch + partly: return point
    raise ResumeError(f"the run in {folder} has done {point.epoch} epochs{' and part of another' if partly else ''}, "
                      f"but this fit has only {n_epochs}: pass a larger number")
