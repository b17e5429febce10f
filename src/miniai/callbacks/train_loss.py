"A loss for training only, such as label smoothing: validation keeps the Learner's own."
import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from miniai.events import Callback

__all__ = ['TrainLossCB', 'LabelSmoothingCB']


class TrainLossCB(Callback):
    """Training batches use `loss_func(preds, targets)` as their loss; validation keeps `learn.loss_func`. If you write
    your own `get_loss`, call `learn.loss_func` in it."""
    _swapped = False
    def __init__(self, loss_func: Callable) -> None:
        if not callable(loss_func) or isinstance(loss_func, type):
            raise TypeError(f"TrainLossCB: loss_func must be a function or an instance of a loss, got {loss_func!r}")
        self.loss_func = loss_func

    def before_fit(self, learn: Any) -> None:
        names = [type(cb).__name__ for cb in learn.cbs if isinstance(cb, TrainLossCB)]
        if len(names) > 1: raise ValueError(f"{' and '.join(names)} cannot be used in the same fit: keep one of them")

    def before_batch(self, learn: Any) -> None:
        if not learn.model.training: return
        self._own, learn.loss_func, self._swapped = learn.loss_func, self.loss_func, True

    def cleanup_batch(self, learn: Any) -> None:
        if self._swapped: learn.loss_func, self._swapped = self._own, False


class LabelSmoothingCB(TrainLossCB):
    """Trains with smoothed targets: a share `eps` of each is spread over all classes (Szegedy et al. 2016, section 7).
    Validation reports the plain loss. Works for `F.cross_entropy`, a partial of it, and `nn.CrossEntropyLoss`;
    ValueError for other losses, which TrainLossCB takes."""
    def __init__(self, eps: float = 0.1) -> None:
        if not 0 <= eps <= 1: raise ValueError(f"LabelSmoothingCB: eps (a share) must be in [0, 1], got {eps}")
        self.eps = eps

    def before_fit(self, learn: Any) -> None:
        super().before_fit(learn)
        if getattr(learn, 'trains', True): self.loss_func = _smoothed(learn.loss_func, self.eps)


def _smoothed(loss_func: Any, eps: float) -> Callable:
    if isinstance(loss_func, nn.CrossEntropyLoss):
        smooth = copy.copy(loss_func)
        smooth.label_smoothing = eps
        return smooth
    if getattr(loss_func, 'func', loss_func) is F.cross_entropy: return partial(loss_func, label_smoothing=eps)
    name = getattr(loss_func, '__name__', type(loss_func).__name__)
    raise ValueError(f"LabelSmoothingCB needs torch's cross-entropy, and learn.loss_func is {name}: "
                     f"pass your own smoothed loss to TrainLossCB")
