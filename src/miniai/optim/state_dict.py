"Loading a state_dict into an optimizer: what fits, and states restored in their own precision."
from functools import cache
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from miniai.kernels.packed import is_packed, unpacked
from miniai.optim.slot import new_state, state_shape, store
from miniai.optim.stages import program

__all__ = ['check_loadable', 'own_group', 'restore_states', 'unpacked_states']

_FLAGS = 'rule', 'decoupled_weight_decay', 'maximize', 'foreach', 'capturable', 'differentiable', 'fused'


def check_loadable(opt: Any, state_dict: dict[str, Any]) -> None:
    """ValueError if a group has another rule, other mathematics or another kind of decay, or if a state is missing or
    has another shape. Torch checks the sizes of the groups."""
    for k, (saved, group) in enumerate(zip(state_dict['param_groups'], opt.param_groups, strict=False)):
        _check_group(opt, k, saved, opt.rule_of(group))
    for k, (p, rule, saved) in enumerate(_parameters(opt, state_dict)):
        for s in program(rule.spec, opt.stages).states:
            _check_state(k, rule.state_name(s), saved, state_shape(p, rule, s))
        for s in (*program(rule.spec, opt.stages).scalars, 'step'): _check_number(k, rule.state_name(s), saved)


def _parameters(opt: Any, state_dict: dict[str, Any]) -> list[tuple[Tensor, type, dict[str, Any]]]:
    "Each parameter that has a saved state, with its rule's class and that state."
    ours = [(p, opt.rule_of(g)) for g in opt.param_groups for p in g['params']]
    ids = [i for g in state_dict['param_groups'] for i in g['params']]
    states = state_dict['state']
    return [(p, rule, states[i]) for (p, rule), i in zip(ours, ids, strict=False) if states.get(i)]


def _check_group(opt: Any, k: int, saved: dict[str, Any], rule: type) -> None:
    its, betas = saved.get('rule', opt.mathematics), saved.get('betas')
    if its != rule.mathematics:
        raise ValueError(f"group {k} of the state_dict has the rule {its}, here it has {rule.mathematics}: "
                         f"load it in an optimizer with the same rule")
    if betas is not None and len(betas) != len(rule.spec.betas):
        raise ValueError(f"the state_dict has {len(betas)} betas, {rule.__name__} takes {len(rule.spec.betas)}")
    _check_mathematics(k, saved, rule)
    decoupled = saved.get('decoupled_weight_decay')
    if decoupled is None and _is_torchs(saved) and betas is None: decoupled = False
    if decoupled in (None, opt.stages.decoupled) or not saved.get('weight_decay'): return
    if not rule.spec.states: return  # for plain gradient descent both kinds are the same
    kinds = {True: 'decoupled decay', False: 'L2 regularisation'}
    raise ValueError(f"the state_dict was trained with {kinds[bool(decoupled)]}, this {type(opt).__name__} has "
                     f"{kinds[opt.stages.decoupled]}: create it with decoupled={bool(decoupled)}")


def _is_torchs(saved: dict[str, Any]) -> bool: return 'maximize' in saved


def _check_mathematics(k: int, saved: dict[str, Any], rule: type) -> None:
    "ValueError if torch's class that saved the group computes something else than the rule."
    names = {h: rule.torch_names.get(h, key) for h, key, _ in rule.spec.places}
    wanted = dict(maximize=False) | rule.torch_group({h: saved.get(nm) for h, nm in names.items()} | saved)
    for nm, x in wanted.items():
        if saved.get(nm, x) != x: raise ValueError(
            f"group {k} of the state_dict was trained with {nm}={saved[nm]}, and {rule.__name__} has {nm}={x}: load "
            f"it in an optimizer with the same mathematics")
    known = {*names.values(), *wanted}
    missing = sorted(known - saved.keys()) if _is_torchs(saved) else []
    foreign = sorted((saved.keys() & _names_in_torch()) - known - {*_FLAGS}) if 'rule' not in saved else []
    if missing or foreign:
        has = f"no {', '.join(missing)}" if missing else ', '.join(foreign)
        raise ValueError(f"group {k} of the state_dict has {has}: it was saved by a class whose mathematics are not "
                         f"{rule.__name__}'s")
    if not _is_torchs(saved): return
    for nm, why in rule.unlike_torch.items():
        if saved[nm]: raise ValueError(f"group {k} of the state_dict was trained with {nm}={saved[nm]}, and {why}")


@cache
def _names_in_torch() -> set[str]:
    "The hyperparameters of all optimizers of torch, without those that only say how a state starts."
    classes = [c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer)]
    return {nm for c in classes for nm in signature(c).parameters} - {'params', 'initial_accumulator_value'}


def own_group(opt: Any, saved: dict[str, Any], group: dict[str, Any]) -> dict[str, Any]:
    "A saved group as this optimizer keeps it: hyperparameters by its own names, without what only torch's class needs."
    rule = opt.rule_of(group)
    theirs = {*_FLAGS, *rule.torch_group(saved | group), *rule.torch_names.values()}
    theirs -= {key for _, key, _ in rule.spec.places}
    own = {k: x for k, x in saved.items() if k not in theirs}
    own |= {h: saved[nm] for h, nm in rule.torch_names.items() if nm in saved}
    return own | ({'rule': group['rule']} if 'rule' in group else {})


def _check_state(k: int, name: str, saved: dict[str, Any], shape: torch.Size) -> None:
    x = saved.get(name)
    if not isinstance(x, Tensor):
        raise ValueError(f"the state_dict has no {name!r} for parameter {k}: was it saved by another optimizer?")
    if not x.is_floating_point():
        raise ValueError(f"{name!r} of parameter {k} in the state_dict has dtype {x.dtype}, not a floating-point one")
    if x.shape != shape:
        raise ValueError(f"{name!r} of parameter {k} in the state_dict has shape {tuple(x.shape)}, here it has "
                         f"{tuple(shape)}")


def _check_number(k: int, name: str, saved: dict[str, Any]) -> None:
    x = saved.get(name, 0 if name == 'step' else None)  # torch's SGD counts no steps
    if isinstance(x, Tensor) and x.numel() == 1: x = x.item()
    if isinstance(x, int | float): return
    raise ValueError(f"{name!r} of parameter {k} in the state_dict must be one number, got {x!r}: was it saved by "
                     f"another optimizer?")


def unpacked_states(opt: Any, state_dict: dict[str, Any]) -> dict[Any, dict[str, Any]]:
    "The states in a state_dict, those in 8 bits as float32. Packed again they are the same bytes."
    params = {i: p for own, g in zip(opt.param_groups, state_dict['param_groups'], strict=True)
              for p, i in zip(own['params'], g['params'], strict=True)}
    return {i: {k: unpacked(x, params[i]) if isinstance(x, Tensor) and is_packed(x) else x for k, x in state.items()}
            for i, state in state_dict['state'].items()}


def restore_states(opt: Any, state_dict: dict[str, Any]) -> None:
    "Put the rules' states back as they were saved: torch's loading rounds them to the parameter's own precision."
    for p, rule, saved in _parameters(opt, state_dict):
        state = opt.state[p]
        for s in program(rule.spec, opt.stages).states:
            name = rule.state_name(s)
            state[name] = new_state(opt, p, rule, s)
            store(state[name], saved[name], p)
        for name in map(rule.state_name, program(rule.spec, opt.stages).scalars): state[name] = float(saved[name])
