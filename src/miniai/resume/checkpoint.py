"CheckpointCB: the callback that decides when a run is saved, and when it exits on a signal."
import math
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from miniai.callbacks.train import FiniteLossCB
from miniai.device import is_number
from miniai.distributed.ranks import from_first, is_first, most
from miniai.events import Callback, CancelEpochException, CancelFitException, is_cancel
from miniai.metrics.direction import check_metric, direction, improves, last_row, no_metric
from miniai.resume.objects import check_savable
from miniai.resume.saved_run import SavedRun

__all__ = ['CheckpointCB']


class CheckpointCB(Callback):
    """Saves the run to `folder` after every `batches` training batches, `epochs` epochs or `minutes`, whichever comes
    first, and when the fit ends or is cancelled; not after an error. The last `keep` checkpoints are kept. With `best`,
    the name of a validation metric ('accuracy' for the highest, '-loss' for the lowest), the best epoch is kept too, as
    best.safetensors. `background` writes while training continues; the next batch or the end raises a failure.

    `learn.fit(n, resume=True)` continues from the newest valid checkpoint, bit for bit, from any batch of training or
    validation. On SIGTERM, SIGINT or SIGHUP the run finishes its batch, saves, and exits with 143, 130 or 129
    (KeyboardInterrupt in a notebook); a second signal exits at once. Dry runs and fits that only validate save nothing.
    See docs/checkpoints.md."""
    order = math.inf
    can_resume = only_shows = True
    _run = None  # the current fit, if it is to be saved

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

    # Event by event

    def before_fit(self, learn: Any) -> None:
        if not hasattr(learn, 'resume'):
            raise TypeError(f"CheckpointCB needs a Learner of miniai, got a {type(learn).__name__}")
        if learn.dry_run and learn.resume: raise ValueError("fit(…, resume=True) continues training, but this fit is a "
                                                            "dry run, such as a search for a learning rate")
        if not learn.trains or learn.dry_run: return
        if self.best: check_metric(learn, self.best, 'CheckpointCB')
        check_savable(learn)
        self._run = SavedRun(self, learn)
        self._run.begin(learn)

    def before_epoch(self, learn: Any) -> None:
        if self._run: self._run.begin_pass(learn)

    def cleanup_batch(self, learn: Any) -> None:
        if not self._saves(learn): return
        self._run.files.check_background()
        if isinstance(learn.ended_by, CancelEpochException): return  # cleanup_epoch knows where the run stands
        self._run.count_batch(learn)
        cancelled, (signalled, time_due) = isinstance(learn.ended_by, CancelFitException), self._run.decided()
        if cancelled or signalled or time_due or self._batches_due(learn):
            self.save(learn, _phase(learn), learn.epoch, learn.iter + 1)
        self._run.cancelled = cancelled
        if signalled: self._run.watch.leave(signalled)

    def cleanup_epoch(self, learn: Any) -> None:
        run = self._run
        if not self._saves(learn) or run.cancelled or run.skipping(learn): return
        cancelled, (signalled, time_due) = isinstance(learn.ended_by, CancelFitException), map(int, most(run.asks()))
        if cancelled and not run.pass_done:
            batch = run.first_batch if learn.iter is None else learn.iter + 1  # which may be saved already
            if run.in_pass or not from_first(is_first() and run.files.has(_phase(learn), learn.epoch, batch)):
                self.save(learn, _phase(learn), learn.epoch, batch)
        elif not learn.training or not learn.validates: self._save_epoch(learn, cancelled or signalled, time_due)
        elif cancelled or signalled: self.save(learn, 'valid', learn.epoch, 0)
        run.in_pass, run.pass_done = False, False
        if signalled: run.watch.leave(signalled)

    def cleanup_fit(self, learn: Any) -> None:
        run, self._run = self._run, None
        if run: run.end()

    # When to save

    def asks(self) -> list[float]:
        "What all processes decide together after each batch: see TogetherCB."
        return self._run.asks() if self._run else [0., 0.]

    def answer(self, numbers: list[float]) -> None:
        if self._run: self._run.answer = numbers

    def _saves(self, learn: Any) -> bool:
        return self._run is not None and (learn.ended_by is None or is_cancel(learn.ended_by))

    def _batches_due(self, learn: Any) -> bool:
        return bool(learn.training and self.batches and self._run.batches >= self.batches)

    def _save_epoch(self, learn: Any, ends: bool, time_due: bool) -> None:
        done, values, top, best = learn.epoch + 1, self._values_of_best(learn), None, False
        for x in values:
            best = improves(x, top, 1)
            if best: top = x
        last = done == learn.n_epochs
        unknown = bool(self.best) and not values and not learn.ended_by
        due = (self.epochs and done % self.epochs == 0) or time_due or self._batches_due(learn)
        if last or ends or best or due or unknown: self.save(learn, 'done' if last else 'train', done, 0, best)
        if unknown: raise no_metric(self.best, 'CheckpointCB', list(last_row(learn)))

    def _values_of_best(self, learn: Any) -> list:
        "The values of the metric `best` so far, signed so that larger is better; empty if this epoch has none."
        if not self.best: return []
        name, sign = direction(self.best)
        rows = [r for r in learn.history if r['phase'] == 'eval'] or learn.history
        known = rows and is_number(rows[-1].get(name)) and rows[-1]['epoch'] == learn.epoch
        return [sign*r[name] for r in rows if is_number(r.get(name))] if known else []

    def save(self, learn: Any, phase: str, epoch: int, batch: int, best: bool = False) -> None:
        """Save the run as it stands, in `phase` of `epoch`, before batch `batch`. NonFiniteLossError if a loss that was
        not checked yet is not finite, so that no good checkpoint is replaced by bad weights."""
        for cb in learn.cbs:
            if isinstance(cb, FiniteLossCB): cb.read(learn)
        self._run.save(learn, dict(phase=phase, epoch=epoch, batch=batch, n_epochs=learn.n_epochs), best)


def _phase(learn: Any) -> str: return 'train' if learn.training else 'valid'
