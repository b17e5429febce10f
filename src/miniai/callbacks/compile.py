"The model compiled by torch.compile while a fit runs, or eager with the reason why. Knows events alone."
import warnings
from collections.abc import Callable
from typing import Any

import torch

from miniai.callbacks.train import DeviceCB
from miniai.events import Callback

__all__ = ['CompileCB']


class CompileCB(Callback):
    """For the length of a fit, the model's forward is compiled by `torch.compile`, which `options` go to. The model
    stays the same object with the same weights, names and hooks. The first batches take seconds to minutes longer, as
    does each new shape of a batch. Where it cannot be compiled, here or for this model, a warning says why, and the fit
    goes on eagerly; `failure` keeps the reason, '' where all went well. What the model itself raises is raised on."""
    order = DeviceCB.order - 1  # before hooks are made, which then know that they are not to be compiled
    _model: Any = None

    def __init__(self, **options: Any) -> None: self.options, self.failure = options, ''

    def before_fit(self, learn: Any) -> None:
        self.failure, self._model, self._own = '', learn.model, vars(learn.model).get('forward')
        self._eager = learn.model.forward
        try: compiled = torch.compile(self._eager, **self.options)
        except (RuntimeError, ImportError, OSError) as e: self._give_up(e)
        else: learn.model.forward = self._guarded(compiled)

    def _guarded(self, compiled: Callable) -> Callable:
        "The compiled forward, until it fails: from then on the eager one, which raises what the model itself raises."
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.failure: return self._eager(*args, **kwargs)
            try: return compiled(*args, **kwargs)
            except Exception as e:
                if not _is_the_compilers(e): raise
                failure = e
            out = self._eager(*args, **kwargs)
            self._give_up(failure)
            return out
        return forward

    def _give_up(self, e: Exception) -> None:
        self.failure = reason(e)
        warnings.warn(f"the model is not compiled, and trains on eagerly: {self.failure}", stacklevel=2)

    def cleanup_fit(self, learn: Any) -> None:
        if self._model is None: return
        vars(self._model).pop('forward', None)
        if self._own is not None: self._model.forward = self._own
        self._model = self._own = self._eager = None


def _is_the_compilers(e: Exception) -> bool:
    "Is an error of a class of the compiler's own? torch wraps what fails while it compiles, and has no public base."
    return type(e).__module__.startswith(('torch._dynamo', 'torch._inductor', 'torch._functorch', 'torch.fx', 'triton'))


def reason(e: BaseException) -> str:
    "What went wrong, in one line: the innermost error's type and the first line that it says."
    inner = getattr(e, 'inner_exception', e)
    said = next((line.strip() for line in str(inner).splitlines() if line.strip()), '')
    return f'{type(inner).__name__}: {said}' if said else type(inner).__name__
