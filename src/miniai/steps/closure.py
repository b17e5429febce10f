"Optimizers whose step evaluates the batch again by a closure, such as LBFGS."
import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from types import MethodType
from typing import Any

from torch import Tensor

from miniai.callbacks.accumulate import AccumulateCB
from miniai.callbacks.dry_run import patch
from miniai.callbacks.precision import MixedPrecision
from miniai.events import Callback
from miniai.optim.optimizer import inner_optimizer

__all__ = ['ClosureCB', 'closure_need']


class ClosureCB(Callback):
    """Gives the optimizer's `step()` a closure for the length of a fit, if it needs one, or may use one and is not from
    torch or miniai. The closure repeats `predict` to `after_backward` for the batch. `learn.preds` and `learn.loss`
    stay those from before the step. Every fit adds it. ValueError with callbacks that a closure cannot repeat."""
    order, only_shows = math.inf, True
    def __init__(self) -> None: self._undo = ExitStack()

    def before_fit(self, learn: Any) -> None:
        need = closure_need(inner_optimizer(learn.opt)) if learn.trains else None
        if need is None: return
        names = [type(cb).__name__ for cb in learn.cbs if isinstance(cb, AccumulateCB | MixedPrecision)]
        if names and need == 'must':
            raise ValueError(f"{type(inner_optimizer(learn.opt)).__name__} evaluates a batch several times in a step, "
                             f"which {' and '.join(names)} cannot repeat: remove it, or use another optimizer")
        if names: return
        step = learn.opt.step
        @wraps(step)  # with the mark that a schedule leaves there
        def step_with_closure(opt: Any, closure: Callable[[], Any] | None = None) -> Any:
            if closure is not None: return step(closure)
            before = learn.preds, learn.loss
            out = step(_closure(learn))
            (learn.preds, learn.loss), learn.skip_backward = before, False
            return out
        patch(self._undo, learn.opt, 'step', MethodType(step_with_closure, learn.opt))

    def cleanup_fit(self, learn: Any) -> None: self._undo.close()


def closure_need(opt: Any) -> str | None:
    "'must' if the optimizer's step needs a closure, 'may' if it may use one and is not from torch or miniai."
    step = getattr(type(opt), 'step', None)
    try: closure = inspect.signature(step).parameters.get('closure')
    except (TypeError, ValueError): return None
    if closure is None: return None
    if closure.default is closure.empty: return 'must'
    return None if step.__module__.startswith(('torch.', 'miniai.')) else 'may'


def _closure(learn: Any) -> Callable[[], Tensor]:
    "Evaluates the batch again; not at its first call if weights and gradients are still those of the batch."
    params = [p for g in learn.opt.param_groups for p in g['params']]
    def versions() -> list: return [x if x is None else (id(x), x._version) for p in params for x in (p, p.grad)]
    known = versions()
    def closure() -> Tensor:
        nonlocal known
        fresh, known = known == versions(), None
        if fresh: return learn.loss
        pass_again(learn)
        learn.callback('after_backward')
        return learn.loss
    return closure


def pass_again(learn: Any) -> None:
    "Run the batch again, from `predict` to `backward`, with gradients that start at zero."
    learn.opt.zero_grad()
    learn.predict()
    learn.callback('after_predict')
    learn.get_loss()
    learn.callback('after_loss')
    learn.backward()
