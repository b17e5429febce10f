"State between optimizers and files: what can be loaded, and states put back in their own precision. Knows state_dicts."
from typing import Any

import torch
from torch import Tensor

from miniai.optim.eager import wide

__all__ = ['check_loadable', 'restore_states']


def _params(opt: Any) -> list[Tensor]: return [p for g in opt.param_groups for p in g['params']]
def _ids(state_dict: dict[str, Any]) -> list: return [i for g in state_dict['param_groups'] for i in g['params']]


def check_loadable(opt: Any, state_dict: dict[str, Any]) -> None:
    """ValueError where a saved state lacks one of the rule's, or has it in another shape, or a group means another
    decay. Torch checks the groups themselves."""
    for group in state_dict['param_groups']: _check_group(opt, group)
    for k, (i, p) in enumerate(zip(_ids(state_dict), _params(opt), strict=False)):
        saved = state_dict['state'].get(i)
        for name in map(opt.state_name, opt.program.states if saved else ()): _check_state(k, name, saved.get(name), p)
        for name in map(opt.state_name, opt.program.scalars if saved else ()): _check_scalar(k, name, saved.get(name))
        _check_scalar(k, 'step', (saved or {}).get('step', 0))


def _check_group(opt: Any, group: dict[str, Any]) -> None:
    betas, decoupled = group.get('betas'), group.get('decoupled_weight_decay')
    if betas is not None and len(betas) != len(opt.spec.betas):
        raise ValueError(f"the state_dict has {len(betas)} betas, {type(opt).__name__} takes {len(opt.spec.betas)}")
    if decoupled is None or decoupled == opt.stages.decoupled or not group.get('weight_decay'): return
    kinds = {True: 'decoupled decay', False: 'L2 regularisation'}
    raise ValueError(f"the state_dict was trained with {kinds[bool(decoupled)]}, this {type(opt).__name__} has "
                     f"{kinds[opt.stages.decoupled]}: make it with decoupled={bool(decoupled)}")


def _check_state(k: int, name: str, saved: Any, p: Tensor) -> None:
    if not isinstance(saved, Tensor):
        raise ValueError(f"the state_dict has no {name!r} for parameter {k}: was it saved by another optimizer?")
    if not saved.is_floating_point():
        raise ValueError(f"the state_dict's {name!r} of parameter {k} has dtype {saved.dtype}, which is no real number")
    if saved.shape != p.shape:
        raise ValueError(f"the state_dict's {name!r} of parameter {k} has shape {tuple(saved.shape)}, "
                         f"the parameter {tuple(p.shape)}")


def _check_scalar(k: int, name: str, saved: Any) -> None:
    if isinstance(saved, Tensor) and saved.numel() == 1: saved = saved.item()
    if isinstance(saved, int | float): return
    raise ValueError(f"the state_dict's {name!r} of parameter {k} must be one number, got {saved!r}: "
                     f"was it saved by another optimizer?")


def restore_states(opt: Any, state_dict: dict[str, Any]) -> None:
    "Put the rule's states back as they were saved: torch's loading has rounded them to the parameter's own precision."
    for i, p in zip(_ids(state_dict), _params(opt), strict=True):
        saved = state_dict['state'].get(i)
        for s in opt.program.states if saved else ():
            name = opt.state_name(s)
            opt.state[p][name] = _placed(saved[name], p, None if s == 'ema' else opt.state_dtype)
        for name in map(opt.state_name, opt.program.scalars if saved else ()): opt.state[p][name] = float(saved[name])


def _placed(saved: Tensor, p: Tensor, dtype: torch.dtype | None) -> Tensor:
    "`saved` on the device and in the layout of `p`, as `dtype`, or in the precision that `p` is computed in."
    like = wide(p.detach())
    return torch.empty_like(like, dtype=dtype or like.dtype, memory_format=torch.preserve_format).copy_(saved)
