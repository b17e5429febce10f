"Training with Hugging Face Accelerate."
import warnings
from functools import partial
from typing import Any

import torch

from miniai.callbacks.precision import PatientScaler, ScalingCB
from miniai.callbacks.train import DeviceCB
from miniai.callbacks.trained import loss_modules
from miniai.callbacks.wrapped import MappedLoader
from miniai.device import def_device, to_device
from miniai.distributed.callback import draw_apart
from miniai.distributed.ranks import start, world
from miniai.distributed.wrap import unwrapped, what_trains, wrap_ddp

__all__ = ['AccelerateCB']


class AccelerateCB(ScalingCB):
    """Lets Hugging Face Accelerate prepare model and optimizer for the length of a fit, and do the backward pass.
    Batches go to its device. After the fit the Learner has its own model and optimizer again. On several processes, of
    torchrun or `accelerate launch`, the results are those of one process, as with DistributedCB. `mixed_precision` is
    Accelerate's; without an accelerator 'fp16' becomes 'bf16', with a warning."""
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
        start(def_device)  # before Accelerate would make the group
        self.acc = Accelerator(mixed_precision=mixed_precision, cpu=def_device == 'cpu')
        self._own, self._seeded = None, False
        if type(self.scaler) is torch.amp.GradScaler: self.scaler.__class__ = PatientScaler

    def before_fit(self, learn: Any) -> None:
        self._own, self._attributes = (learn.model, learn.opt), set(vars(learn.model))
        self._trained = what_trains(learn.model)
        learn.model = self.acc.prepare(learn.model)
        if learn.opt is not None: learn.opt = self.acc.prepare(learn.opt)
        for loss in loss_modules(learn).values(): loss.to(self.acc.device)
        if world() > 1 and not self._seeded: draw_apart()
        self._seeded = True
        super().before_fit(learn)

    def before_epoch(self, learn: Any) -> None:
        if world() > 1 and self._trained != what_trains(learn.model):
            self._trained = what_trains(learn.model)
            learn.model = wrap_ddp(unwrapped(learn.model), self.acc.device)
        learn.dl = MappedLoader(learn.dl, partial(to_device, device=self.acc.device))
        super().before_epoch(learn)

    scaler = property(lambda self: self.acc.scaler, doc="Accelerate's GradScaler, or None.")

    def scaled_optimizer(self, learn: Any) -> Any: return learn.opt.optimizer  # which Accelerate has wrapped

    def backward(self, learn: Any) -> None: self.acc.backward(learn.loss)

    def cleanup_fit(self, learn: Any) -> None:
        super().cleanup_fit(learn)
        if self._own is None: return
        learn.model, learn.opt = self._own
        for added in set(vars(learn.model)) - self._attributes: delattr(learn.model, added)
        self.acc.free_memory()
        self._own = None
