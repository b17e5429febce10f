"Progress of a fit: a bar for the batches, a table row for every epoch and phase, and a live curve of the loss."
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from miniai.callbacks.time_left import TimeLeft
from miniai.callbacks.wrapped import WrappedLoader
from miniai.data.loaders import length_of
from miniai.device import DeferredScalars, is_number, to_scalar
from miniai.events import Callback
from miniai.metrics.metrics import MetricsCB
from miniai.optim.groups import rate_of
from miniai.show.displays import best_display

__all__ = ['ProgressCB', 'EpochsBar']


class EpochsBar:
    "The epochs of a fit, and the display that shows them. Subclasses of ProgressCB reach it as `self.mbar`."
    def __init__(self, epochs: Iterable[int]) -> None:
        self.epochs, self.display, self.header = epochs, best_display(), None

    def __iter__(self) -> Iterator[int]: return iter(self.epochs)
    def __len__(self) -> int: return len(self.epochs)

    def write(self, line: str | Sequence, table: bool = False) -> None:
        "Show a line that stays. With `table` it is a list of cells, and the first such list is the header."
        if not table: self.display.text(str(line))
        elif self.header is None: self.header = [str(c) for c in line]
        else: self.display.row(dict(zip(self.header, map(str, line), strict=True)))

    def update_graph(self, graphs: Sequence[tuple[Sequence[float], Sequence[float]]],
                     labels: Sequence[str] | None = None) -> None:
        "Draw `graphs`, pairs of xs and ys, if the display can."
        self.display.curves(graphs, labels or [f'{i}' for i in range(len(graphs))])


class ProgressCB(Callback):
    """A bar for the batches, with the time left of pass and fit, and a table row for every epoch and phase, in a
    terminal and in a notebook, where `plot` adds a live curve of the loss; a wide terminal shows a small one anyway.
    Elsewhere one plain line per row. `losses` holds every training batch's loss,
    `val_losses` every validation's. The text beside the bar is `learn.dl.comment`, a string or a function, by default
    the loss, and the rate of an optimizer that finds it, as Prodigy does. Rows come from MetricsCB; without one they
    show the loss."""
    order, only_shows = MetricsCB.order + 1, True
    def __init__(self, plot: bool = False) -> None:
        self.plot, self.mbar, self._own_metrics, self._epoch_done = plot, None, None, False
        self._losses, self.val_losses = DeferredScalars(), []

    @property
    def losses(self) -> list[float]:
        "The loss of each training batch so far."
        return self._losses.values

    @losses.setter
    def losses(self, values: list[float]) -> None: self._losses = DeferredScalars(values)

    def before_fit(self, learn: Any) -> None:
        learn.epochs = self.mbar = EpochsBar(learn.epochs)
        learn.display = self.mbar.display
        self._losses, self.val_losses, self._val_batches, self._next_curve = DeferredScalars(), [], [], 0.
        self._time = TimeLeft()
        self._own_metrics = None if any(isinstance(cb, MetricsCB) for cb in learn.cbs) else MetricsCB()
        if self._own_metrics and getattr(learn, 'metrics', None) is None: self._own_metrics.before_fit(learn)

    def before_epoch(self, learn: Any) -> None:
        if self._own_metrics: self._own_metrics.before_epoch(learn)
        learn.dl = WrappedLoader(learn.dl)
        self._label = f"epoch {learn.epoch + 1}/{learn.n_epochs} {'train' if learn.model.training else 'valid'}"
        self._first, self._total = learn.dl.first_batch, length_of(learn.dl)
        self._time.begin_pass(learn.model.training, self._first, self._total)
        self.mbar.display.time_left = None  # the one shown belongs to another pass
        self._show_bar(self._first, '')

    def before_batch(self, learn: Any) -> None:
        if learn.iter != self._first and time.perf_counter() >= self._next_bar: self._move_bar(learn)

    def _move_bar(self, learn: Any) -> None:
        loss = f'{to_scalar(learn.loss):.3f}' if is_number(learn.loss) else ''
        group = next(iter(getattr(learn.opt, 'param_groups', ())), {})
        if loss and learn.model.training and 'd' in group: loss += f'  lr {rate_of(group):.2g}'
        comment = getattr(learn.dl, 'comment', loss)
        display = self.mbar.display
        display.time_left = None if getattr(learn, 'dry_run', False) else self._time.seconds(learn, learn.iter)
        if learn.model.training and display.shows_losses(): display.losses = self.losses
        self._show_bar(learn.iter, comment() if callable(comment) else str(comment))

    def _show_bar(self, done: int, comment: str) -> None:
        self.mbar.display.bar(self._label, done, self._total, comment)
        self._next_bar = time.perf_counter() + self.mbar.display.seconds_between_updates

    def after_batch(self, learn: Any) -> None:
        if self._own_metrics: self._own_metrics.after_batch(learn)
        if not learn.model.training: return
        if is_number(learn.loss): self._losses.append(learn.loss)
        if self.plot and time.perf_counter() >= self._next_curve: self._draw_curves()

    def after_epoch(self, learn: Any) -> None:
        if self._own_metrics: self._own_metrics.after_epoch(learn)
        self._epoch_done = True
        self._time.end_pass()
        if not learn.model.training:
            self.val_losses.append(float(self._all_metrics(learn)[0].loss.compute()))
            self._val_batches.append(len(self._losses))
        if self.plot: self._draw_curves()

    def _all_metrics(self, learn: Any) -> list[MetricsCB]:
        return [cb for cb in learn.cbs if isinstance(cb, MetricsCB)] or [self._own_metrics]

    def cleanup_epoch(self, learn: Any) -> None:
        if not self.mbar: return
        if self._epoch_done and not getattr(learn, 'dry_run', False):  # here, as a MetricsCB may have a later order
            row = {k: v for metrics in self._all_metrics(learn) for k, v in metrics.row.items()}
            self._log(row | dict(seconds=row.pop('seconds', '')))  # as the last column
        self._epoch_done = False
        self.mbar.display.end_bar()

    def _log(self, d: dict[str, str]) -> None:
        self.mbar.display.end_bar()
        self.mbar.display.row(d)

    def _draw_curves(self) -> None:
        "Draw the curves so far. Wait a second, or 20 times the drawing time if that is longer, before the next time."
        started = time.perf_counter()
        curves = [(range(len(self.losses)), self.losses), (self._val_batches, self.val_losses)]
        drawn = [(c, nm) for c, nm in zip(curves, ('train', 'valid'), strict=True) if len(c[1])]
        if self.losses: self.mbar.update_graph(*zip(*drawn, strict=True))
        now = time.perf_counter()
        self._next_curve = now + max(1., 20*(now - started))

    def cleanup_fit(self, learn: Any) -> None:
        if self.mbar: self.mbar.display.close()
        learn.display = None

    def state_dict(self) -> dict[str, Any]:
        "The losses so far."
        own = self._own_metrics.loss.state_dict() if self._own_metrics else None
        return dict(losses=self.losses, val_losses=self.val_losses, val_batches=self._val_batches, metrics=own)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned."
        self.losses, self.val_losses, self._val_batches = state['losses'], state['val_losses'], state['val_batches']
        if self._own_metrics and state['metrics']: self._own_metrics.loss.load_state_dict(state['metrics'])
