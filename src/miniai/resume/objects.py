"The states of objects in a run: modules, optimizers, random generators, and anything with a state_dict."
import random
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.parameter import is_lazy

from miniai.distributed.ranks import is_first
from miniai.distributed.wrap import class_of
from miniai.optim.state_dict import own_group
from miniai.optim.zero import is_zero
from miniai.randomness import python_state, set_python_state
from miniai.resume.packing import pack_dense, unpack_dense
from miniai.resume.walk import Node

__all__ = ['state_of', 'restore_state', 'shape_of', 'device_of', 'misfit', 'check_savable']


def device_of(model: nn.Module) -> str:
    "The type of device that a model's parameters are on."
    return next((p.device.type for p in model.parameters()), 'cpu')


def check_savable(learn: Any) -> None:
    "TypeError or ValueError, naming the place, if model or optimizer cannot be saved."
    lacks = [nm for nm in ('param_groups', 'state_dict', 'load_state_dict') if not hasattr(learn.opt, nm)]
    if lacks: raise TypeError(f"CheckpointCB saves the optimizer's state, but {type(learn.opt).__name__} has no "
                              f"{' or '.join(lacks)}: use a torch.optim.Optimizer, or add what is missing")
    named = [*learn.model.named_parameters(), *learn.model.named_buffers()]
    lazy = [nm for nm, x in named if is_lazy(x)]
    if lazy: raise ValueError(f"{lazy[0]!r} has no shape yet: run a batch through the model before a fit with a "
                              f"CheckpointCB")


def state_of(node: Node) -> Any:
    "The state of a module, optimizer, generator, or of an object with a state_dict. Tensors are not copied."
    if node.kind == 'module': return _module_state(node.object)
    if node.kind == 'generator': return dict(kind=_kind_of(node.object), state=_generator_state(node.object))
    return _state_of_zero(node.object) if is_zero(node.object) else node.object.state_dict()


def restore_state(node: Node, state: Any) -> None:
    "Restore what `state_of` returned."
    if node.kind == 'module': _restore_module(node.object, state)
    elif node.kind == 'generator': _set_generator(node.object, state['state'])
    elif node.kind == 'optimizer': _load_in_place(node.object, state)
    else: node.object.load_state_dict(deepcopy(state))  # torch's CyclicLR takes parts out of it


def shape_of(node: Node, names: dict[int, str]) -> dict[str, str]:
    """What must be the same about an object for a state to fit: classes and shapes in a module, parameters in the
    groups of an optimizer, the kind of a generator. `names` are the paths of the modules' parameters, by id."""
    if node.kind == 'module':
        classes = {f'{nm}.class'.strip('.'): class_of(m).__qualname__ for nm, m in node.object.named_modules()}
        return classes | _shapes(node.object.state_dict())
    if node.kind == 'generator': return {'': _kind_of(node.object)}
    if node.kind != 'optimizer': return {}
    return {f'group {i}, parameter {k}': names.get(id(p), f'a tensor {_described(p)}')
            for i, g in enumerate(node.object.param_groups) for k, p in enumerate(g['params'])}


def _described(x: Any) -> str:
    return f'{tuple(x.shape)} {str(x.dtype)[6:]}' if isinstance(x, Tensor) else type(x).__name__


def misfit(node: Node, state: Any) -> str:
    "Why a state does not fit an object of the right shape, as in a file with false content; '' if it fits."
    try:
        if node.kind == 'generator': return _misfit_of_generator(node.object, state)
        if node.kind == 'module': return _misfit_of_module(node.object, state)
        if node.kind == 'optimizer': return _misfit_of_optimizer(node.object, state)
    except Exception as e: return f'{type(e).__name__}: {e}'
    return ''


# Modules

def _module_state(m: nn.Module) -> dict[str, Any]:
    state = dict(m.state_dict())
    return dict(state=state, buffers={nm: x for nm, x in m.named_buffers() if nm not in state},
                grads={nm: pack_dense(p.grad) for nm, p in m.named_parameters() if p.grad is not None},
                frozen=[nm for nm, p in m.named_parameters() if not p.requires_grad],
                training=[nm for nm, part in m.named_modules() if part.training])


@torch.no_grad()
def _restore_module(module: nn.Module, state: dict[str, Any]) -> None:
    for nm, p in module.named_parameters(): p.requires_grad_(nm not in state['frozen'])
    module.load_state_dict(state['state'])
    for nm, x in state['buffers'].items():
        owner, _, name = nm.rpartition('.')
        buffers = module.get_submodule(owner)._buffers
        if buffers.get(name) is not None and buffers[name].shape == x.shape: buffers[name].copy_(x)
        else: module.get_submodule(owner).register_buffer(name, x.to(device_of(module), copy=True), persistent=False)
    for nm, p in module.named_parameters():
        g = unpack_dense(state['grads'].get(nm))
        p.grad = None if g is None else g.to(p.device, copy=True)
    for nm, m in module.named_modules(): m.training = nm in state['training']


def _misfit_of_module(m: nn.Module, state: dict[str, Any]) -> str:
    there, saved = (_shapes(s) for s in (m.state_dict(), state['state']))
    if there != saved: return f'{min(there.items() ^ saved.items())[0]} differs'
    params = dict(m.named_parameters())
    for nm, g in state['grads'].items():
        if tuple(unpack_dense(g).shape) != tuple(params[nm].shape): return f'the gradient of {nm} has another shape'
    for nm in state['buffers']: m.get_submodule(nm.rpartition('.')[0])
    return '' if {*state['frozen']} <= params.keys() and isinstance(state['training'], list) else 'unknown parameters'


def _shapes(state: dict[str, Any]) -> dict[str, str]: return {nm: _described(x) for nm, x in state.items()}


# Optimizers

def _state_of_zero(opt: Any) -> dict[str, Any]:
    "That of a ZeroRedundancyOptimizer, put together by all processes for the first one, which writes."
    opt.consolidate_state_dict()
    return opt.state_dict() if is_first() else {}


def _loadable_in_zero(opt: Any, state: dict[str, Any]) -> dict[str, Any]:
    "A copy for a ZeroRedundancyOptimizer, which takes parts out, and copies groups as they are into the one inside."
    groups = zip(state['param_groups'], opt.param_groups, strict=True)
    ours = hasattr(opt.optim, 'rule_of')
    return dict(state=dict(state['state']), param_groups=[own_group(opt.optim, *pair) if ours else pair[0]
                                                          for pair in groups])


def _load_in_place(opt: Any, state: dict[str, Any]) -> None:
    "Load an optimizer's state into its existing groups, which callbacks and schedules may hold on to."
    groups = opt.param_groups
    opt.load_state_dict(_loadable_in_zero(opt, state) if is_zero(opt) else state)
    for old, new in zip(groups, opt.param_groups, strict=True):
        if old is new: continue
        old.clear()
        old.update(new)
    if opt.param_groups is not groups: opt.param_groups = groups


def _misfit_of_optimizer(opt: Any, state: dict[str, Any]) -> str:
    sizes = [[len(g['params']) for g in groups] for groups in (opt.param_groups, state['param_groups'])]
    if sizes[0] != sizes[1]: return f'its groups have {sizes[1]} parameters, not {sizes[0]}'
    return '' if all(isinstance(x, dict) for x in state['state'].values()) else 'its state has wrong values'


# Random generators

def _kind_of(g: Any) -> str:
    "What a generator must be for a state to fit: its class, and its device or bit generator."
    if isinstance(g, Generator): return f'torch.Generator on {g.device.type}'
    if isinstance(g, random.Random): return f'random.Random of version {g.VERSION}'
    name = 'Generator' if isinstance(g, np.random.Generator) else 'RandomState'
    return f"numpy's {name} of {_numpy_state(g)['bit_generator']}"


def _misfit_of_generator(g: Any, state: dict[str, Any]) -> str:
    if state['kind'] != _kind_of(g): return f"it is the state of a {state['kind']}, not a {_kind_of(g)}"
    _set_generator(g.clone_state() if isinstance(g, Generator) else deepcopy(g), state['state'])
    return ''


def _numpy_state(g: np.random.Generator | np.random.RandomState) -> dict[str, Any]:
    return g.bit_generator.state if isinstance(g, np.random.Generator) else g.get_state(legacy=False)


def _generator_state(g: Any) -> Any:
    if isinstance(g, Generator): return g.get_state()
    return python_state(g) if isinstance(g, random.Random) else _numpy_state(g)


def _set_generator(g: Any, state: Any) -> None:
    if isinstance(g, Generator): g.set_state(state)
    elif isinstance(g, random.Random): set_python_state(g, *state)
    elif isinstance(g, np.random.Generator): g.bit_generator.state = state
    else: g.set_state(state)
