"Save and restore the state of a run as a tree: model, optimizer, schedules, records, random states."
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


class ResumeError(ValueError): "A run cannot resume from a checkpoint; the message says why."


# The parts of a run

def named_loaders(learn: Any) -> list[tuple[str, Any]]:
    "The training and validation loaders, with names; the second is None if there is no validation loader."
    return [('training data', learn.dls.train), ('validation data', getattr(learn.dls, 'valid', None))]


def loaders_of(learn: Any) -> list:
    "The training loader and, if there is one, the validation loader."
    return [dl for _, dl in named_loaders(learn) if dl is not None]


def stateful_callbacks(learn: Any) -> Iterator[tuple[str, Any]]:
    "The callbacks with `state_dict` and `load_state_dict`, named by class and number, such as 'RecorderCB 1'."
    counts: dict[str, int] = {}
    for cb in learn.cbs:
        nm = type(cb).__name__
        counts[nm] = counts.get(nm, 0) + 1
        if callable(getattr(cb, 'state_dict', None)) and callable(getattr(cb, 'load_state_dict', None)):
            yield f'{nm} {counts[nm]}', cb


def generators_in_callbacks(learn: Any) -> list[tuple[str, Any]]:
    "Random generators inside callbacks, with their paths, except those of the Learner, its parts and its data."
    data = [x for dl in loaders_of(learn) for x in (dl, getattr(dl, 'dataset', None), *samplers_of(dl))]
    others = learn, learn.model, learn.opt, learn.dls, *data
    return [(f'{type(cb).__name__}.{nm}', g) for cb in learn.cbs for nm, g in generators_of(cb, True, others)]


def _other_params(learn: Any) -> list[Tensor]:
    "The optimizer's parameters that are not the model's, such as those of a loss function."
    own = {id(p) for p in learn.model.parameters()}
    return [p for g in learn.opt.param_groups for p in g['params'] if id(p) not in own]


def _extras_of(learn: Any) -> dict[str, nn.Module | Optimizer]:
    "The modules and optimizers among a Learner's attributes, besides model, loss function and optimizer."
    known = learn.model, learn.loss_func, learn.opt
    return {nm: x for nm, x in vars(learn).items()
            if isinstance(x, nn.Module | Optimizer) and not any(x is o for o in known)}


def _module_of(loss_func: Any) -> nn.Module | None:
    "The module that a loss function is, is a method of, or is a `partial` of."
    if isinstance(loss_func, partial): return _module_of(loss_func.func)
    if isinstance(loss_func, MethodType): loss_func = loss_func.__self__
    return loss_func if isinstance(loss_func, nn.Module) else None


def device_of(model: nn.Module) -> str:
    "The type of device that a model's parameters are on."
    return next((p.device.type for p in model.parameters()), 'cpu')


# Taking the state

def run_state(learn: Any) -> dict[str, Any]:
    "Everything that the rest of the run depends on. Its tensors are the run's own, not copies."
    model = dict(learn.model.state_dict())
    return dict(
        model=model, buffers=_unsaved_buffers(learn.model, model), grads=_gradients(learn.model),
        other_mode=[nm for nm, m in learn.model.named_modules() if m.training != learn.model.training],
        frozen=_frozen(learn.model), loss=_extra_state(_module_of(learn.loss_func)),
        extras={nm: _extra_state(x) for nm, x in _extras_of(learn).items()},
        other_params=[dict(value=p.detach(), grad=_packed(p.grad)) for p in _other_params(learn)],
        opt=learn.opt.state_dict(), skipped=getattr(learn.opt, 'skipped', None), history=learn.history,
        records={nm: cb.state_dict() for nm, cb in stateful_callbacks(learn)}, **random_state(learn))


def random_state(learn: Any) -> dict[str, Any]:
    "All random states, and the loaders' states."
    return dict(random=random_states(), generators=[state_of(g) for _, g in generators_in_callbacks(learn)],
                loaders=[loader_state(dl) for dl in loaders_of(learn)])


def _extra_state(x: nn.Module | Optimizer | None) -> dict[str, Any] | None:
    if x is None: return None
    state = dict(kind=type(x).__name__, state=dict(x.state_dict()))
    if isinstance(x, Optimizer): return state
    return state | dict(buffers=_unsaved_buffers(x, state['state']), grads=_gradients(x), frozen=_frozen(x),
                        training=[nm for nm, m in x.named_modules() if m.training])


def _unsaved_buffers(module: nn.Module, state: dict[str, Any]) -> dict[str, Tensor]:
    return {nm: x for nm, x in module.named_buffers() if nm not in state}


def _frozen(module: nn.Module) -> list[str]: return [nm for nm, p in module.named_parameters() if not p.requires_grad]


def _gradients(module: nn.Module) -> dict[str, Any]:
    return {nm: _packed(p.grad) for nm, p in module.named_parameters() if p.grad is not None}


def _packed(g: Tensor | None) -> Any:
    "A dense gradient as it is; a sparse one as a dict of its parts."
    if g is None or g.layout is torch.strided: return g
    return dict(indices=g._indices(), values=g._values(), shape=list(g.shape), coalesced=g.is_coalesced())


def check_savable(learn: Any) -> None:
    "TypeError or ValueError, naming the place, if part of the run cannot be saved."
    lacks = [nm for nm in ('param_groups', 'state_dict', 'load_state_dict') if not hasattr(learn.opt, nm)]
    if lacks: raise TypeError(f"CheckpointCB saves the optimizer's state, but {type(learn.opt).__name__} has no "
                              f"{' or '.join(lacks)}: use a torch.optim.Optimizer, or add what is missing")
    named = [*learn.model.named_parameters(), *learn.model.named_buffers()]
    lazy = [nm for nm, x in named if is_lazy(x)]
    if lazy: raise ValueError(f"{lazy[0]!r} has no shape yet: run a batch through the model before a fit with a "
                              f"CheckpointCB")
    flatten(run_state(learn))


# Restoring it

@torch.no_grad()
def restore_run(learn: Any, state: dict[str, Any]) -> None:
    "Restore what `run_state` returned, except the callbacks' records."
    _restore_module(learn.model, dict(state=state['model'], **{k: state[k] for k in ('buffers', 'grads', 'frozen')}))
    for nm, m in learn.model.named_modules(): m.training = learn.model.training != (nm in state['other_mode'])
    if state['loss'] is not None: _restore_extra(_module_of(learn.loss_func), state['loss'])
    for nm, x in _extras_of(learn).items():
        if nm in state['extras']: _restore_extra(x, state['extras'][nm])
    for p, saved in zip(_other_params(learn), state['other_params'], strict=True):
        p.copy_(saved['value'])
        _set_gradient(p, saved['grad'])
    _load_in_place(learn.opt, state['opt'])
    if state['skipped'] is not None: learn.opt.skipped = state['skipped']
    learn.history[:] = state['history']
    for dl, s in zip(loaders_of(learn), (state['begun'] or state)['loaders'], strict=True): set_workers(dl, s)
    for (_, g), s in zip(generators_in_callbacks(learn), state['generators'], strict=True): set_state_of(g, s)
    for dl, s in zip(loaders_of(learn), state['loaders'], strict=True): set_loader_state(dl, s)
    set_random_states(state['random'])


def _restore_extra(x: nn.Module | Optimizer, state: dict[str, Any]) -> None:
    if isinstance(x, Optimizer): return _load_in_place(x, state['state'])
    _restore_module(x, state)
    for nm, m in x.named_modules(): m.training = nm in state['training']


def _restore_module(module: nn.Module, state: dict[str, Any]) -> None:
    for nm, p in module.named_parameters(): p.requires_grad_(nm not in state['frozen'])
    module.load_state_dict(state['state'])
    for nm, x in state['buffers'].items():
        owner, _, name = nm.rpartition('.')
        buffers = module.get_submodule(owner)._buffers
        if buffers.get(name) is not None and buffers[name].shape == x.shape: buffers[name].copy_(x)
        else: module.get_submodule(owner).register_buffer(name, x.to(device_of(module)), persistent=False)
    for nm, p in module.named_parameters(): _set_gradient(p, state['grads'].get(nm))


def _set_gradient(p: Tensor, g: Any) -> None: p.grad = None if g is None else _unpacked(g).to(p.device, copy=True)


def _unpacked(g: Tensor | dict[str, Any]) -> Tensor:
    if isinstance(g, Tensor): return g
    return torch.sparse_coo_tensor(g['indices'], g['values'], g['shape'], is_coalesced=g['coalesced'],
                                   check_invariants=True)


def _load_in_place(opt: Any, state: dict[str, Any]) -> None:
    "Load an optimizer's state into its existing groups, which callbacks and schedules may hold on to."
    groups = opt.param_groups
    opt.load_state_dict(state)
    for old, new in zip(groups, opt.param_groups, strict=True):
        old.clear()
        old.update(new)
    opt.param_groups = groups


def restore_callbacks(learn: Any, state: dict[str, Any]) -> None:
    "Restore the callbacks' records. ResumeError if a callback refuses its own; then all keep what they had."
    callbacks, saved = list(stateful_callbacks(learn)), deepcopy(state['records'])
    before = deepcopy({nm: cb.state_dict() for nm, cb in callbacks})
    for nm, cb in callbacks:
        try: cb.load_state_dict(saved[nm])
        except Exception as e:
            for other, cb in callbacks: cb.load_state_dict(before[other])
            why = str(e) if isinstance(e, ValueError) else f'{type(e).__name__}: {e}'
            raise ResumeError(f"cannot resume: {nm} refuses its saved state: {why}") from e
