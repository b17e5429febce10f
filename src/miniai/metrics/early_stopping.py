"Stopping a fit early, when a metric no longer improves."
from typing import Any

from miniai.events import Callback, CancelFitException
from miniai.metrics.direction import check_metric, direction, improves, is_watched, last_row, no_metric

__all__ = ['EarlyStoppingCB']


class EarlyStoppingCB(Callback):
    """Ends a fit when `metric` has not improved by more than `min_delta` for `patience` epochs. It is a validation
    metric: 'accuracy' should rise, '-loss' should fall. NaN is never an improvement. `best` and `best_epoch` are the
    best value and its epoch. The fit ends after every callback's `after_epoch`."""
    order, _over = 100, False
    def __init__(self, metric: str = '-loss', patience: int = 3, min_delta: float = 0.) -> None:
        if patience < 1: raise ValueError(f"EarlyStoppingCB: patience must be at least 1 epoch, got {patience}")
        if min_delta < 0: raise ValueError(f"EarlyStoppingCB: min_delta must be at least 0, got {min_delta}")
        direction(metric)
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.best, self.best_epoch = None, None

    def before_fit(self, learn: Any) -> None:
        self.best, self.best_epoch, self._over = None, None, False
        if is_watched(learn): check_metric(learn, self.metric, 'EarlyStoppingCB')

    def before_epoch(self, learn: Any) -> None:
        "If a resumed run had already stopped early, stop it again."
        row = last_row(learn)
        if not learn.model.training or row.get('phase') != 'eval' or self.best_epoch is None: return
        if self._is_over(row['epoch']): raise CancelFitException()

    def after_epoch(self, learn: Any) -> None:
        if learn.model.training or not is_watched(learn): return
        name, sign = direction(self.metric)
        row = last_row(learn)
        if name not in row: raise no_metric(self.metric, 'EarlyStoppingCB', list(row))
        value = row[name]
        if improves(value, self.best, sign, self.min_delta):
            self.best, self.best_epoch = value, learn.epoch
        self._over = self._is_over(learn.epoch)

    def _is_over(self, epoch: int) -> bool: return epoch - (self.best_epoch or 0) >= self.patience

    def cleanup_epoch(self, learn: Any) -> None:
        if self._over: raise CancelFitException()

    def state_dict(self) -> dict[str, Any]:
        "The best value so far and its epoch."
        return dict(best=self.best, best_epoch=self.best_epoch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned."
        self.best, self.best_epoch = state['best'], state['best_epoch']
