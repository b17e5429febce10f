"""What a run is made of, as a tree of values and tensors, and back: model, optimizer, schedules, records, random
states. Knows what a Learner keeps, no files."""
from collections.abc import Iterator
from copy import deepcopy
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from miniai.checkpoint.tree import flatten
from miniai.randomness import random_states, set_random_states
from miniai.resume.generators import generators_of, set_state_of, state_of
from miniai.resume.loader import loader_state, samplers_of, set_loader_state, set_workers

__all__ = ['ResumeError', 'loaders_of', 'named_loaders', 'stateful_callbacks', 'generators_in_callbacks', 'run_state',
           'restore_run', 'restore_callbacks', 'random_state', 'check_savable', 'device_of']


class ResumeError(ValueError): "A run cannot go on from a checkpoint: they differ, and the message says in what."


def run_state(learn: Any) -> dict[str, Any]:
    "Everything that a later step depends on. Tensors are the run's own, not copies."
    model = dict(learn.model.state_dict())
    return dict(
        model=model, unsaved=_unsaved(learn.model, model), grads=_gradients(learn.model), still=_still(learn.model),
        frozen=_frozen(learn.model), loss=_state_of(_module_in(learn.loss_func)),
        extras={nm: _state_of(x) for nm, x in _extras_of(learn).items()},
        others=[dict(value=p.detach(), grad=_packed(p.grad)) for p in _others(learn)], opt=learn.opt.state_dict(),
        skipped=getattr(learn.opt, 'skipped', None), history=learn.history, records=_records(learn),
        **random_state(learn))


def random_state(learn: Any) -> dict[str, Any]:
    "Random states and the loaders' own, as they are now."
    return dict(random=random_states(), generators=[state_of(g) for g in _generators(learn)],
                loaders=[loader_state(dl) for dl in loaders_of(learn)])


def loaders_of(learn: Any) -> list:
    "The loaders of training and, where there is one, of validation."
    return [dl for _, dl in named_loaders(learn) if dl is not None]


def named_loaders(learn: Any) -> list[tuple[str, Any]]:
    "What each is called, and the loader, or None."
    return [('training data', learn.dls.train), ('validation data', getattr(learn.dls, 'valid', None))]


def _generators(learn: Any) -> list: return [g for _, g in generators_in_callbacks(learn)]


def generators_in_callbacks(learn: Any) -> list[tuple[str, Any]]:
    "Those that callbacks hold, however deep, with where; the Learner, its data and its parts are no callback's."
    data = [x for dl in loaders_of(learn) for x in (dl, getattr(dl, 'dataset', None), *samplers_of(dl))]
    others = learn, learn.model, learn.opt, learn.dls, *data
    return [(f'{type(cb).__name__}.{nm}', g) for cb in learn.cbs for nm, g in generators_of(cb, True, others)]


def _others(learn: Any) -> list[Tensor]:
    "The optimizer's parameters that are not the model's, such as those of a loss function."
    ours = {id(p) for p in learn.model.parameters()}
    return [p for g in learn.opt.param_groups for p in g['params'] if id(p) not in ours]


def _extras_of(learn: Any) -> dict[str, nn.Module | Optimizer]:
    "The modules and optimizers that a Learner has as attributes beside model, loss function and optimizer."
    known = learn.model, learn.loss_func, learn.opt
    return {nm: x for nm, x in vars(learn).items()
            if isinstance(x, nn.Module | Optimizer) and not any(x is o for o in known)}


def _module_in(f: Any) -> nn.Module | None:
    "The module that a loss function is, is a method of, or is a `partial` of."
    if isinstance(f, partial): return _module_in(f.func)
    if isinstance(f, MethodType): f = f.__self__
    return f if isinstance(f, nn.Module) else None


def _state_of(x: nn.Module | Optimizer | None) -> dict[str, Any] | None:
    if x is None: return None
    state = dict(kind=type(x).__name__, state=dict(x.state_dict()))
    if isinstance(x, Optimizer): return state
    return state | dict(unsaved=_unsaved(x, state['state']), grads=_gradients(x), frozen=_frozen(x),
                        training=[nm for nm, m in x.named_modules() if m.training])


def _unsaved(module: nn.Module, state: dict[str, Any]) -> dict[str, Tensor]:
    return {nm: x for nm, x in module.named_buffers() if nm not in state}


def _frozen(module: nn.Module) -> list[str]: return [nm for nm, p in module.named_parameters() if not p.requires_grad]


def _still(model: nn.Module) -> list[str]:
    "The modules that are in another mode, training or not, than the model."
    return [nm for nm, m in model.named_modules() if m.training != model.training]


def _gradients(model: nn.Module) -> dict[str, Any]:
    return {nm: _packed(p.grad) for nm, p in model.named_parameters() if p.grad is not None}


def _packed(g: Tensor | None) -> Any:
    "A gradient, or the parts of a sparse one."
    if g is None or g.layout is torch.strided: return g
    return dict(indices=g._indices(), values=g._values(), shape=list(g.shape), coalesced=g.is_coalesced())


def stateful_callbacks(learn: Any) -> Iterator[tuple[str, Any]]:
    "Callbacks with a state of their own, by class and place among those of it."
    seen: dict[str, int] = {}
    for cb in learn.cbs:
        nm = type(cb).__name__
        seen[nm] = seen.get(nm, 0) + 1
        if callable(getattr(cb, 'state_dict', None)) and callable(getattr(cb, 'load_state_dict', None)):
            yield f'{nm} {seen[nm]}', cb


def _records(learn: Any) -> dict[str, Any]: return {nm: cb.state_dict() for nm, cb in stateful_callbacks(learn)}


def check_savable(learn: Any) -> None:
    "TypeError, naming the place, where the run has what a checkpoint cannot hold, or an optimizer without a state."
    lacks = [nm for nm in ('param_groups', 'state_dict', 'load_state_dict') if not hasattr(learn.opt, nm)]
    if lacks: raise TypeError(f"a run is saved with its optimizer's state, and {type(learn.opt).__name__} has no "
                              f"{' or '.join(lacks)}: give it these, as torch.optim.Optimizer has them")
    named = [*learn.model.named_parameters(), *learn.model.named_buffers()]
    lazy = [nm for nm, x in named if is_lazy(x)]
    if lazy: raise ValueError(f"{lazy[0]!r} has no shape yet: run a batch through the model before a fit that is saved")
    flatten(run_state(learn))


@torch.no_grad()
def restore_run(learn: Any, state: dict[str, Any]) -> None:
    "Put back what `run_state` gave, records aside."
    _set_module(learn.model, dict(state=state['model'], **{k: state[k] for k in ('unsaved', 'grads', 'frozen')}))
    for nm, m in learn.model.named_modules(): m.training = learn.model.training != (nm in state['still'])
    if state['loss'] is not None: _set_extra(_module_in(learn.loss_func), state['loss'])
    for nm, x in _extras_of(learn).items():
        if nm in state['extras']: _set_extra(x, state['extras'][nm])
    for p, other in zip(_others(learn), state['others'], strict=True):
        p.copy_(other['value'])
        _set_gradient(p, other['grad'])
    _load_in_place(learn.opt, state['opt'])
    if state['skipped'] is not None: learn.opt.skipped = state['skipped']
    learn.history[:] = state['history']
    for dl, s in zip(loaders_of(learn), (state['begun'] or state)['loaders'], strict=True): set_workers(dl, s)
    for g, s in zip(_generators(learn), state['generators'], strict=True): set_state_of(g, s)
    for dl, s in zip(loaders_of(learn), state['loaders'], strict=True): set_loader_state(dl, s)
    set_random_states(state['random'])


def _set_extra(x: nn.Module | Optimizer, state: dict[str, Any]) -> None:
    if isinstance(x, Optimizer): return _load_in_place(x, state['state'])
    _set_module(x, state)
    for nm, m in x.named_modules(): m.training = nm in state['training']


def _set_module(module: nn.Module, state: dict[str, Any]) -> None:
    for nm, p in module.named_parameters(): p.requires_grad_(nm not in state['frozen'])
    module.load_state_dict(state['state'])
    for nm, x in state['unsaved'].items(): _set_buffer(module, nm, x)
    for nm, p in module.named_parameters(): _set_gradient(p, state['grads'].get(nm))


def _set_gradient(p: Tensor, g: Any) -> None: p.grad = None if g is None else _unpacked(g).to(p.device, copy=True)


def _unpacked(g: Tensor | dict[str, Any]) -> Tensor:
    if isinstance(g, Tensor): return g
    return torch.sparse_coo_tensor(g['indices'], g['values'], g['shape'], is_coalesced=g['coalesced'],
                                   check_invariants=True)


def _set_buffer(model: nn.Module, name: str, x: Tensor) -> None:
    "Give a buffer that no state_dict has its values, or make it: a forward may have made it, or have let it grow."
    owner, _, leaf = name.rpartition('.')
    module = model.get_submodule(owner)
    there = module._buffers.get(leaf)
    if there is not None and there.shape == x.shape: there.copy_(x)
    else: module.register_buffer(leaf, x.to(device_of(model)), persistent=False)


def _load_in_place(opt: Any, state: dict[str, Any]) -> None:
    "Load an optimizer's state into the very groups that callbacks and schedules may hold."
    groups = opt.param_groups
    opt.load_state_dict(state)
    for old, new in zip(groups, opt.param_groups, strict=True):
        old.clear()
        old.update(new)
    opt.param_groups = groups


def restore_callbacks(learn: Any, state: dict[str, Any]) -> None:
    "Give callbacks back what they had recorded. ResumeError where one cannot take it; then all keep what they had."
    before, saved = deepcopy(_records(learn)), deepcopy(state['records'])
    for nm, cb in stateful_callbacks(learn):
        try: cb.load_state_dict(saved[nm])
        except Exception as e:
            for old, other in stateful_callbacks(learn): other.load_state_dict(before[old])
            raise ResumeError(f"the run cannot go on: {nm} takes back no such records: {_said(e)}") from e


def _said(e: Exception) -> str: return str(e) if isinstance(e, ValueError) else f'{type(e).__name__}: {e}'


def device_of(model: nn.Module) -> str:
    "The kind of device that a model's parameters are on."
    return next((p.device.type for p in model.parameters()), 'cpu')
