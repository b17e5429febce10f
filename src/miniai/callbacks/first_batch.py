"A look at the first batch of a fit, for what will go wrong later or silently."
import math
import warnings
from typing import Any

from miniai.callbacks.accumulate import AccumulateCB
from miniai.callbacks.trained import check_trained
from miniai.events import Callback
from miniai.metrics.metrics import MetricsCB
from miniai.metrics.weight import hides_weights

__all__ = ['FirstBatchCB']


class FirstBatchCB(Callback):
    "Checks, before and in the first batch of a fit, what training will do, then removes itself. Every fit adds it."
    order, only_shows = math.inf, True
    def before_epoch(self, learn: Any) -> None:
        if learn.model.training: check_trained(learn)

    def after_loss(self, learn: Any) -> None:
        names = {type(cb).__name__: cb for cb in (*learn.cbs, learn.metrics)  # ProgressCB may have its own
                 if isinstance(cb, MetricsCB | AccumulateCB) and cb.weight is None}
        if names and learn.model.training and not learn.dry_run and hides_weights(learn): warnings.warn(
            f"the loss weighs classes or ignores some targets, but {' and '.join(names)} will weigh each batch by its "
            f"samples, so that means over batches differ from those over all targets. Say what a batch weighs, such as "
            f"weight=lambda learn: (learn.batch[1] != -100).sum()", stacklevel=2)

    def cleanup_batch(self, learn: Any) -> None:
        del learn.cbs[next(i for i, cb in enumerate(learn.cbs) if cb is self)]
