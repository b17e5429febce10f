"Fits that leave no trace: restore a Learner as it was, and replace attributes for a while."
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ['dry_run', 'snapshot_of', 'patch']

Undo = Callable[[], Any]


@contextmanager
def dry_run(learn: Any, trains: bool = False) -> Iterator[None]:
    """Within it `learn` may fit, with `learn.dry_run` set; afterwards the Learner, its callbacks, its loaders and the
    mode of every module are as before. With `trains` the weights, gradients and an optimizer that stays from fit to fit
    are restored too. An object can define `snapshot()`, which returns a function that restores the object. For Learners
    and callbacks without it, all attributes are restored."""
    loaders = [dl for dl in (getattr(learn.dls, nm, None) for nm in ('train', 'valid')) if hasattr(dl, 'snapshot')]
    undo = [_modes(learn.model), *map(snapshot_of, (learn, *learn.cbs, *loaders))]
    if trains: undo += [_tensors(learn.model), _optimizer(learn)]
    learn.cbs, learn.dry_run = list(learn.cbs), True
    try: yield
    finally:
        for put_back in reversed(undo): put_back()
        learn.cbs = learn.cbs  # its listeners are looked up again


def snapshot_of(o: Any) -> Undo:
    "A function that restores `o` as it is now."
    if hasattr(o, 'snapshot'): return o.snapshot()
    saved = dict(getattr(o, '__dict__', {}))
    def put_back() -> None:
        if not hasattr(o, '__dict__'): return
        vars(o).clear()
        vars(o).update(saved)
    return put_back


def _modes(model: nn.Module) -> Undo:
    modes = [(m, m.training) for m in model.modules()]
    def put_back() -> None:
        for m, training in modes: m.training = training
    return put_back


def _tensors(model: nn.Module) -> Undo:
    "Parameters, gradients and buffers. Lazy ones have no values yet."
    def tensors() -> dict: return {nm: x for nm, x in (*model.named_parameters(), *model.named_buffers())
                                   if not is_lazy(x)}
    values = {nm: x.detach().clone() for nm, x in tensors().items()}
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    @torch.no_grad()
    def put_back() -> None:
        for nm, x in tensors().items():
            if nm in values: x.copy_(values[nm])
        for p, g in grads: p.grad = None if g is None else g.to(p)
    return put_back


def _optimizer(learn: Any) -> Undo:
    "The state of an optimizer that the next fit keeps using, because there is no `opt_func` to make a new one."
    opt = learn.opt
    if learn.opt_func is not None or not hasattr(opt, 'state_dict'): return lambda: None
    state = deepcopy(opt.state_dict())
    return lambda: opt.load_state_dict(state)


def patch(undo: ExitStack, o: Any, name: str, value: Any) -> None:
    "Set an attribute of `o`. `undo` restores the old value, unless the attribute has been set again since."
    before = {name: vars(o)[name]} if name in vars(o) else {}
    def put_back() -> None:
        if vars(o).get(name) is not value: return
        del vars(o)[name]
        vars(o).update(before)
    undo.callback(put_back)
    setattr(o, name, value)
