"Where a run resumes: which checkpoint it continues from, and how its state is restored."
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miniai.checkpoint import load
from miniai.checkpoint.folder import first_whole
from miniai.resume.exactness import loader_resume_blocker
from miniai.resume.files import BEST, files_of, is_between_epochs, place_of
from miniai.resume.loader import RemainingBatches
from miniai.resume.state import ResumeError, generators_in_callbacks, restore_callbacks, restore_run

__all__ = ['ResumePoint', 'find_resume_point', 'resume_blockers', 'restore', 'real_weights']


class ResumePoint:
    """Where a fit starts: in epoch `epoch`, after its training if `trained`, before batch `batch` of the pass. `state`
    is what to restore, None at the start of a run."""
    def __init__(self, state: dict[str, Any] | None = None) -> None:
        at = state['position'] if state else dict(epoch=0, phase='train', batch=0)
        self.state, self.epoch, self.batch, self.trained = state, at['epoch'], at['batch'], at['phase'] == 'valid'

    def remaining(self, dl: Any) -> RemainingBatches:
        "The rest of the pass over `dl` in which the run stopped."
        begun, now = ((s['random'], s['loaders'][self.trained]) for s in (self.state['begun'], self.state))
        return RemainingBatches(dl, self.batch, begun, now)


def find_resume_point(folder: Path, learn: Any, blockers: dict[str, str]) -> ResumePoint:
    """The newest valid checkpoint in `folder`: by its name, the one furthest into the run. If there is none, the start
    of the run. A warning names each newer one that is skipped. ResumeError if there are checkpoints but none can be
    used, or if the run has already done more than `n_epochs`. `blockers` comes from `resume_blockers`."""
    there = files_of(folder)
    if not there: return ResumePoint()
    def blocker(path: Path) -> str:
        if is_between_epochs(path): return ''
        return blockers.get('validation' if place_of(path.name)[1] else 'an epoch', '')
    usable = [p for p in there if not blocker(p)]
    found = first_whole(reversed(usable), load)
    if found is None: raise _nothing_usable(there, usable, blockers)
    path, state = found
    for p in there[there.index(path) + 1:]:
        if p not in usable: warnings.warn(f"skipped {p}: {blocker(p)}; resuming from {path.name}, between epochs",
                                          stacklevel=6)
    point = ResumePoint(state)
    begun = bool(point.batch or point.trained)
    if learn.n_epochs >= point.epoch + begun: return point
    raise ResumeError(f"the run in {folder} has done {point.epoch} epochs{' and part of another' if begun else ''}, "
                      f"but fit was called with n_epochs={learn.n_epochs}: pass a larger number")


def resume_blockers(learn: Any) -> dict[str, str]:
    "Why the run cannot resume exactly from within an epoch or within validation; empty if it can."
    others = generators_in_callbacks(learn)
    reasons = {'an epoch': loader_resume_blocker(learn.dls.train, others)}
    if learn.validates: reasons['validation'] = loader_resume_blocker(learn.dls.valid, others)
    return {part: f"the run cannot resume exactly from within {part}: {why}" for part, why in reasons.items() if why}


def _nothing_usable(there: list[Path], usable: list[Path], blockers: dict[str, str]) -> ResumeError:
    folder, reasons = there[0].parent, []
    def names(paths: list[Path]) -> str: return ', '.join(p.name for p in paths)
    if usable: reasons.append(f"all {len(usable)} checkpoint(s) in {folder} are damaged: {names(usable)}")
    inside = [p for p in there if p not in usable]
    if inside: reasons.append(f"{'; '.join(blockers.values())}. {folder} holds no checkpoint between epochs, only "
                              f"{names(inside)}")
    if (folder/BEST).exists(): reasons.append(f"{BEST}, from the best epoch, is also there")
    return ResumeError(f"{'; '.join(reasons)}. To start a new run, move them to another folder")


def restore(learn: Any, state: dict[str, Any]) -> None:
    "Restore everything that `state` holds. ResumeError, and nothing is changed, if a callback refuses its part."
    with real_weights(learn.opt):
        restore_callbacks(learn, state)
        restore_run(learn, state)


@contextmanager
def real_weights(opt: Any) -> Iterator[None]:
    "Within this context parameters hold the weights, even if the optimizer has swapped in their averages."
    swapped = getattr(opt, 'shows_averages', False)
    if swapped: opt.swap_averages()
    try: yield
    finally:
        if swapped: opt.swap_averages()
