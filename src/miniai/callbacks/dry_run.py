"""Leave a Learner as it was: after looks that must not train, and after methods put in the place of its own.
Knows what a Learner keeps, not the loop."""
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

__all__ = ['as_it_was', 'records_as_they_were', 'patch']

_KEPT = ('opt', 'history', 'metrics', 'dls', 'lr', 'opt_func', 'loss_func', 'model', '_cbs', 'epoch', 'epochs',
         'n_epochs', 'iter', 'dl', 'preds', 'loss', 'trains', 'dry_run')


@contextmanager
def records_as_they_were(learn: Any) -> Iterator[None]:
    """Within it `learn` may fit; after it its attributes, its callbacks' records, its loaders' places and the mode of
    each of its modules, training or not, are as before. `learn.dry_run` is True meanwhile."""
    modes = [(m, m.training) for m in learn.model.modules()]
    own = {k: vars(learn)[k] for k in _KEPT if k in vars(learn)}
    records = [(cb, dict(vars(cb))) for cb in learn.cbs if hasattr(cb, '__dict__')]
    loaders = [dl for dl in (getattr(learn.dls, nm, None) for nm in ('train', 'valid')) if hasattr(dl, 'epoch')]
    epochs = [dl.epoch for dl in loaders]
    learn.cbs, learn.dry_run = list(learn.cbs), True
    try: yield
    finally:
        for k in _KEPT: vars(learn).pop(k, None)
        vars(learn).update(own)
        learn.cbs = learn._cbs
        for cb, record in records:
            vars(cb).clear()
            vars(cb).update(record)
        for dl, epoch in zip(loaders, epochs, strict=True): dl.epoch = epoch
        for m, training in modes: m.training = training


@contextmanager
def as_it_was(learn: Any) -> Iterator[None]:
    "Within it `learn` may train; after it model, its mode, the optimizer and all records are what they were before."
    model, state = learn.model, _state_of(learn.model)
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    opt_state = deepcopy(learn.opt.state_dict()) if _keeps_optimizer(learn) else None
    try:
        with records_as_they_were(learn): yield
    finally:
        _restore(model, state)
        for p, g in grads: p.grad = None if g is None else g.to(p)
        if opt_state is not None: learn.opt.load_state_dict(opt_state)


def _keeps_optimizer(learn: Any) -> bool:
    "Will the next fit step the optimizer that is there, rather than a new one?"
    return learn.opt_func is None and hasattr(learn.opt, 'state_dict')


def _tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    "Parameters and buffers, those that are not saved too; not those of lazy modules, which have no values yet."
    return {nm: x for nm, x in (*model.named_parameters(), *model.named_buffers()) if not is_lazy(x)}


def _state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {nm: x.detach().clone() for nm, x in _tensors_of(model).items()}


@torch.no_grad()
def _restore(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for nm, x in _tensors_of(model).items():
        if nm in state: x.copy_(state[nm])


def patch(undo: ExitStack, o: Any, name: str, value: Any) -> None:
    "Set an attribute of `o`; `undo` puts back what was there, unless somebody has set it since."
    kept = {name: vars(o)[name]} if name in vars(o) else {}
    undo.callback(_put_back, o, name, value, kept)
    setattr(o, name, value)


def _put_back(o: Any, name: str, value: Any, kept: dict[str, Any]) -> None:
    if vars(o).get(name) is not value: return
    del vars(o)[name]
    vars(o).update(kept)
