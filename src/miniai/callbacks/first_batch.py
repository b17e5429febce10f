"A look at the first batch of a fit, for what will go wrong later or silently."
import math
from typing import Any

from miniai.callbacks.trained import check_trained
from miniai.events import Callback

__all__ = ['FirstBatchCB']


class FirstBatchCB(Callback):
    "Checks, before and in the first batch of a fit, what training will do, then removes itself. Every fit adds it."
    order, only_shows = math.inf, True
    def before_epoch(self, learn: Any) -> None:
        if learn.model.training: check_trained(learn)

    def cleanup_batch(self, learn: Any) -> None:
        del learn.cbs[next(i for i, cb in enumerate(learn.cbs) if cb is self)]
