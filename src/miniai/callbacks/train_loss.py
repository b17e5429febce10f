"A loss for training alone, label smoothing for one: validation keeps the Learner's own. Knows events, not the loop."
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from miniai.events import Callback

__all__ = ['TrainLossCB', 'LabelSmoothingCB']


class TrainLossCB(Callback):
    """Training batches take their loss from `loss_func(preds, targets)`; validation, and all between batches, from
    `learn.loss_func` as it was. It is for a `get_loss` that asks `learn.loss_func`, as the library's do."""
    _swapped = False
    def __init__(self, loss_func: Callable) -> None:
        if not callable(loss_func): raise TypeError(f"TrainLossCB: loss_func must be a function, got {loss_func!r}")
        self.loss_func = loss_func

    def before_fit(self, learn: Any) -> None:
        names = [type(cb).__name__ for cb in learn.cbs if isinstance(cb, TrainLossCB)]
        if len(names) > 1: raise ValueError(f"there is one training loss, and {' and '.join(names)} set it: give one")

    def before_batch(self, learn: Any) -> None:
        if not learn.training: return
        self._own, learn.loss_func, self._swapped = learn.loss_func, self.loss_func, True

    def cleanup_batch(self, learn: Any) -> None:
        if self._swapped: learn.loss_func, self._swapped = self._own, False


class LabelSmoothingCB(TrainLossCB):
    """Trains with targets of which the share `eps` is spread over all classes (Szegedy et al. 2016, section 7);
    validation reports the plain loss. For `F.cross_entropy`, a partial of it, or `nn.CrossEntropyLoss`, whose own
    label_smoothing it sets; ValueError for other losses: TrainLossCB takes any."""
    def __init__(self, eps: float = 0.1) -> None:
        if not 0 <= eps <= 1: raise ValueError(f"LabelSmoothingCB: eps, a share, must be in [0, 1], got {eps}")
        self.eps = eps

    def before_fit(self, learn: Any) -> None:
        super().before_fit(learn)
        if learn.trains: self.loss_func = _smoothed(learn.loss_func, self.eps)


def _smoothed(loss_func: Any, eps: float) -> Callable:
    if isinstance(loss_func, nn.CrossEntropyLoss):
        smooth = copy.copy(loss_func)
        smooth.label_smoothing = eps
        return smooth
    if getattr(loss_func, 'func', loss_func) is F.cross_entropy: return partial(loss_func, label_smoothing=eps)
    name = getattr(loss_func, '__name__', type(loss_func).__name__)
    raise ValueError(f"LabelSmoothingCB smooths torch's cross-entropy, and learn.loss_func is {name}: "
                     f"give a smoothed loss of your own to TrainLossCB")
