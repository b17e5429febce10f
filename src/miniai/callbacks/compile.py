"The model compiled by torch.compile for the length of a fit."
import warnings
from typing import Any

import torch

from miniai.callbacks.train import DeviceCB
from miniai.events import Callback

__all__ = ['CompileCB']


class CompileCB(Callback):
    """Compiles the model's forward with `torch.compile(**options)` for the length of a fit. The model stays the same
    object, with the same weights, names and hooks. The first batches, and each new batch shape, take seconds to minutes
    longer. If the model cannot be compiled, a warning says why and the fit continues without compilation; `failure` is
    the reason, '' if all went well. Errors of the model itself are raised as usual."""
    order = DeviceCB.order - 1  # before hooks are added, which register themselves as not to be compiled
    _model: Any = None

    def __init__(self, **options: Any) -> None: self.options, self.failure = options, ''

    def before_fit(self, learn: Any) -> None:
        self.failure, self._model, self._own = '', learn.model, vars(learn.model).get('forward')
        self._eager = learn.model.forward
        try: self._compiled = torch.compile(self._eager, **self.options)
        except (RuntimeError, ImportError, OSError) as e: self._give_up(e)
        else: learn.model.forward = self._forward

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        "The compiled forward; after it has failed once, the eager one."
        if self.failure: return self._eager(*args, **kwargs)
        try: return self._compiled(*args, **kwargs)
        except Exception as e:
            if not _from_compiler(e): raise
            failure = e
        out = self._eager(*args, **kwargs)  # raises what the model itself raises
        self._give_up(failure)
        return out

    def _give_up(self, e: Exception) -> None:
        self.failure = reason(e)
        warnings.warn(f"the model cannot be compiled and trains without compilation: {self.failure}", stacklevel=2)

    def cleanup_fit(self, learn: Any) -> None:
        if self._model is None: return
        vars(self._model).pop('forward', None)
        if self._own is not None: self._model.forward = self._own
        self._model = self._own = self._eager = self._compiled = None


def _from_compiler(e: Exception) -> bool:
    "Whether the compiler raised `e`. torch wraps what fails during compilation, but has no public base class for it."
    return type(e).__module__.startswith(('torch._dynamo', 'torch._inductor', 'torch._functorch', 'torch.fx', 'triton'))


def reason(e: BaseException) -> str:
    "An error of the compiler in one line: the type and the first line of the innermost exception."
    inner = getattr(e, 'inner_exception', e)
    first = next((line.strip() for line in str(inner).splitlines() if line.strip()), '')
    return f'{type(inner).__name__}: {first}' if first else type(inner).__name__
