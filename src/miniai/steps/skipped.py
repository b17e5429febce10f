"Steps that are skipped because gradients are not finite: found, counted, and without a trace in the model's buffers."
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.amp import GradScaler

from miniai.callbacks.trained import buffers_of
from miniai.events import Callback
from miniai.optim.optimizer import inner_optimizer

__all__ = ['SkippedStepsCB', 'skips', 'was_skipped']


def skips(learn: Any, opt: Any) -> list[float]:
    "Numbers that fall when a step is skipped: minus the optimizer's count of them, and the scales of GradScalers."
    scalers = [getattr(o, 'scaler', None) for o in (learn, *learn.cbs)]
    scales = [s.get_scale() for s in scalers if isinstance(s, GradScaler)]
    return [-getattr(inner_optimizer(opt), 'skipped', 0), *scales]


def was_skipped(before: list[float], now: list[float]) -> bool:
    "Was a step skipped between two calls of `skips`?"
    return any(y < x for x, y in zip(before, now, strict=False))


class SkippedStepsCB(Callback):
    """For an optimizer with `skip_nonfinite`: when a step is skipped, the model's buffers, such as BatchNorm's
    statistics, become what they were before the batches of that step. A warning after each epoch counts the skipped
    steps. Every fit adds this callback; it removes itself if the optimizer has no `skip_nonfinite`."""
    order, only_shows = 2e9, True  # after AccumulateCB, before those that save the run
    _buffers: dict[str, Tensor] | None = None  # before the batches of the step that comes next

    def before_fit(self, learn: Any) -> None:
        if getattr(inner_optimizer(learn.opt), 'skip_nonfinite', False): return
        learn.cbs[:] = [cb for cb in learn.cbs if cb is not self]

    def before_epoch(self, learn: Any) -> None:
        self._before, self._before_epoch = skips(learn, learn.opt), inner_optimizer(learn.opt).skipped

    def before_batch(self, learn: Any) -> None:
        if not learn.model.training: return
        self._before = skips(learn, learn.opt)
        if self._buffers is None: self._buffers = {nm: b.clone() for nm, b in buffers_of(learn).items()}

    @torch.no_grad()
    def after_step(self, learn: Any) -> None:
        if was_skipped(self._before, skips(learn, learn.opt)):
            for nm, b in buffers_of(learn).items(): b.copy_(self._buffers.get(nm, b))
        self._buffers = None

    def cleanup_batch(self, learn: Any) -> None:
        if not getattr(learn, 'hold_step', False): self._buffers = None

    def cleanup_epoch(self, learn: Any) -> None: self._buffers = None

    def after_epoch(self, learn: Any) -> None:
        skipped = inner_optimizer(learn.opt).skipped - self._before_epoch
        if skipped: warnings.warn(f"{skipped} step(s) of epoch {learn.epoch} were skipped because their gradients were "
                                  f"not finite", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        "The buffers before the batches that wait for a step."
        return dict(buffers=self._buffers)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned."
        self._buffers = state['buffers']
