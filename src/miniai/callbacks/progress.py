"""Progress of a fit: a bar for the batches, a row for every epoch and phase, and a live curve.
Knows faces, not what draws them."""
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from miniai.callbacks.metrics import MetricsCB
from miniai.data.loaders import length_of
from miniai.device import DeferredScalars, is_number, to_scalar
from miniai.events import Callback
from miniai.show.displays import best_display

__all__ = ['ProgressCB', 'ProgressBar', 'EpochsBar']


class EpochsBar:
    "The epochs of a fit, and the face that shows them. Subclasses of ProgressCB reach it as `self.mbar`."
    def __init__(self, epochs: Iterable[int]) -> None:
        self.epochs, self.face, self.header = epochs, best_display(), None

    def __iter__(self) -> Iterator[int]: return iter(self.epochs)
    def __len__(self) -> int: return len(self.epochs)

    def write(self, line: str | Sequence, table: bool = False) -> None:
        "Show a line that stays; with `table`, a list of cells, the first such list being the header."
        if not table: self.face.text(str(line))
        elif self.header is None: self.header = [str(c) for c in line]
        else: self.face.row(dict(zip(self.header, map(str, line), strict=True)))

    def update_graph(self, graphs: Sequence[tuple[Sequence[float], Sequence[float]]],
                     labels: Sequence[str] | None = None) -> None:
        "Draw `graphs`, pairs of xs and ys, where the face can."
        self.face.curves(graphs, labels or [f'{i}' for i in range(len(graphs))])


class ProgressBar:
    """A loader whose batches move a bar. `comment`, a string or a function that gives one,
    is read when the bar is drawn."""
    def __init__(self, dl: Iterable, label: str, face: Any) -> None:
        self.dl, self.label, self.face, self.comment = dl, label, face, ''

    def __len__(self) -> int: return len(self.dl)

    def __iter__(self) -> Iterator:
        pause = self.face.seconds_between_updates
        self.face.bar(self.label, 0, length_of(self.dl), '')
        due = time.perf_counter() + pause
        for done, batch in enumerate(self.dl, 1 + getattr(self.dl, 'first_batch', 0)):
            yield batch
            if time.perf_counter() < due: continue
            comment = self.comment() if callable(self.comment) else str(self.comment)
            self.face.bar(self.label, done, length_of(self.dl), comment)
            due = time.perf_counter() + pause


class ProgressCB(Callback):
    """A bar for the batches and a table row for every epoch and phase: in a terminal and in a notebook, where `plot`
    adds a live curve of the loss; elsewhere one plain line a row. `losses` holds every training batch's loss,
    `val_losses` every validation's. Rows come from the Learner's metrics; where it has none, from the loss alone."""
    order = MetricsCB.order + 1
    _restore: Sequence[Callable[[], Any]] = ()
    def __init__(self, plot: bool = False) -> None:
        self.plot, self.mbar = plot, None
        self._losses, self.val_losses = DeferredScalars(), []

    @property
    def losses(self) -> list[float]:
        "The loss of each training batch so far."
        return self._losses.values

    @losses.setter
    def losses(self, values: list[float]) -> None: self._losses = DeferredScalars(values)

    def before_fit(self, learn: Any) -> None:
        learn.epochs = self.mbar = EpochsBar(learn.epochs)
        self._losses, self.val_losses, self._val_batches, self._due, self._restore = DeferredScalars(), [], [], 0., []
        for metrics in _all_metrics(learn) or [self._added_metrics(learn)]: self._take_rows(metrics)

    def _added_metrics(self, learn: Any) -> MetricsCB:
        "Count the loss alone, with a MetricsCB of our own for the length of this fit."
        own = MetricsCB()
        own.before_fit(learn)
        learn.cbs.append(own)
        self._restore.append(lambda: learn.cbs.remove(own))
        return own

    def _take_rows(self, metrics: Any) -> None:
        "Let the metrics log to our table, and still to a `_log` that a user of MetricsCB wrote."
        previous = vars(metrics).get('_log')
        own = getattr(previous, 'own', previous)
        metrics._log = _rows_to(*_users_log(metrics), self._log)
        metrics._log.own = own
        self._restore.append(lambda: setattr(metrics, '_log', own) if own else vars(metrics).pop('_log', None))

    def _log(self, d: dict[str, str]) -> None:
        self.mbar.face.end_bar()
        self.mbar.face.row({k: str(v) for k, v in d.items()})

    def before_epoch(self, learn: Any) -> None:
        phase = 'train' if learn.training else 'eval'
        self.bar = learn.dl = ProgressBar(learn.dl, f'epoch {learn.epoch + 1}/{learn.n_epochs} {phase}', self.mbar.face)
        self.bar.comment = lambda: f'{to_scalar(learn.loss):.3f}' if is_number(learn.loss) else ''

    def after_batch(self, learn: Any) -> None:
        if not learn.training: return
        if is_number(learn.loss): self._losses.append(learn.loss)
        if self.plot and time.perf_counter() >= self._due: self._draw()

    def after_epoch(self, learn: Any) -> None:
        if not learn.training and 'loss' in getattr(learn.metrics, 'all_metrics', ()):
            self.val_losses.append(float(learn.metrics.all_metrics['loss'].compute()))
            self._val_batches.append(len(self._losses))
        if self.plot: self._draw()

    def state_dict(self) -> dict[str, Any]:
        "The losses so far."
        return dict(losses=self.losses, val_losses=self.val_losses, val_batches=self._val_batches)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave."
        self.losses, self.val_losses, self._val_batches = state['losses'], state['val_losses'], state['val_batches']

    def _draw(self) -> None:
        "Draw the curves so far; the next time comes after at least a second, and twenty times what this one took."
        started = time.perf_counter()
        curves = [(range(len(self.losses)), self.losses), (self._val_batches, self.val_losses)]
        drawn = [(c, nm) for c, nm in zip(curves, ('train', 'eval'), strict=True) if len(c[1])]
        if self.losses: self.mbar.update_graph(*zip(*drawn, strict=True))
        now = time.perf_counter()
        self._due = now + max(1., 20*(now - started))

    def cleanup_epoch(self, learn: Any) -> None:
        if self.mbar: self.mbar.face.end_bar()

    def cleanup_fit(self, learn: Any) -> None:
        for restore in self._restore[::-1]: restore()
        self._restore = []
        if self.mbar: self.mbar.face.close()


def _all_metrics(learn: Any) -> list:
    "Every MetricsCB; else what another callback has put into `learn.metrics`."
    ours = [cb for cb in learn.cbs if isinstance(cb, MetricsCB)]
    return ours or [m for m in [getattr(learn, 'metrics', None)] if m is not None]


def _users_log(metrics: Any) -> list[Callable]:
    stock = not isinstance(metrics, MetricsCB) or getattr(metrics._log, '__func__', None) is MetricsCB._log
    return [] if stock else [metrics._log]


def _rows_to(*logs: Callable) -> Callable:
    def log(d: dict[str, str]) -> None:
        for f in logs: f(d)
    return log
