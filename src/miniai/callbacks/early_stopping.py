"Stopping when it no longer gets better. Knows the figures of epochs, not the loop."
from typing import Any

from miniai.callbacks.metrics import direction
from miniai.events import Callback, CancelFitException

__all__ = ['EarlyStoppingCB']


class EarlyStoppingCB(Callback):
    """Ends a fit when `metric`, a figure of validation, has not got better by more than `min_delta` for `patience`
    epochs: 'accuracy' gets better upwards, '-loss' downwards. NaN is never better. `best` and `best_epoch` say what was
    reached. The fit ends when every callback has heard `after_epoch`."""
    order, _over = 100, False
    def __init__(self, metric: str = '-loss', patience: int = 3, min_delta: float = 0.) -> None:
        if patience < 1: raise ValueError(f"EarlyStoppingCB: patience must be 1 epoch or more, got {patience}")
        if min_delta < 0: raise ValueError(f"EarlyStoppingCB: min_delta must be 0 or more, got {min_delta}")
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.best, self.best_epoch = None, None

    def before_fit(self, learn: Any) -> None:
        if learn.trains and not learn.validates and not learn.dry_run:
            raise ValueError("EarlyStoppingCB follows a figure of validation, and this fit has valid=False")
        self.best, self.best_epoch, self._over = None, None, False

    def before_epoch(self, learn: Any) -> None:
        "A run that had ended so, and is gone on with, ends again."
        row = learn.history[-1] if learn.history else {}
        judged = learn.training and row.get('phase') == 'eval' and self.best_epoch is not None
        if judged and self._is_over(row['epoch']): raise CancelFitException()

    def after_epoch(self, learn: Any) -> None:
        if learn.training: return
        name, sign = direction(self.metric)
        row = learn.history[-1] if learn.history else {}
        if name not in row:
            raise ValueError(f"EarlyStoppingCB: validation has no figure {name!r}; it has {sorted(row)}: add "
                             f"MetricsCB({name}=…) to cbs")
        better = row[name] == row[name] and (self.best is None or sign*(row[name] - self.best) > self.min_delta)
        if better: self.best, self.best_epoch = row[name], learn.epoch
        self._over = self._is_over(learn.epoch)

    def _is_over(self, epoch: int) -> bool: return epoch - (self.best_epoch or 0) >= self.patience

    def cleanup_epoch(self, learn: Any) -> None:
        if self._over: raise CancelFitException()

    def state_dict(self) -> dict[str, Any]:
        "What was best so far."
        return dict(best=self.best, best_epoch=self.best_epoch)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave."
        self.best, self.best_epoch = state['best'], state['best_epoch']
