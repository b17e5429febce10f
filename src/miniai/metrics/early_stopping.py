"Stopping a fit early, when a metric no longer improves."
from typing import Any

from miniai.events import CancelFitException
from miniai.metrics.best import BestCB
from miniai.metrics.direction import is_watched, last_row

__all__ = ['EarlyStoppingCB']


class EarlyStoppingCB(BestCB):
    """Ends a fit when `metric` has not improved by more than `min_delta` for `patience` epochs. It is a validation
    metric: 'accuracy' should rise, '-loss' should fall. NaN is never an improvement. `best` and `best_epoch` are the
    best value and its epoch; with `restore` the model gets the weights of that epoch (see BestCB). The fit ends after
    every callback's `after_epoch`."""
    _over = False
    def __init__(self, metric: str = '-loss', patience: int = 3, min_delta: float = 0., restore: bool = False) -> None:
        if patience < 1: raise ValueError(f"EarlyStoppingCB: patience must be at least 1 epoch, got {patience}")
        super().__init__(metric, restore, min_delta)
        self.patience = patience

    def before_fit(self, learn: Any) -> None:
        super().before_fit(learn)
        self._over = False

    def before_epoch(self, learn: Any) -> None:
        "If a resumed run had already stopped early, stop it again."
        row = last_row(learn)
        if not learn.model.training or row.get('phase') != 'eval' or self.best_epoch is None: return
        if self._is_over(row['epoch']): raise CancelFitException()

    def after_epoch(self, learn: Any) -> None:
        super().after_epoch(learn)
        if not learn.model.training and is_watched(learn): self._over = self._is_over(learn.epoch)

    def _is_over(self, epoch: int) -> bool: return epoch - (self.best_epoch or 0) >= self.patience

    def cleanup_epoch(self, learn: Any) -> None:
        if self._over: raise CancelFitException()
