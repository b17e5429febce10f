"Mixed precision with PyTorch's autocast and GradScaler."
import math
from typing import Any

import torch

from miniai.callbacks.train import DeviceCB, TrainCB
from miniai.events import Callback

__all__ = ['MixedPrecision', 'ScalingCB', 'PatientScaler']


class PatientScaler(torch.amp.GradScaler):
    "A GradScaler whose `unscale_` may be called more than once per step: by the library, then by the user."
    _unscaled: tuple[int, ...] = ()

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        "Divide the gradients by the scale, unless that was done since the last update."
        if id(optimizer) in self._unscaled: return
        super().unscale_(optimizer)
        self._unscaled += (id(optimizer),)

    def update(self, new_scale: float | torch.Tensor | None = None) -> None:
        "Change the scale after a step, as torch's does."
        super().update(new_scale)
        self._unscaled = ()

    def end_batch(self) -> None:
        "Update after a batch that was cut short between `unscale_` and `update`."
        if self._unscaled: self.update()


class ScalingCB(TrainCB):
    "A TrainCB that may scale gradients by a GradScaler, its `scaler`. They are unscaled before `after_backward`."
    scaler: torch.amp.GradScaler | None = None

    def scaled_optimizer(self, learn: Any) -> Any:
        "The optimizer that the scaler's `step` gets."
        return learn.opt

    def before_fit(self, learn: Any) -> None:
        if not getattr(learn, 'trains', True) or self.scaler is None or not self.scaler.is_enabled(): return
        if not hasattr(learn.opt, 'param_groups'):
            raise TypeError(f"{type(self).__name__} scales gradients in float16, which needs a torch.optim.Optimizer, "
                            f"got a {type(learn.opt).__name__}: use one of miniai.optim, or bfloat16")
        if isinstance(self.scaler, PatientScaler): learn.cbs.append(_UnscaleCB(self))

    def cleanup_fit(self, learn: Any) -> None:
        learn.cbs[:] = [cb for cb in learn.cbs if not isinstance(cb, _UnscaleCB)]

    def state_dict(self) -> dict[str, Any]:
        "The scaler's state, empty if gradients are not scaled."
        return dict(scaler={} if self.scaler is None else self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned. ValueError if gradients were scaled then and are not now, or vice versa."
        was, scales = bool(state['scaler']), self.scaler is not None and self.scaler.is_enabled()
        if was != scales:
            words = {True: "scaled (float16)", False: "not scaled (bfloat16 or float32)"}
            raise ValueError(f"gradients were {words[was]} in the checkpoint and are {words[scales]} now: "
                             f"use the same dtype")
        if scales: self.scaler.load_state_dict(state['scaler'])


class _UnscaleCB(Callback):
    "Unscales the gradients that a step is about to use, before any other callback sees them."
    order, only_shows = -math.inf, True
    def __init__(self, scaling: ScalingCB) -> None: self._scaling = scaling

    def after_backward(self, learn: Any) -> None:
        self._scaling.scaler.unscale_(self._scaling.scaled_optimizer(learn))

    def cleanup_batch(self, learn: Any) -> None: self._scaling.scaler.end_batch()
    def cleanup_epoch(self, learn: Any) -> None: self._scaling.scaler.end_batch()


class MixedPrecision(ScalingCB):
    """Runs forward pass and loss in half precision with autocast: bfloat16 on the CPU, float16 on CUDA, or `dtype`. In
    float16 small gradients would become 0, so a GradScaler, kept as `scaler`, scales the loss up. It scales gradients
    down before `after_backward`, where your own `scaler.unscale_(opt)` does nothing more."""
    order = DeviceCB.order + 10
    def __init__(self, n_inp: int = 1, dtype: torch.dtype | None = None, inputs: Any = None,
                 targets: Any = None) -> None:
        super().__init__(n_inp, inputs, targets)
        if dtype not in (None, torch.float16, torch.bfloat16):
            raise ValueError(f"MixedPrecision: dtype must be torch.float16 or torch.bfloat16, got {dtype}")
        self.dtype, self.autocast = dtype, None

    def before_fit(self, learn: Any) -> None:
        self.device = next((p.device.type for p in learn.model.parameters()), 'cpu')
        self.used = self.dtype or (torch.float16 if self.device == 'cuda' else torch.bfloat16)
        self.scaler = PatientScaler(self.device, enabled=self.used is torch.float16)
        super().before_fit(learn)

    def before_batch(self, learn: Any) -> None:
        self.autocast = torch.autocast(self.device, dtype=self.used)
        self.autocast.__enter__()

    def _leave(self) -> None:
        if self.autocast is not None: self.autocast.__exit__(None, None, None)
        self.autocast = None

    def after_loss(self, learn: Any) -> None: self._leave()
    def cleanup_batch(self, learn: Any) -> None: self._leave()
    def backward(self, learn: Any) -> None: self.scaler.scale(learn.loss).backward()

    def step(self, learn: Any) -> None:
        self.scaler.step(learn.opt)
        self.scaler.update()
