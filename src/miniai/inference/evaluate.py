"The loss and the metrics over a loader, without training."
from contextlib import ExitStack
from typing import Any

from miniai.callbacks.dry_run import dry_run
from miniai.data.loaders import DataLoaders
from miniai.events import as_list
from miniai.metrics.metrics import MetricsCB

__all__ = ['evaluate']


def evaluate(self: Any, dl: Any = None, cbs: Any = None) -> dict[str, Any]:
    """The loss and the metrics of the Learner's MetricsCB over `dl`, by default the validation set, as a dict; the loss
    alone if there is none. `cbs` are added. Trains nothing and leaves `learn.history` alone. ValueError without
    targets."""
    cbs = as_list(cbs)
    if not any(isinstance(cb, MetricsCB) for cb in (*self.cbs, *cbs)): cbs = [*cbs, MetricsCB()]
    with dry_run(self), ExitStack() as undo:
        if hasattr(dl, 'snapshot'): undo.callback(dl.snapshot())
        if dl is not None: self.dls = DataLoaders(getattr(self.dls, 'train', ()), dl)
        self.fit(1, train=False, cbs=cbs)
        if self.loss is None and self.loss_func is not None: raise ValueError(
            "the batches have no targets for the loss: let the loader yield (inputs, targets)")
        rows = [pair for row in self.history for pair in row.items()]
        return {nm: v for nm, v in rows if nm not in ('epoch', 'phase', 'seconds')}
