"""Checkpoints of a run: when to save, and leaving on a signal. Knows a run's state, files and start, not the loop."""
import math
import time
import warnings
from contextlib import ExitStack
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from miniai.callbacks.checks import FiniteLossCB
from miniai.callbacks.dry_run import patch
from miniai.callbacks.lr_finder import LRFinderCB
from miniai.callbacks.metrics import MetricsCB, direction
from miniai.device import is_number
from miniai.events import Callback, CancelEpochException, CancelFitException, is_cancel
from miniai.resume.files import BEST, RunFiles, files_of, lies_between_epochs
from miniai.resume.fingerprint import check_same, fingerprint, first_difference, first_fingerprint, resume_signature
from miniai.resume.signals import OutlastSignals, SignalWatch
from miniai.resume.start import Start, go_on, newest_start, resume_blockers, weights_in_place
from miniai.resume.state import ResumeError, check_savable, loaders_of, run_state, state_now

__all__ = ['CheckpointCB', 'start_of']


class CheckpointCB(Callback):
    """Saves the run to `folder`: after every `batches` training batches, `epochs` epochs or `minutes`, whichever come
    first, and when it ends, be it that a callback cancels the fit; the last `keep` checkpoints stay. With `best`, the
    name of a validation metric, the checkpoint of its best epoch, the first of equals, stays too, as best.safetensors:
    'accuracy' for the highest, '-loss' for the lowest; NaN is never best. What ends by an error is not saved; a batch
    in whose middle the fit is cancelled is left out, as any batch is that is cancelled.

    `learn.fit(n, resume=True)` goes on from the newest whole checkpoint, to the bit, from whatever batch of training or
    validation it was; the newest is the one furthest into the run, by its name. Where a loader cannot be taken up in
    the middle, a warning says so as the fit begins, the last checkpoint between epochs stays besides, and the run goes
    on from that. SIGTERM and SIGINT finish the batch, save, and leave with 143 or 130, in a notebook by
    KeyboardInterrupt; a second one leaves at once. With `background` a checkpoint is written beside training: it holds
    the state as of the request, an old one goes when it is on the disk, and a failure is raised by the next batch or at
    the end. Another run in the same folder is refused. A look, a fit that looks for a rate, or one that only validates,
    saves nothing."""
    order = math.inf
    _run = None  # of the fit under way, where it is one to save

    def __init__(self, folder: str | Path, batches: int | None = None, epochs: int | None = 1,
                 minutes: float | None = None, keep: int = 2, best: str | None = None, background: bool = False,
                 signals: bool = True) -> None:
        for nm, x, kind in (('batches', batches, Integral), ('epochs', epochs, Integral), ('keep', keep, Integral),
                            ('minutes', minutes, Real)):
            if x is None or (isinstance(x, kind) and not isinstance(x, bool) and x > 0): continue
            raise ValueError(f"CheckpointCB: {nm} must be a {'whole ' if kind is Integral else ''}number above 0, got "
                             f"{x!r}")
        if not isinstance(best, str | None):
            raise TypeError(f"CheckpointCB: best must be the name of a metric, such as 'accuracy', got {best!r}")
        self.folder, self.batches, self.epochs, self.minutes = Path(folder), batches, epochs, minutes
        self.keep, self.best, self.background, self.signals = keep, best, background, signals

    # From event to event

    def before_fit(self, learn: Any) -> None:
        if not learn.trains or learn.dry_run or any(isinstance(cb, LRFinderCB) for cb in learn.cbs): return
        self._check_best(learn)
        check_savable(learn)
        self._run = _Run(self, learn)
        self._run.begin(learn)
        self._run.untried = bool(self._run.why) and learn.start.state is None
        if self._run.untried: self.save(learn, 'train', 0, 0)  # for a stop in the first epoch

    def before_epoch(self, learn: Any) -> None:
        if self._run: self._run.begin_pass(learn)

    def cleanup_batch(self, learn: Any) -> None:
        if not self._saves(learn): return
        self._run.files.look()
        if isinstance(learn.ended_by, CancelEpochException): return  # where the run stands is known when that has ended
        self._run.count_batch(learn)
        cancelled, asked = isinstance(learn.ended_by, CancelFitException), self._run.watch.signal
        if cancelled or asked or self._is_due(learn): self.save(learn, _pass(learn), learn.epoch, learn.iter + 1)
        self._run.cancelled = cancelled
        if asked: self._run.watch.leave()

    def cleanup_epoch(self, learn: Any) -> None:
        if not self._saves(learn) or self._run.cancelled: return
        cancelled, asked = isinstance(learn.ended_by, CancelFitException), self._run.watch.signal
        if cancelled and not learn.pass_done: self._save_amid(learn)
        elif not learn.training or not learn.validates: self._save_epoch(learn, cancelled or asked)
        elif cancelled or asked: self.save(learn, 'valid', learn.epoch, 0)
        self._run.begun = None
        if asked: self._run.watch.leave()

    def cleanup_fit(self, learn: Any) -> None:
        run, self._run = self._run, None
        if run: run.end(failed=not (learn.ended_by is None or is_cancel(learn.ended_by)))

    def _saves(self, learn: Any) -> bool:
        return self._run is not None and (learn.ended_by is None or is_cancel(learn.ended_by))

    # When to save

    def _is_due(self, learn: Any) -> bool:
        batches = learn.training and self.batches and self._run.batches >= self.batches
        return bool(batches) or time.monotonic() >= self._run.due

    def _save_amid(self, learn: Any) -> None:
        "The fit is cancelled between two batches, or as a pass began, whose place may be saved already."
        batch = 0 if learn.iter is None else learn.iter + 1
        if self._run.begun or not self._run.files.has(_pass(learn), learn.epoch, batch):
            self.save(learn, _pass(learn), learn.epoch, batch)

    def _save_epoch(self, learn: Any, ends: bool) -> None:
        done, figures = learn.epoch + 1, self._figures(learn)
        last, best = done == learn.n_epochs, _is_best(figures)
        unknown = bool(self.best) and not figures and not learn.ended_by
        due = (self.epochs and done % self.epochs == 0) or self._run.why or self._is_due(learn)
        if last or ends or best or due or unknown:
            self.save(learn, 'done' if last else 'train', done, 0, best)
        if unknown: raise self._no_figure(list(learn.history[-1]) if learn.history else [])

    def _figures(self, learn: Any) -> list:
        "What to be best at, of every epoch so far, the higher the better; none where this epoch has no such figure."
        if not self.best: return []
        name, sign = direction(self.best)
        rows = [r for r in learn.history if r['phase'] == 'eval'] or learn.history
        known = rows and is_number(rows[-1].get(name)) and rows[-1]['epoch'] == learn.epoch
        return [sign*r[name] for r in rows if is_number(r.get(name))] if known else []

    def save(self, learn: Any, phase: str, epoch: int, batch: int, best: bool = False) -> None:
        """Save the run as it stands: in `phase` of `epoch`, before its batch number `batch`. NonFiniteLossError where a
        loss that nobody has looked at yet is not finite: such weights take no good checkpoint's place."""
        for cb in learn.cbs:
            if isinstance(cb, FiniteLossCB): cb.read(learn)
        position = dict(phase=phase, epoch=epoch, batch=batch, n_epochs=learn.n_epochs)
        self._run.save(learn, position, best)

    # What must be as a fit begins

    def _check_best(self, learn: Any) -> None:
        "ValueError for a figure that nobody gives, where all who could are the library's own."
        known = [nm for cb in learn.cbs if isinstance(cb, MetricsCB) for nm in ('seconds', *cb.all_metrics)]
        others = [cb for cb in learn.cbs if not _is_ours(getattr(cb, 'after_epoch', None))]
        if self.best and known and not others and direction(self.best)[0] not in known: raise self._no_figure(known)

    def _no_figure(self, there: list[str]) -> ValueError:
        return ValueError(f"CheckpointCB: there is no figure {direction(self.best)[0]!r} to be best at; there are "
                          f"{sorted(set(there)) or 'none: add MetricsCB() to cbs'}")


def _pass(learn: Any) -> str: return 'train' if learn.training else 'valid'


def _is_best(figures: list) -> bool:
    "Is the last better than all before? NaN never is, and is worse than all others."
    return bool(figures) and figures[-1] > max((x for x in figures[:-1] if x == x), default=-math.inf)


def _is_ours(method: Any) -> bool:
    return method is None or (getattr(method, '__module__', None) or '').startswith('miniai.')


class _Run:
    """One fit that is saved: its files, its signals, and what its checkpoints hold beside its state. `begun` is what
    was random as the pass under way began, None between passes; `batches` counts those of training since the last save,
    and `due` is the time of the next. One that is `untried` has a checkpoint, and no batch done yet."""
    def __init__(self, cb: CheckpointCB, learn: Any) -> None:
        self.cb, self.begun, self.cancelled, self.untried = cb, None, False, False
        self._reserved, self._end = not cb.background, ExitStack()
        self.why = resume_blockers(learn) if learn.start.why is None else learn.start.why
        self.watch = SignalWatch(cb.signals)
        self._end.callback(self.watch.close)
        try: self.files = RunFiles(cb.folder, cb.keep, bool(self.why), cb.background)
        except BaseException:
            self._end.close()
            raise
        self._start_counting()

    def begin(self, learn: Any) -> None:
        "Go on from where the fit starts, or begin in a folder that must have no other run in it."
        self._keep_workers(learn)
        self._first, start, now = first_fingerprint(learn, bool(self.why)), learn.start, run_state(learn)
        self._signature = resume_signature(now)
        self._check_files(start)
        for w in self.why.values(): warnings.warn(f"CheckpointCB: {w}. The last checkpoint between epochs stays "
                                                  f"besides, and is then gone on from", stacklevel=4)
        if start.state is None: return
        check_same(learn, start.state, now, self._first)
        go_on(learn, start.state)
        self.files.start_from(start.state['position'])

    def _check_files(self, start: Start) -> None:
        there = files_of(self.files.folder)
        if start.state is None and there: raise ResumeError(
            f"{self.files.folder} holds {len(there)} checkpoint(s) of an earlier run, such as {there[-1].name}: go on "
            f"from it with fit(…, resume=True), or save elsewhere")
        if start.state is None and self.cb.best and self.files.has_best(): raise ResumeError(
            f"{self.files.folder} holds {BEST} of an earlier run, and nothing to go on from: move it away, or save "
            f"elsewhere")
        if start.state and list(start.seen) != there: raise ResumeError(
            f"another run has saved to {self.files.folder} since its checkpoints were read: call fit again")

    def _keep_workers(self, learn: Any) -> None:
        "Let the loaders' workers outlast a signal that comes to them too."
        if not self.watch.old: return
        for dl in loaders_of(learn):
            if isinstance(dl, DataLoader) and dl.num_workers:
                patch(self._end, dl, 'worker_init_fn', self._end.enter_context(OutlastSignals(dl.worker_init_fn)))

    def begin_pass(self, learn: Any) -> None:
        "Note what is random now; in a pass that is taken up, put back what callbacks have just begun anew."
        start = learn.start
        if learn.first_batch: self._take_up(learn)
        self.begun = start.state['begun'] if learn.first_batch else state_now(learn)
        start.state = None

    def _take_up(self, learn: Any) -> None:
        if learn.start.left is not None and not learn.start.left.taken: return go_on(learn, learn.start.state)
        raise self._another_loader()

    def _another_loader(self) -> ResumeError:
        return ResumeError(
            f"the run cannot go on from within a pass: a callback, or the Learner's own one_epoch, has put another "
            f"loader in the place of learn.dl, and nobody knows its order. Move the checkpoints away that are not "
            f"between epochs: {[p.name for p in files_of(self.files.folder) if not lies_between_epochs(p)]}")

    def count_batch(self, learn: Any) -> None:
        "After the first one the optimizer has its state, and memory for saves is taken before one is due."
        if learn.first_batch and not learn.start.left.taken: raise self._another_loader()
        self.batches += learn.training
        self.untried = False
        if not self._reserved: self.files.reserve(run_state(learn))
        self._reserved = True

    def save(self, learn: Any, position: dict[str, Any], best: bool) -> None:
        "Save the run as it stands, at `position`."
        with weights_in_place(learn.opt):
            state = run_state(learn)
            self._look_for_change(state)
            self.files.save(dict(position=position, fingerprint=fingerprint(learn, state) | self._first,
                                 begun=self.begun if position['batch'] else None, **state), best)
        self._reserved = True
        self._start_counting()

    def _look_for_change(self, state: dict[str, Any]) -> None:
        before, self._signature = self._signature, resume_signature(state)
        change = first_difference(before, self._signature)
        if change: warnings.warn(f"CheckpointCB: what is saved from now on cannot be gone on with, as {change}: see "
                                 f"to that before the fit", stacklevel=6)

    def _start_counting(self) -> None:
        self.batches, self.due = 0, time.monotonic() + 60*(self.cb.minutes or math.inf)

    def end(self, failed: bool) -> None:
        """Wait for what is being written, unless a second signal came; then leave, where one has come. A run that
        failed before its first batch was done leaves no checkpoint."""
        with self._end:
            if failed and self.untried and not self.watch.hastens: self.files.remove_all()
            self.files.close(in_haste=self.watch.hastens)
        self.watch.leave()


def start_of(learn: Any, n_epochs: int) -> Start:
    """Where `learn`, called to go on, starts: from the newest checkpoint of its CheckpointCB that can be gone on from;
    at the very start where there is none yet. ValueError without a CheckpointCB or for a fit that does not train,
    ResumeError for fewer epochs than are done or begun."""
    if not learn.trains: raise ValueError("fit(…, resume=True) goes on training, and was called with train=False")
    if any(isinstance(cb, LRFinderCB) for cb in learn.cbs):
        raise ValueError("fit(…, resume=True) goes on training, and LRFinderCB in cbs looks for a rate instead")
    cbs = [cb for cb in learn.cbs if isinstance(cb, CheckpointCB)]
    if len(cbs) != 1:
        raise ValueError(f"fit(…, resume=True) needs one CheckpointCB(folder) in cbs, and there are {len(cbs)}")
    start = newest_start(cbs[0].folder, learn)
    amid = bool(start.batch or start.trained)
    if n_epochs >= start.epoch + amid: return start
    raise ResumeError(f"the run in {cbs[0].folder} has done {start.epoch} epochs{' and part of one' if amid else ''}, "
                      f"and {n_epochs} were asked for")
