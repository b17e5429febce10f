"Fits that leave no trace: restore a Learner as it was, and replace attributes for a while."
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from miniai.callbacks.trained import loss_modules
from miniai.distributed.dtensor import reshard
from miniai.randomness import host_states, random_states, set_host_states, set_random_states

__all__ = ['dry_run', 'snapshot_of', 'patch']

Undo = Callable[[], Any]


@contextmanager
def dry_run(learn: Any, trains: bool = False) -> Iterator[None]:
    """Within it `learn` may fit, with `learn.dry_run` set; afterwards the Learner, its callbacks, its loaders, the
    random states, and the modes and buffers of every module are as before, as is all of a loss. With `trains` the
    weights and gradients of all modules, and optimizers that stay from fit to fit, are restored too. An object can
    define `snapshot()`, which returns a function that restores the object. For Learners and callbacks without it, all
    attributes are restored."""
    loaders = [dl for nm in ('train', 'valid') if (dl := getattr(learn.dls, nm, None)) is not None]
    attributes = [x for o in (learn, *learn.cbs) for x in getattr(o, '__dict__', {}).values()]
    losses = {*loss_modules(learn).values()}
    modules = {learn.model, *losses, *(x for x in attributes if isinstance(x, nn.Module))}
    undo = [_random(loaders), *map(snapshot_of, (learn, *learn.cbs))]
    undo += [snapshot_of(dl) for dl in loaders if hasattr(dl, 'snapshot')]
    for m in modules: undo += [_modes(m), _tensors(m, trains or m in losses)]
    if trains: undo += map(_optimizer, _kept_optimizers(learn, attributes))
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


def _tensors(module: nn.Module, weights: bool) -> Undo:
    "Buffers, and with `weights` parameters and gradients. Lazy ones have no values yet."
    def tensors() -> dict:
        reshard(module)
        params = module.named_parameters() if weights else ()
        return {nm: x for nm, x in (*params, *module.named_buffers()) if not is_lazy(x)}
    values = {nm: x.detach().clone() for nm, x in tensors().items()}
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in module.parameters()] if weights else ()
    @torch.no_grad()
    def put_back() -> None:
        for nm, x in tensors().items():
            if nm in values: x.copy_(values[nm])
        for p, g in grads: p.grad = None if g is None else g.to(p)
    return put_back


def _kept_optimizers(learn: Any, attributes: list) -> list:
    "The optimizers that the next fit keeps using: not `learn.opt` if there is an `opt_func` to make a new one."
    found = {id(o): o for o in attributes
             if hasattr(type(o), 'step') and hasattr(o, 'param_groups') and hasattr(o, 'state_dict')}
    if learn.opt_func is None and hasattr(learn.opt, 'state_dict'): found[id(learn.opt)] = learn.opt
    else: found.pop(id(learn.opt), None)
    return list(found.values())


def _optimizer(opt: Any) -> Undo:
    state = deepcopy(opt.state_dict())
    return lambda: opt.load_state_dict(state)


def _random(loaders: list) -> Undo:
    "The random states of torch, its devices, numpy and Python, and of the loaders' own generators."
    if torch.cuda.is_available() and not torch.cuda.is_initialized(): restore = partial(set_host_states, host_states())
    else: restore = partial(set_random_states, random_states())
    owners = [o for dl in loaders for o in (dl, getattr(dl, 'sampler', None))]
    own = [(g, g.get_state()) for o in owners if isinstance(g := getattr(o, 'generator', None), torch.Generator)]
    def put_back() -> None:
        restore()
        for g, state in own: g.set_state(state)
    return put_back


def patch(undo: ExitStack, o: Any, name: str, value: Any) -> None:
    "Set an attribute of `o`. `undo` restores the old value, unless the attribute has been set again since."
    before = {name: vars(o)[name]} if name in vars(o) else {}
    def put_back() -> None:
        if vars(o).get(name) is not value: return
        del vars(o)[name]
        vars(o).update(before)
    undo.callback(put_back)
    setattr(o, name, value)
