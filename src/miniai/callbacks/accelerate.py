"Training with Hugging Face Accelerate."
import warnings
from typing import Any

from miniai.callbacks.precision import load_scaler
from miniai.callbacks.train import DeviceCB, TrainCB
from miniai.device import def_device

__all__ = ['AccelerateCB']


class AccelerateCB(TrainCB):
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

    def before_fit(self, learn: Any) -> None:
        self._own = learn.model, learn.dls.train, learn.dls.valid, learn.opt
        self._attributes = set(vars(learn.model))
        learn.model, learn.dls.train, learn.dls.valid = self.acc.prepare(*self._own[:3])
        if learn.opt is not None: learn.opt = self.acc.prepare(learn.opt)

    scaler = property(lambda self: self.acc.scaler, doc="Accelerate's GradScaler, or None.")

    def state_dict(self) -> dict[str, Any]:
        "The state of Accelerate's gradient scaler, empty if it has none."
        return dict(scaler={} if self.acc.scaler is None else self.acc.scaler.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned. ValueError if gradients were scaled then and are not now, or vice versa."
        load_scaler(self.acc.scaler, state['scaler'])

    def backward(self, learn: Any) -> None: self.acc.backward(learn.loss)

    def cleanup_fit(self, learn: Any) -> None:
        if self._own is None: return
        learn.model, learn.dls.train, learn.dls.valid, learn.opt = self._own
        for added in set(vars(learn.model)) - self._attributes: delattr(learn.model, added)
        self.acc.free_memory()
        self._own = None
