"""Checkpoints of a run, and going on from one: when to save, what to keep, where the run stands. Knows checkpoint files
and a run's state, not the loop."""
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from miniai.checkpoint import FolderLock, Saver, load, newest_valid, remove_stale
from miniai.data.position import FromBatch, why_not_exact
from miniai.events import Callback

from .lr_finder import LRFinderCB
from .metrics import direction
from .restore import put
from .run_state import (
    ResumeError,
    check_same,
    fingerprint,
    first_fingerprint,
    restore_records,
    restore_run,
    run_state,
    state_now,
)
from .signals import OutlastSignals, SignalWatch

__all__ = ['CheckpointCB', 'resumed']

_PATTERN = 'checkpoint-*.safetensors'
_PHASES = dict(train=1, valid=2, done=3)


class CheckpointCB(Callback):
    """Saves the run to `folder`: after every `batches` training batches, `epochs` epochs or `minutes`, whichever come
    first, and at its end; the last `keep` checkpoints stay. With `best`, the name of a validation metric, the
    checkpoint of its best epoch stays too, as best.safetensors: 'accuracy' for the highest, '-loss' for the lowest.

    `learn.fit(n, resume=True)` goes on from the newest whole checkpoint, to the bit, from whatever batch it was.
    SIGTERM and SIGINT finish the batch, save, and leave with 143 or 130, in a notebook by KeyboardInterrupt; a second
    one leaves at once. With `background` a checkpoint is written beside training: it holds the state as of the
    request, and a failure is raised by the next batch or at the end. Another run in the same folder is refused. A fit
    that looks for a rate, or only validates, saves nothing."""
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
        "The newest whole checkpoint, verified, as the state to go on from; None where the folder has no checkpoint."
        newest = newest_valid(self.folder, _PATTERN) if self.folder.is_dir() else None
        self.state = None if newest is None else load(newest)
        return self.state

    def before_fit(self, learn: Any) -> None:
        if not learn.trains or any(isinstance(cb, LRFinderCB) for cb in learn.cbs): return
        self._saver, self._since, self._due, self._end = Saver(), 0, self._next_time(), ExitStack()
        self._interrupted = self._left = self._saved = False
        self._reserved, self._watch, self.active = not self.background, SignalWatch(self.signals), True
        self._end.callback(self._watch.close)
        self._start_folder()
        self._keep_workers(learn)
        self._first = first_fingerprint(learn)
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
        for dl in (learn.dls.train, learn.dls.valid):
            if isinstance(dl, DataLoader) and dl.num_workers:
                put(self._end, dl, 'worker_init_fn', self._end.enter_context(OutlastSignals(dl.worker_init_fn)))

    def _check_exact(self, learn: Any) -> None:
        why = why_not_exact(learn.dls.train)
        if why and learn.first_batch: raise ResumeError(f"the run cannot go on exactly from within an epoch: {why}")
        if why: warnings.warn(f"CheckpointCB: a run stopped within an epoch cannot go on exactly: {why}", stacklevel=2)

    def _check_empty(self) -> None:
        there = sorted(self.folder.glob(_PATTERN))
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
        self._saver.done()  # raises what went wrong beside training
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
        done, best = learn.epoch + 1, bool(self.best) and self._is_best(learn)
        last = done == learn.n_epochs
        if last or best or self._watch.signal or (self.epochs and done % self.epochs == 0):
            self.save(learn, 'done' if last else 'train', done, 0, best)

    def cleanup_epoch(self, learn: Any) -> None:
        "An interrupted validation will be done anew: what is saved is the run as it was when that began."
        if self.active and self._interrupted: self.save(learn, 'valid', learn.epoch, 0, now=self._begun)
        self._interrupted = False

    def _leave_if_asked(self) -> None:
        if not self._watch.signal or self._left: return
        self._left = True
        raise self._watch.leaving()

    def _is_best(self, learn: Any) -> bool:
        name, sign = direction(self.best)
        rows = [r for r in learn.history if r['phase'] == 'eval'] or learn.history
        if rows and name in rows[-1]: return sign*rows[-1][name] >= max(sign*r[name] for r in rows)
        raise ValueError(f"CheckpointCB: there is no figure {name!r} to be best at; there are "
                         f"{sorted(rows[-1]) if rows else 'none: add MetricsCB() to cbs'}")

    def save(self, learn: Any, phase: str, epoch: int, batch: int, best: bool = False, now: dict | None = None) -> None:
        "Save the run as it stands: in `phase` of `epoch`, before its batch number `batch`."
        position = dict(phase=phase, epoch=epoch, batch=batch, n_epochs=learn.n_epochs)
        path = self.folder/f'checkpoint-{epoch:05}-{_PHASES[phase]}-{batch:08}.safetensors'
        with weights_in_place(learn.opt):
            state = dict(position=position, fingerprint=fingerprint(learn) | self._first,
                         begun=self._begun if batch else None, **(run_state(learn) | (now or {})))
            self._saver.save(path, state, background=self.background)
            if best: self._saver.save(self.folder/'best.safetensors', state, background=self.background)
        self._since, self._due = 0, self._next_time()
        self._reserved = self._saved = True
        self._remove_old()

    def _remove_old(self) -> None:
        for old in sorted(self.folder.glob(_PATTERN))[:-self.keep]: old.unlink(missing_ok=True)

    # Where it ends

    def cleanup_fit(self, learn: Any) -> None:
        if not self.active: return
        self.active, self.state = False, None
        with self._end:
            self._saver.wait()
            if self._saved: self._remove_old()
        self._leave_if_asked()


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
    where there is no checkpoint yet. ValueError without a CheckpointCB, ResumeError for fewer epochs than are done."""
    cbs = [cb for cb in learn.cbs if isinstance(cb, CheckpointCB)]
    if len(cbs) != 1:
        raise ValueError(f"fit(…, resume=True) needs one CheckpointCB(folder) in cbs, and there are {len(cbs)}")
    state = cbs[0].open()
    if state is None: return range(n_epochs)
    at = state['position']
    if n_epochs < at['epoch']:
        raise ResumeError(f"the run in {cbs[0].folder} has done {at['epoch']} epochs, and {n_epochs} were asked for")
    begun, now = ((s['random'], s['loaders'][0]) for s in (state['begun'] or state, state))
    learn.rest = lambda dl: FromBatch(dl, at['batch'], begun, now)
    learn.first_batch, learn.trained = at['batch'], at['phase'] == 'valid'
    return range(at['epoch'], n_epochs)
