"A learning rate that falls when a validation metric no longer improves."
from functools import partial
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau

from miniai.callbacks.metrics import direction
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
        if getattr(learn, 'trains', True) and not getattr(learn, 'validates', True):
            raise ValueError("PlateauCB needs validation: use fit(valid=True), or remove it from cbs")
        super().before_fit(learn)

    def _check(self, steps: int | None) -> None: "Torch's scheduler takes any number of steps."

    def after_epoch(self, learn: Any) -> None:
        if learn.model.training or not getattr(learn, 'trains', True): return
        history = getattr(learn, 'history', ())
        name, row = direction(self.metric)[0], history[-1] if history else {}
        if name not in row:
            raise ValueError(f"PlateauCB: validation has no metric {name!r}, only {sorted(row)}: add "
                             f"MetricsCB({name}=…) to cbs")
        self.schedo.step(row[name])
