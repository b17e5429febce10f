"Test-time augmentation: predictions averaged over several views of each batch."
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from miniai.device import detached, map_tensors, tensors_in
from miniai.diagnosis.capture import capture_preds
from miniai.events import Callback, as_list
from miniai.images import mirror

__all__ = ['tta']


def tta(self: Any, tfms: Callable | Iterable[Callable] = mirror, cbs: Any = None, act: Callable | None = None) -> tuple:
    """Predictions and targets of the whole validation set, like `capture_preds`, with each prediction averaged over the
    batch and its views, by default its mirror images. A view is what a function of `tfms` (one or several) makes of a
    copy of the batch's first input. `act`, such as `lambda p: p.softmax(-1)`, is applied before averaging; without it
    the loss and metrics of the Learner still fit the predictions. Trains nothing."""
    return capture_preds(self, cbs=[_AverageViewsCB(tfms, act), *as_list(cbs)])


class _AverageViewsCB(Callback):
    "Averages the predictions of a batch over its views, before any other callback sees them."
    order = -math.inf
    def __init__(self, tfms: Callable | Iterable[Callable], act: Callable | None) -> None:
        self.tfms, self.act = [tfms] if callable(tfms) else list(tfms), act or (lambda preds: preds)
        for f in self.tfms:
            if not callable(f): raise TypeError(f"tta: tfms must be functions of a batch's first input, got {f!r}")

    def after_predict(self, learn: Any) -> None:
        views, batch = [self.act(learn.preds)], learn.batch
        try:
            for tfm in self.tfms:
                learn.batch = (tfm(map_tensors(torch.clone, batch[0])), *batch[1:])
                learn.predict()
                views.append(self.act(learn.preds))
        finally: learn.batch = batch
        learn.preds = _mean(views)


def _mean(views: list) -> Any:
    "The mean of several nests of tensors, tensor by tensor. Integers, such as classes, are those of the first nest."
    def mean(ts: tuple) -> torch.Tensor:
        return torch.stack(ts).mean(0) if ts[0].is_floating_point() or ts[0].is_complex() else ts[0]
    means = iter([mean(ts) for ts in zip(*(tensors_in(detached(v)) for v in views), strict=True)])
    return map_tensors(lambda _: next(means), views[0])
