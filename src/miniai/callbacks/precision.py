"Mixed precision with PyTorch's autocast and GradScaler."
from typing import Any

import torch

from miniai.callbacks.train import DeviceCB, TrainCB

__all__ = ['MixedPrecision', 'load_scaler']


class MixedPrecision(TrainCB):
    """Runs forward pass and loss in half precision with autocast: bfloat16 on the CPU, float16 on CUDA, or `dtype`. In
    float16 small gradients would become 0, so a GradScaler, kept as `scaler`, scales the loss up and gradients down."""
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
        self.scaler = torch.amp.GradScaler(self.device, enabled=self.used is torch.float16)
        if self.scaler.is_enabled() and learn.trains and not hasattr(learn.opt, 'param_groups'):
            raise TypeError(f"MixedPrecision scales gradients in float16, which needs a torch.optim.Optimizer, got a "
                            f"{type(learn.opt).__name__}: use one of miniai.optim, or dtype=torch.bfloat16")

    def state_dict(self) -> dict[str, Any]:
        "The scaler's state."
        return dict(scaler=self.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned. ValueError if gradients were scaled then and are not now, or vice versa."
        load_scaler(self.scaler, state['scaler'])

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


def load_scaler(scaler: Any, state: dict[str, Any]) -> None:
    "Restore the state of a GradScaler. A scaler that is None or disabled, and an empty state, mean no scaling."
    was, scales = bool(state), scaler is not None and scaler.is_enabled()
    if was != scales:
        words = {True: "scaled (float16)", False: "not scaled (bfloat16 or float32)"}
        raise ValueError(f"gradients were {words[was]} in the checkpoint and are {words[scales]} now: "
                         f"use the same dtype")
    if scales: scaler.load_state_dict(state)
