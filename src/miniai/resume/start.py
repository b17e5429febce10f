"""Going on from a checkpoint: which one, where the fit starts then, and putting everything back. Knows checkpoints'
folders and a run's state, not the loop."""
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from miniai.checkpoint import load
from miniai.checkpoint.folder import first_whole
from miniai.resume.exactness import loader_resume_blocker
from miniai.resume.files import BEST, files_of, lies_between_epochs, place_of
from miniai.resume.loader import FromBatch
from miniai.resume.state import ResumeError, generators_in_callbacks, restore_records, restore_run

__all__ = ['Start', 'newest_start', 'resume_blockers', 'go_on', 'weights_in_place']


class Start:
    """Where a fit starts: in epoch `epoch`, after its training where `trained`, before batch `batch`. `state` is what
    to put back, until that has been done; None at the very start. Its folder held the files `seen` when it was read,
    and `why` is what `resume_blockers` said then."""
    def __init__(self, state: dict[str, Any] | None = None, seen: tuple[Path, ...] = (),
                 why: dict[str, str] | None = None) -> None:
        at = state['position'] if state else dict(epoch=0, phase='train', batch=0)
        self.state, self.seen, self.why, self.left = state, seen, why, None
        self.epoch, self.batch, self.trained = at['epoch'], at['batch'], at['phase'] == 'valid'
        self._random = [_random_of(s, self.trained) for s in (state['begun'], state)] if self.batch else []

    def rest(self, dl: Any) -> FromBatch:
        "What is left of the pass over `dl` that the fit starts in; kept as `left`."
        self.left = FromBatch(dl, self.batch, *self._random)
        return self.left


def _random_of(state: dict[str, Any], trained: bool) -> tuple[dict, dict]:
    return state['random'], state['loaders'][trained]


def newest_start(folder: Path, learn: Any) -> Start:
    """The start from the newest whole checkpoint in `folder`, the one furthest into the run by its name; the very start
    where there is none yet. A warning names each that is passed over. ResumeError where none can be gone on from."""
    there = files_of(folder)
    if not there: return Start()
    why = resume_blockers(learn)
    usable = [p for p in there if not _why_not(p, why)]
    found = first_whole(reversed(usable), load)
    if found is None: raise _none(there, usable, why)
    path, state = found
    for p in there[there.index(path) + 1:]:
        if p not in usable: warnings.warn(f"passed over, {p}: {_why_not(p, why)}; going on from {path.name}, between "
                                          f"epochs", stacklevel=5)
    return Start(state, tuple(there), why)


def resume_blockers(learn: Any) -> dict[str, str]:
    "Why the run could not go on exactly from within a pass, by the kind of pass; nothing where it could."
    others = generators_in_callbacks(learn)
    why = {'an epoch': loader_resume_blocker(learn.dls.train, others)}
    if learn.validates: why['validation'] = loader_resume_blocker(learn.dls.valid, others)
    return {part: f"from within {part} the run cannot go on exactly: {w}" for part, w in why.items() if w}


def _why_not(path: Path, why: dict[str, str]) -> str:
    if lies_between_epochs(path): return ''
    return why.get('validation' if place_of(path.name)[1] else 'an epoch', '')


def _none(there: list[Path], usable: list[Path], why: dict[str, str]) -> ResumeError:
    "What to say where no checkpoint can be gone on from."
    folder = there[0].parent
    damaged = [f"none of the {len(usable)} checkpoint(s) in {folder} is whole: {_names(usable)}"] if usable else []
    others = [p for p in there if p not in usable]
    inside = [f"{'; '.join(why.values())}. In {folder} no checkpoint lies between epochs, only {_names(others)}"]
    best = [f"{BEST}, of the best epoch, is there too"] if (folder/BEST).exists() else []
    said = damaged + (inside if others else []) + best
    return ResumeError(f"{'; '.join(said)}. Move them away to begin anew")


def _names(paths: list[Path]) -> str: return ', '.join(p.name for p in paths)


def go_on(learn: Any, state: dict[str, Any]) -> None:
    "Put back everything that `state` holds. ResumeError, and nothing is changed, where callbacks do not take records."
    with weights_in_place(learn.opt):
        restore_records(learn, state)
        restore_run(learn, state)


@contextmanager
def weights_in_place(opt: Any) -> Iterator[None]:
    "Within it parameters are the weights themselves, where an optimizer has put their averages in their place."
    swapped = getattr(opt, 'shows_averages', False)
    if swapped: opt.swap_averages()
    try: yield
    finally:
        if swapped: opt.swap_averages()
