"Training with Hugging Face Accelerate."
import warnings
from typing import Any

import torch

from miniai.callbacks.precision import PatientScaler, ScalingCB
from miniai.callbacks.train import DeviceCB
from miniai.callbacks.trained import loss_modules, loss_parameters
from miniai.device import def_device

__all__ = ['AccelerateCB']


class AccelerateCB(ScalingCB):
    """Lets Hugging Face Accelerate prepare model, optimizer and loaders for the length of a fit, and do the backward
    pass. After the fit the Learner has its own model, optimizer and loaders again. `mixed_precision` is Accelerate's;
    without an accelerator 'fp16' becomes 'bf16', with a warning."""
    order = DeviceCB.order + 10
    def __init__(self, n_inp: int = 1, mixed_precision: str = "fp16", inputs: Any = None,
                 targets: Any = None) -> None:
        super().__init__(n_inp, inputs, targets)
        try:
            from accelerate import Accelerator
        except ImportError as e:
            raise ImportError("AccelerateCB needs the package accelerate: pip install 'miniai-torch[hf]'") from e
        if mixed_precision == 'fp16' and def_device == 'cpu':
            warnings.warn("AccelerateCB: fp16 needs an accelerator; using bf16 on the CPU", stacklevel=2)
            mixed_precision = 'bf16'
        self.acc, self._own = Accelerator(mixed_precision=mixed_precision), None
        if type(self.scaler) is torch.amp.GradScaler: self.scaler.__class__ = PatientScaler

    def before_fit(self, learn: Any) -> None:
        self._own = learn.model, learn.dls.train, learn.dls.valid, learn.opt
        self._attributes = set(vars(learn.model))
        learn.model, learn.dls.train, learn.dls.valid = self.acc.prepare(*self._own[:3])
        if learn.opt is not None: learn.opt = self.acc.prepare(learn.opt)
        for loss in loss_modules(learn).values(): loss.to(self.acc.device)
        super().before_fit(learn)

    scaler = property(lambda self: self.acc.scaler, doc="Accelerate's GradScaler, or None.")

    def scaled_optimizer(self, learn: Any) -> Any: return learn.opt.optimizer  # which Accelerate has wrapped

    def backward(self, learn: Any) -> None:
        self.acc.backward(learn.loss)
        for p in loss_parameters(learn).values() if self.acc.num_processes > 1 else ():
            if p.grad is not None: p.grad = self.acc.reduce(p.grad, 'mean')  # as is done for the model's

    def cleanup_fit(self, learn: Any) -> None:
        super().cleanup_fit(learn)
        if self._own is None: return
        learn.model, learn.dls.train, learn.dls.valid, learn.opt = self._own
        for added in set(vars(learn.model)) - self._attributes: delattr(learn.model, added)
        self.acc.free_memory()
        self._own = None
