"Test-time augmentation: predictions averaged over several views of each batch."
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from miniai.device import detached, first_tensor, map_tensors, tensors_in
from miniai.diagnosis.capture import capture_preds
from miniai.events import Callback, as_list
from miniai.images import mirror

__all__ = ['tta']


def tta(self: Any, tfms: Any = mirror, cbs: Any = None, act: Callable | None = None, dl: Any = None) -> tuple:
    """Predictions and targets of the whole validation set, like `capture_preds`, with each prediction averaged over the
    batch and its views, by default its mirror images. A view is what a function of `tfms` (one or several) makes of a
    copy of the batch's first input. `act`, such as `lambda p: p.softmax(-1)`, is applied before averaging; without it
    the loss and metrics of the Learner still fit the predictions. Trains nothing.

    Predictions with a place for each pixel, such as masks, must be moved back before they are averaged: a pair
    `(tfm, undo)` in the list `tfms` names the function that does so. `mirror` knows how; ValueError for others."""
    return capture_preds(self, cbs=[_AverageViewsCB(tfms, act), *as_list(cbs)], dl=dl)


class _AverageViewsCB(Callback):
    "Averages the predictions of a batch over its views, before any other callback sees them."
    order = -math.inf
    def __init__(self, tfms: Any, act: Callable | None) -> None:
        self.tfms, self.act = [tfms] if callable(tfms) else list(tfms), act or (lambda preds: preds)
        for f in self.tfms:
            if not all(map(callable, f if isinstance(f, tuple) and len(f) == 2 else [f])):
                raise TypeError(f"tta: tfms must be functions of a batch's first input, got {f!r}, or a list of them "
                                f"and of pairs (tfm, undo)")

    def after_predict(self, learn: Any) -> None:
        views, batch = [self.act(learn.preds)], learn.batch
        try:
            for tfm in self.tfms:
                tfm, undo = tfm if isinstance(tfm, tuple) else (tfm, partial(_undone, tfm, first_tensor(batch[0])))
                learn.batch = (tfm(map_tensors(torch.clone, batch[0])), *batch[1:])
                learn.predict()
                views.append(self.act(undo(learn.preds)))
        finally: learn.batch = batch
        learn.preds = _mean(views)


def _undone(tfm: Callable, x: torch.Tensor, preds: Any) -> Any:
    """The predictions of a view whose transform has no undo: as they are if none is dense, mirrored back if it is
    `mirror` and they are of the size of the images."""
    dense = [tuple(t.shape) for t in tensors_in(preds) if t.ndim > 2]
    if tfm is mirror and all(shape[-2:] == tuple(x.shape[-2:]) for shape in dense):
        return map_tensors(lambda t: t.flip(-1) if t.ndim > 2 else t, preds)
    if not dense: return preds
    name = getattr(tfm, '__name__', type(tfm).__name__)
    raise ValueError(f"tta: predictions of shape {dense[0]} may depend on where things are in the input, so those of a "
                     f"view must be moved back: pass tfms=[({name}, undo)], with undo=lambda preds: preds if {name} "
                     f"moves nothing")


def _mean(views: list) -> Any:
    "The mean of several nests of tensors, tensor by tensor. Integers, such as classes, are those of the first nest."
    def mean(ts: tuple) -> torch.Tensor:
        return torch.stack(ts).mean(0) if ts[0].is_floating_point() or ts[0].is_complex() else ts[0]
    means = iter([mean(ts) for ts in zip(*(tensors_in(detached(v)) for v in views), strict=True)])
    return map_tensors(lambda _: next(means), views[0])
