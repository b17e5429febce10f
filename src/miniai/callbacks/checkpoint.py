"""Checkpoints of a run, and going on from one: when to save, what to keep, where the run stands. Knows checkpoint files
and a run's state, not the loop."""
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from miniai.checkpoint import FolderLock, Saver, load, remove_stale
from miniai.checkpoint.folder import first_valid
from miniai.data.position import FromBatch, why_not_exact
from miniai.events import Callback

from .lr_finder import LRFinderCB
from .metrics import MetricsCB, direction
from .restore import put
from .run_files import file_name, files_of, lies_between_epochs, place_of
from .run_state import (
    ResumeError,
    check_records,
    check_same,
    fingerprint,
    first_fingerprint,
    loaders_of,
    restore_records,
    restore_run,
    run_state,
    state_now,
)
from .signals import OutlastSignals, SignalWatch

__all__ = ['CheckpointCB', 'resumed']


class CheckpointCB(Callback):
    """Saves the run to `folder`: after every `batches` training batches, `epochs` epochs or `minutes`, whichever come
    first, and when it ends after an epoch, stopped early or not, though not where a callback cancels it; the last
    `keep` checkpoints stay. With `best`, the name of a validation metric, the checkpoint of its best epoch stays too,
    as best.safetensors: 'accuracy' for the highest, '-loss' for the lowest; NaN is never best.

    `learn.fit(n, resume=True)` goes on from the newest whole checkpoint, to the bit, from whatever batch it was; the
    newest is the one furthest into the run, by its name. Where a loader cannot be taken up within an epoch, the last
    checkpoint between epochs stays besides. SIGTERM and SIGINT finish the batch, save, and leave with 143 or 130, in a
    notebook by KeyboardInterrupt; a second one leaves at once. With `background` a checkpoint is written beside
    training: it holds the state as of the request, an old one goes when it is on the disk, and a failure is raised by
    the next batch or at the end. Another run in the same folder is refused. A look, a fit that looks for a rate, or one
    that only validates, saves nothing."""
    order = math.inf
    def __init__(self, folder: str | Path, batches: int | None = None, epochs: int | None = 1,
                 minutes: float | None = None, keep: int = 2, best: str | None = None, background: bool = False,
                 signals: bool = True) -> None:
        for nm, x in dict(batches=batches, epochs=epochs, minutes=minutes, keep=keep).items():
            if x is not None and not x > 0: raise ValueError(f"CheckpointCB: {nm} must be above 0, got {x}")
        self.folder, self.batches, self.epochs, self.minutes = Path(folder), batches, epochs, minutes
        self.keep, self.best, self.background, self.signals = keep, best, background, signals
        self.state, self.active = None, False

    # Where a run begins

    def open(self) -> dict[str, Any] | None:
        """The newest whole checkpoint, verified, as the state to go on from; None where the folder has no checkpoint.
        ResumeError where none of them is whole."""
        there = files_of(self.folder)
        newest = first_valid(reversed(there))
        if there and newest is None: raise self._none_whole(there)
        return None if newest is None else load(newest)

    def _none_whole(self, there: list[Path]) -> ResumeError:
        best = self.folder/'best.safetensors'
        hint = f"; {best.name}, of the best epoch, is there too" if best.exists() else ''
        return ResumeError(f"none of the {len(there)} checkpoint(s) in {self.folder} is whole: "
                           f"{', '.join(p.name for p in there)}{hint}. Move them away to begin anew")

    def before_fit(self, learn: Any) -> None:
        if not learn.trains or learn.looks or any(isinstance(cb, LRFinderCB) for cb in learn.cbs): return
        self._check_best(learn)
        check_records(learn)
        self.state, learn.resumes, self._writing = learn.resumes, None, None
        self._saver, self._since, self._due, self._end = Saver(), 0, self._next_time(), ExitStack()
        self._interrupted = self._left = False
        self._reserved, self._watch, self.active = not self.background, SignalWatch(self.signals), True
        self._end.callback(self._watch.close)
        self._start_folder()
        self._keep_workers(learn)
        self._first = first_fingerprint(learn)
        self._passed = self._passed_over()
        self._check_exact(learn)
        if self.state is None: return self._check_empty()
        check_same(learn, self.state)
        restore_records(learn, self.state)
        restore_run(learn, self.state)

    def _start_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._end.enter_context(FolderLock(self.folder))
        remove_stale(self.folder)

    def _keep_workers(self, learn: Any) -> None:
        "Let the loaders' workers outlast a signal that comes to them too."
        if not self._watch.old: return
        for dl in loaders_of(learn):
            if isinstance(dl, DataLoader) and dl.num_workers:
                put(self._end, dl, 'worker_init_fn', self._end.enter_context(OutlastSignals(dl.worker_init_fn)))

    def _passed_over(self) -> set[Path]:
        "Checkpoints newer than the one gone on with, which are damaged: they stay, and do not count among those kept."
        if self.state is None: return set()
        here = place_of(file_name(self.state['position']))
        return {p for p in files_of(self.folder) if place_of(p.name) > here}

    def _check_best(self, learn: Any) -> None:
        "ValueError for a figure that nobody gives, where all who could are the library's own."
        known = [nm for cb in learn.cbs if isinstance(cb, MetricsCB) for nm in ('seconds', *cb.all_metrics)]
        others = [cb for cb in learn.cbs if not _is_ours(getattr(cb, 'after_epoch', None))]
        if self.best and known and not others and direction(self.best)[0] not in known: raise self._no_figure(known)

    def _no_figure(self, there: list[str]) -> ValueError:
        return ValueError(f"CheckpointCB: there is no figure {direction(self.best)[0]!r} to be best at; there are "
                          f"{sorted(set(there)) or 'none: add MetricsCB() to cbs'}")

    def _check_exact(self, learn: Any) -> None:
        self._why_not = why = why_not_exact(learn.dls.train)
        if why and learn.first_batch: raise ResumeError(
            f"the run cannot go on exactly from within an epoch: {why}; checkpoints between epochs can be gone on "
            f"with where newer ones are moved away: {[p.name for p in self._between_epochs()] or 'there are none'}")
        if why: warnings.warn(f"CheckpointCB: a run stopped within an epoch cannot go on exactly: {why}", stacklevel=2)

    def _check_empty(self) -> None:
        there = files_of(self.folder)
        if there: raise ResumeError(f"{self.folder} holds {len(there)} checkpoint(s) of an earlier run, such as "
                                    f"{there[-1].name}: go on from it with fit(…, resume=True), or save elsewhere")

    def _next_time(self) -> float: return time.monotonic() + 60*self.minutes if self.minutes else math.inf

    def before_epoch(self, learn: Any) -> None:
        if not self.active: return
        within = learn.training and learn.first_batch
        self._begun = self.state['begun'] if within else state_now(learn)
        if within: restore_records(learn, self.state)
        self.state = None

    # When to save

    def after_batch(self, learn: Any) -> None:
        if not self.active: return
        self._settle(self._saver.done)
        if learn.skip_update: return
        if learn.training: return self._after_training_batch(learn)
        self._interrupted = self._watch.signal is not None
        self._leave_if_asked()

    def _after_training_batch(self, learn: Any) -> None:
        self._since += 1
        due = (self.batches and self._since >= self.batches) or time.monotonic() >= self._due
        if due or self._watch.signal: self.save(learn, 'train', learn.epoch, learn.iter + 1)
        elif not self._reserved: self._reserve(learn)
        self._leave_if_asked()

    def _reserve(self, learn: Any) -> None:
        "Take a background save's memory after the first batch, when the optimizer has its state, before a save is due."
        self._saver.reserve(run_state(learn))
        self._reserved = True

    def after_epoch(self, learn: Any) -> None:
        if not self.active: return
        if learn.training and learn.validates: self._between(learn)
        else: self._after_whole_epoch(learn)
        self._leave_if_asked()

    def _between(self, learn: Any) -> None:
        if self._watch.signal: self.save(learn, 'valid', learn.epoch, 0)

    def _after_whole_epoch(self, learn: Any) -> None:
        done, figures = learn.epoch + 1, self._figures(learn)
        last, best, unknown = done == learn.n_epochs, _is_best(figures), bool(self.best) and not figures
        ends = last or unknown or any(getattr(cb, 'ends_fit', False) for cb in learn.cbs)
        if ends or best or self._watch.signal or (self.epochs and done % self.epochs == 0):
            self.save(learn, 'done' if last else 'train', done, 0, best)
        if unknown: raise self._no_figure(list(learn.history[-1]) if learn.history else [])

    def cleanup_epoch(self, learn: Any) -> None:
        "An interrupted validation will be done anew: what is saved is the run as it was when that began."
        if self.active and self._interrupted: self.save(learn, 'valid', learn.epoch, 0, now=self._begun)
        self._interrupted = False

    def _leave_if_asked(self) -> None:
        if not self._watch.signal or self._left: return
        self._left = True
        raise self._watch.leaving()

    def _figures(self, learn: Any) -> list:
        "What to be best at, of every epoch so far, the higher the better; none where this epoch has no such figure."
        if not self.best: return []
        name, sign = direction(self.best)
        rows = [r for r in learn.history if r['phase'] == 'eval'] or learn.history
        return [sign*r[name] for r in rows if name in r] if rows and name in rows[-1] else []

    def save(self, learn: Any, phase: str, epoch: int, batch: int, best: bool = False, now: dict | None = None) -> None:
        "Save the run as it stands: in `phase` of `epoch`, before its batch number `batch`."
        position = dict(phase=phase, epoch=epoch, batch=batch, n_epochs=learn.n_epochs)
        with weights_in_place(learn.opt):
            state = dict(position=position, fingerprint=fingerprint(learn) | self._first,
                         begun=self._begun if batch else None, **(run_state(learn) | (now or {})))
            self._write(self.folder/file_name(position), state)
            if best: self._write(self.folder/'best.safetensors', state)
        self._since, self._due, self._reserved = 0, self._next_time(), True

    def _write(self, path: Path, state: dict[str, Any]) -> None:
        self._settle(self._saver.wait)
        self._writing = path
        self._settle(lambda: self._saver.save(path, state, background=self.background) or not self.background)

    def _settle(self, is_done: Callable[[], bool | None]) -> None:
        "Once the last save is on the disk to stay, it counts, and old ones go; raise what went wrong with it."
        try: done = is_done()
        except BaseException:
            self._passed.add(self._writing)  # it may be there, and not whole
            raise
        if self._writing is None or done is False: return
        self._passed.discard(self._writing)
        self._writing = None
        self._remove_old()

    def _remove_old(self) -> None:
        there = [p for p in files_of(self.folder) if p not in self._passed]
        kept = there[-self.keep:] + (self._between_epochs()[-1:] if self._why_not else [])
        for old in there:
            if old not in kept: old.unlink(missing_ok=True)

    def _between_epochs(self) -> list[Path]:
        return [p for p in files_of(self.folder) if p not in self._passed and lies_between_epochs(p)]

    # Where it ends

    def cleanup_fit(self, learn: Any) -> None:
        if not self.active: return
        self.active, self.state = False, None
        with self._end: self._settle(self._saver.wait)
        self._leave_if_asked()


def _is_best(figures: list) -> bool:
    "Is the last no worse than any? NaN never is, and is worse than all others."
    return bool(figures) and figures[-1] >= max((x for x in figures if x == x), default=math.inf)


def _is_ours(method: Any) -> bool:
    return method is None or (getattr(method, '__module__', None) or '').startswith('miniai.')


@contextmanager
def weights_in_place(opt: Any) -> Iterator[None]:
    "Within it parameters are the weights themselves, where an optimizer has put their averages in their place."
    swapped = getattr(opt, 'shows_averages', False)
    if swapped: opt.swap_averages()
    try: yield
    finally:
        if swapped: opt.swap_averages()


def resumed(learn: Any, n_epochs: int) -> range:
    """Make `learn` ready to go on from the newest checkpoint of its CheckpointCB, and say which epochs are left: all
    where there is no checkpoint yet. ValueError without a CheckpointCB or for a fit that does not train, ResumeError
    for fewer epochs than are done."""
    if not learn.trains: raise ValueError("fit(…, resume=True) goes on training, and was called with train=False")
    cbs = [cb for cb in learn.cbs if isinstance(cb, CheckpointCB)]
    if len(cbs) != 1:
        raise ValueError(f"fit(…, resume=True) needs one CheckpointCB(folder) in cbs, and there are {len(cbs)}")
    state = cbs[0].open()
    if state is None: return range(n_epochs)
    at = state['position']
    if n_epochs < at['epoch']:
        raise ResumeError(f"the run in {cbs[0].folder} has done {at['epoch']} epochs, and {n_epochs} were asked for")
    begun, now = ((s['random'], s['loaders'][0]) for s in (state['begun'] or state, state))
    learn.resumes = state
    learn.rest = lambda dl: FromBatch(dl, at['batch'], begun, now)
    learn.first_batch, learn.trained = at['batch'], at['phase'] == 'valid'
    return range(at['epoch'], n_epochs)
