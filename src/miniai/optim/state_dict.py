"Loading a state_dict into an optimizer: what fits, and states restored in their own precision."
from typing import Any

from torch import Tensor

from miniai.optim.slot import new_state
from miniai.optim.stages import program

__all__ = ['check_loadable', 'restore_states']


def check_loadable(opt: Any, state_dict: dict[str, Any]) -> None:
    """ValueError if a group has another rule or kind of decay, or if a state is missing or has another shape. Torch
    checks the sizes of the groups."""
    for k, (saved, group) in enumerate(zip(state_dict['param_groups'], opt.param_groups, strict=False)):
        _check_group(opt, k, saved, opt.rule_of(group))
    for k, (p, rule, saved) in enumerate(_parameters(opt, state_dict)):
        for s in program(rule.spec, opt.stages).states: _check_state(k, rule.state_name(s), saved, p)
        for s in (*rule.spec.scalars, 'step'): _check_number(k, rule.state_name(s), saved)


def _parameters(opt: Any, state_dict: dict[str, Any]) -> list[tuple[Tensor, type, dict[str, Any]]]:
    "Each parameter that has a saved state, with its rule's class and that state."
    ours = [(p, opt.rule_of(g)) for g in opt.param_groups for p in g['params']]
    ids = [i for g in state_dict['param_groups'] for i in g['params']]
    states = state_dict['state']
    return [(p, rule, states[i]) for (p, rule), i in zip(ours, ids, strict=False) if states.get(i)]


def _check_group(opt: Any, k: int, saved: dict[str, Any], rule: type) -> None:
    its = saved.get('rule', type(opt).__name__)
    if its != rule.__name__:
        raise ValueError(f"group {k} of the state_dict has the rule {its}, here it has {rule.__name__}: "
                         f"give the group the same rule")
    betas, decoupled = saved.get('betas'), saved.get('decoupled_weight_decay')
    if betas is not None and len(betas) != len(rule.spec.betas):
        raise ValueError(f"the state_dict has {len(betas)} betas, {rule.__name__} takes {len(rule.spec.betas)}")
    if decoupled is None or decoupled == opt.stages.decoupled or not saved.get('weight_decay'): return
    kinds = {True: 'decoupled decay', False: 'L2 regularisation'}
    raise ValueError(f"the state_dict was trained with {kinds[bool(decoupled)]}, this {type(opt).__name__} has "
                     f"{kinds[opt.stages.decoupled]}: create it with decoupled={bool(decoupled)}")


def _check_state(k: int, name: str, saved: dict[str, Any], p: Tensor) -> None:
    x = saved.get(name)
    if not isinstance(x, Tensor):
        raise ValueError(f"the state_dict has no {name!r} for parameter {k}: was it saved by another optimizer?")
    if not x.is_floating_point():
        raise ValueError(f"{name!r} of parameter {k} in the state_dict has dtype {x.dtype}, not a floating-point one")
    if x.shape != p.shape:
        raise ValueError(f"{name!r} of parameter {k} in the state_dict has shape {tuple(x.shape)}, the parameter "
                         f"has {tuple(p.shape)}")


def _check_number(k: int, name: str, saved: dict[str, Any]) -> None:
    x = saved.get(name, 0 if name == 'step' else None)  # torch's SGD counts no steps
    if isinstance(x, Tensor) and x.numel() == 1: x = x.item()
    if isinstance(x, int | float): return
    raise ValueError(f"{name!r} of parameter {k} in the state_dict must be one number, got {x!r}: was it saved by "
                     f"another optimizer?")


def restore_states(opt: Any, state_dict: dict[str, Any]) -> None:
    "Put the rules' states back as they were saved: torch's loading rounds them to the parameter's own precision."
    for p, rule, saved in _parameters(opt, state_dict):
        state = opt.state[p]
        for s in program(rule.spec, opt.stages).states:
            state[rule.state_name(s)] = new_state(opt, p, s).copy_(saved[rule.state_name(s)])
        for name in map(rule.state_name, rule.spec.scalars): state[name] = float(saved[name])
