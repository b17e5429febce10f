"Sharpness-aware minimisation: gradients are taken where the loss around the weights is highest."
from typing import Any

import torch
from torch.nn.utils import get_total_norm

from miniai.callbacks.accumulate import AccumulateCB
from miniai.callbacks.precision import MixedPrecision, ScalingCB
from miniai.callbacks.trained import buffers_of
from miniai.distributed.dtensor import local, reshard
from miniai.events import Callback
from miniai.steps.closure import pass_again

__all__ = ['SAMCB']


class SAMCB(Callback):
    """Sharpness-aware minimisation around any optimizer (Foret et al. 2021, algorithm 1): each batch runs twice, and
    the gradient is that of the second pass, at a distance of `rho` from the weights along the first gradient. Loss,
    predictions, and buffers such as BatchNorm's statistics are those of the first pass. Several processes go along the
    gradient of all of them. ValueError with AccumulateCB, with float16 and its scaled gradients, and for a Learner
    whose `zero_grad` keeps gradients."""
    order = -1  # callbacks that change gradients change those of the second pass
    def __init__(self, rho: float = 0.05) -> None:
        if not rho > 0: raise ValueError(f"SAMCB: rho, a distance from the weights, must be above 0, got {rho}")
        self.rho = rho

    def before_epoch(self, learn: Any) -> None:
        if not learn.model.training: return
        odd = [cb for cb in learn.cbs if isinstance(cb, AccumulateCB) or
               (isinstance(cb, ScalingCB) and cb.scaler and cb.scaler.is_enabled())]
        if odd: raise ValueError(f"SAMCB runs each batch twice, which {type(odd[0]).__name__} cannot do: leave it out, "
                                 f"or, if it is there for half precision, use bfloat16")

    @torch.no_grad()
    def after_backward(self, learn: Any) -> None:
        params = [p for g in learn.opt.param_groups for p in g['params'] if p.grad is not None]
        weights, buffers = [local(p).clone() for p in params], {b: b.clone() for b in buffers_of(learn).values()}
        first = learn.preds, learn.loss
        self._move(learn, params)
        try: self._second_pass(learn)
        finally:
            for p, x in zip(params, weights, strict=True): local(p).copy_(x)
            for b, x in buffers.items(): b.copy_(x)
            reshard(learn.model)
            learn.preds, learn.loss = first

    def _move(self, learn: Any, params: list[torch.Tensor]) -> None:
        "Go up along the gradient, by `rho`."
        norm = get_total_norm([p.grad for p in params])
        norm = norm.full_tensor() if hasattr(norm, 'full_tensor') else norm
        for p in params: local(p).add_(local(p.grad) * (self.rho/(norm + 1e-12)))
        reshard(learn.model)

    def _second_pass(self, learn: Any) -> None:
        for cb in learn.cbs:
            if isinstance(cb, MixedPrecision): cb.before_batch(learn)  # autocast, which ended with the first loss
        with torch.enable_grad(): pass_again(learn)

    def after_batch(self, learn: Any) -> None:
        kept = learn.model.training and any(p.grad is not None and p.grad.any() for p in learn.model.parameters())
        if kept: raise ValueError(f"SAMCB cannot be used with {type(learn).__name__}, whose zero_grad keeps gradients: "
                                  f"use a Learner that zeroes them, such as TrainLearner")
