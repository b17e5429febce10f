"Test-time augmentation: predictions averaged over several views of each batch. Knows capturing, not the loop."
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

from miniai.callbacks.capture import capture_preds
from miniai.device import detached, map_tensors, tensors_in
from miniai.events import Callback, listed
from miniai.images import mirror

__all__ = ['tta']


def tta(self: Any, tfms: Callable | Iterable[Callable] = mirror, cbs: Any = None, act: Callable | None = None) -> tuple:
    """Predictions and targets of the whole validation set, on the CPU, a pair as of `capture_preds`; each prediction is
    the mean over the batch as it is and as each of `tfms` leaves it, by default its mirror images. `tfms`, one function
    or several, take a copy of the batch's first input. What is averaged is what the model gives, so that the loss and
    metrics take it; with `act`, such as `lambda p: p.softmax(-1)`, it is `act` of that. Nothing is trained."""
    return capture_preds(self, cbs=[_MeanOfViews(tfms, act), *listed(cbs)])


class _MeanOfViews(Callback):
    "Before any other callback sees the predictions of a batch, they become their mean over its views."
    order = -math.inf
    def __init__(self, tfms: Callable | Iterable[Callable], act: Callable | None) -> None:
        self.tfms, self.act = [tfms] if callable(tfms) else list(tfms), act or (lambda preds: preds)
        for f in self.tfms:
            if not callable(f): raise TypeError(f"tta: tfms must be functions of a batch's first input, got {f!r}")

    def after_predict(self, learn: Any) -> None:
        views, batch = [self.act(learn.preds)], learn.batch
        try: views += [self._view(learn, tfm, batch) for tfm in self.tfms]
        finally: learn.batch = batch
        learn.preds = _mean(views)

    def _view(self, learn: Any, tfm: Callable, batch: tuple | list) -> Any:
        learn.batch = (tfm(map_tensors(torch.clone, batch[0])), *batch[1:])
        learn.predict()
        return self.act(learn.preds)


def _mean(views: list) -> Any:
    "The first of `views`, nests of tensors, with the mean over all of them in each tensor's place."
    means = iter([_mean_of(ts) for ts in zip(*(tensors_in(detached(v)) for v in views), strict=True)])
    return map_tensors(lambda _: next(means), views[0])


def _mean_of(ts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    "What has no mean, such as classes, is that of the batch as it is."
    return torch.stack(ts).mean(0) if ts[0].is_floating_point() or ts[0].is_complex() else ts[0]
