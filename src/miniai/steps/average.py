"Validation with weight averages, and with averages of what belongs to them, such as BatchNorm's statistics."
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from miniai.distributed.dtensor import reshard
from miniai.distributed.wrap import unwrapped
from miniai.events import Callback, is_cancel
from miniai.optim.optimizer import inner_optimizer
from miniai.optim.stages import average_weight

__all__ = ['AverageCB', 'averaged_state']


class AverageCB(Callback):
    """Validates with the weight averages of an optimizer made with `ema=…` or `tail=…`. Training uses the weights
    themselves. The model's floating-point buffers, such as BatchNorm's statistics, are averaged alike. `evaluate`,
    `results`, `predictor`, `save_model` and `export` use the averages too. With `keep` they stay in the model when a
    training fit ends, unless by an error. CheckpointCB's best.safetensors has the averages as its `model`, and the
    weights as `raw`."""
    _own, _kept, _model = None, False, None  # the buffers while averages are in their place

    def __init__(self, keep: bool = False) -> None:
        self._keep, self._steps, self._buffers = keep, 0, {}

    def before_fit(self, learn: Any) -> None:
        opt, self._model = inner_optimizer(learn.opt), learn.model
        if not getattr(learn, 'trains', True): return
        if getattr(opt, 'rule_averages', False):
            raise ValueError(f"{type(opt).__name__} has an evaluation point of its own, which every fit uses: remove "
                             f"AverageCB")
        if not getattr(opt, 'has_averages', False):
            raise ValueError("AverageCB needs an optimizer that keeps weight averages, such as "
                             "opt_func=partial(AdamW, ema=0.999)")
        self._kept = False
        steps = sum(_steps(opt))
        if steps != self._steps: self._steps, self._buffers = steps, {}

    @torch.no_grad()
    def after_step(self, learn: Any) -> None:
        opt = inner_optimizer(learn.opt)
        steps, buffers = _steps(opt), self._now()
        if sum(steps) == self._steps: return  # it was skipped
        self._steps, self._buffers = sum(steps), self._buffers or {nm: b.clone() for nm, b in buffers.items()}
        weight = average_weight(max(steps), opt.ema, opt.tail)
        for nm, b in buffers.items(): self._buffers[nm].lerp_(b, weight)

    def _now(self) -> dict[str, Tensor]:
        return {nm: b for nm, b in self._model.named_buffers() if not is_lazy(b) and b.is_floating_point()}

    def before_epoch(self, learn: Any) -> None:
        if not learn.model.training: self._show_averages(learn)

    def _show_averages(self, learn: Any) -> None:
        opt = inner_optimizer(learn.opt)
        if self._kept or self.shows_averages or not getattr(opt, 'has_averages', False): return
        opt.swap_averages(learn.model)
        self.swap_averages()

    @contextmanager
    def validated(self, learn: Any) -> Iterator[None]:
        "Within it the model has the weights that validation judges."
        shown, model, self._model = self.shows_averages, self._model, learn.model
        try:
            self._show_averages(learn)
            yield
        finally:
            if not shown: self.cleanup_epoch(learn)
            self._model = model

    def weights_replaced(self, learn: Any) -> None:
        "Called when other weights, such as the best, are put into the model: the optimizer's averages are not theirs."
        self._kept = True

    def cleanup_epoch(self, learn: Any) -> None:
        if not self.shows_averages: return
        inner_optimizer(learn.opt).swap_averages(learn.model)
        self.swap_averages()

    @property
    def shows_averages(self) -> bool:
        "Whether the model's buffers are their averages now."
        return self._own is not None

    @torch.no_grad()
    def swap_averages(self) -> None:
        "Replace the model's buffers by their averages; called again, put them back."
        now = self._now()
        there = {nm: now[nm].clone() for nm in self._buffers}  # DDP may have replaced averages by the first process's
        if self.shows_averages: new, self._own, self._buffers = self._own, None, there
        else: new, self._own = self._buffers, there
        for nm, x in new.items(): now[nm].copy_(x)

    def averaged(self, learn: Any, state: dict[str, Any]) -> dict[str, Any]:
        "The model's state_dict `state` with averages of parameters and buffers in it."
        return {nm: self._buffers.get(nm, x) for nm, x in averaged_state(learn, state).items()}

    def cleanup_fit(self, learn: Any) -> None:
        error = getattr(learn, 'ended_by', None)
        ended = getattr(learn, 'trains', True) and (error is None or is_cancel(error))
        if self._keep and self._model is not None and ended:
            inner_optimizer(learn.opt).keep_averages(self._model)
            self.swap_averages()
            self._own, self._kept = None, True
        self._model = None

    def state_dict(self) -> dict[str, Any]:
        "The averages of the buffers, and after how many steps of all parameters together."
        return dict(steps=self._steps, buffers=self._buffers)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned."
        self._steps, self._buffers = state['steps'], state['buffers']


def averaged_state(learn: Any, state: dict[str, Any]) -> dict[str, Any]:
    "The model's state_dict `state` with the averages of its parameters in it."
    reshard(learn.model)
    averages = inner_optimizer(learn.opt).averages()
    named = unwrapped(learn.model).named_parameters(remove_duplicate=False)
    new = {nm: averages[p].to(p.dtype) for nm, p in named if p in averages}
    return {nm: new.get(nm, x) for nm, x in state.items()}


def _steps(opt: Any) -> list[int]: return [s['step'] for s in opt.state.values()]
