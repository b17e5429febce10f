"The best model of a fit: its weights are kept in memory and put back when the fit ends."
from typing import Any

from miniai.device import is_number, map_tensors
from miniai.distributed.wrap import unwrapped
from miniai.events import Callback, is_cancel, run_cbs
from miniai.metrics.direction import check_metric, direction, improves, is_watched, last_row, no_metric

__all__ = ['BestCB']


class BestCB(Callback):
    """Keeps the weights and buffers of the epoch with the best validation `metric` ('accuracy' should rise, '-loss'
    should fall), and puts them into the model when a fit ends, unless by an error. With AverageCB they are the averages
    that were validated. `best` and `best_epoch` say what was best. Only a change above `min_delta` is an improvement,
    and NaN never is. With `restore=False` it only watches."""
    order = 100
    def __init__(self, metric: str = '-loss', restore: bool = True, min_delta: float = 0.) -> None:
        if min_delta < 0: raise ValueError(f"{type(self).__name__}: min_delta must be at least 0, got {min_delta}")
        direction(metric)
        self.metric, self.restore, self.min_delta = metric, restore, min_delta
        self.best, self.best_epoch, self._weights = None, None, None

    def before_fit(self, learn: Any) -> None:
        if not is_watched(learn): return
        self.best, self.best_epoch, self._weights = None, None, None
        check_metric(learn, self.metric, type(self).__name__)

    def after_epoch(self, learn: Any) -> None:
        if learn.model.training or not is_watched(learn): return
        name, sign = direction(self.metric)
        row = last_row(learn)
        if name not in row: raise no_metric(self.metric, type(self).__name__, list(row))
        value = row[name]
        if not is_number(value):
            raise ValueError(f"{type(self).__name__} needs a metric that is one number, and {name!r} is {value!r}")
        if not improves(value, self.best, sign, self.min_delta): return
        self.best, self.best_epoch = value, learn.epoch
        if not self.restore: return
        self._weights = map_tensors(lambda t: t.detach().clone(), dict(unwrapped(learn.model).state_dict()))

    def cleanup_fit(self, learn: Any) -> None:
        weights, self._weights = self._weights, None
        error = getattr(learn, 'ended_by', None)
        failed = isinstance(error, Exception) and not is_cancel(error)  # Ctrl-C is no failure
        if weights is None or failed or not is_watched(learn): return
        unwrapped(learn.model).load_state_dict(weights)
        run_cbs([*learn.cbs, learn.opt], 'weights_replaced', learn)

    def state_dict(self) -> dict[str, Any]:
        "The best value so far, its epoch and its weights."
        return dict(best=self.best, best_epoch=self.best_epoch, weights=self._weights)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned."
        self.best, self.best_epoch, self._weights = state['best'], state['best_epoch'], state.get('weights')

