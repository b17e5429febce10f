"A learning rate that falls when a validation metric no longer improves."
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from miniai.metrics.direction import check_metric, direction, is_watched, last_row, no_metric
from miniai.steps.schedule import BaseSchedCB

__all__ = ['PlateauCB']


class PlateauCB(BaseSchedCB):
    """Multiplies the learning rate by `factor` when the validation metric has not improved for more than `patience`
    epochs: '-loss' should fall, 'accuracy' should rise. Other arguments are those of torch's ReduceLROnPlateau, kept as
    `schedo`. It acts after all metrics, wherever it is in `cbs`."""
    order = 100
    def __init__(self, metric: str = '-loss', factor: float = 0.1, patience: int = 10, opt: str = 'opt',
                 **kwargs: Any) -> None:
        self.metric, mode = metric, 'min' if direction(metric)[1] < 0 else 'max'
        super().__init__(partial(ReduceLROnPlateau, mode=mode, factor=factor, patience=patience, **kwargs), opt)

    def before_fit(self, learn: Any) -> None:
        if is_watched(learn): check_metric(learn, self.metric, 'PlateauCB')
        super().before_fit(learn)

    def _check(self, steps: int | None) -> None: "Torch's scheduler takes any number of steps."

    def after_epoch(self, learn: Any) -> None:
        if learn.model.training or not is_watched(learn): return
        name, row = direction(self.metric)[0], last_row(learn)
        if name not in row: raise no_metric(self.metric, 'PlateauCB', row)
        self.schedo.step(row[name])
