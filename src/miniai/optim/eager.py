"""The eager path: a rule run on tensors, one parameter at a time. Right on every device and dtype;
knows specs, no particular rule."""
from typing import Any

import torch
from torch import Tensor

from .spec import RuleSpec

__all__ = ['eager_step', 'start_state']

_HALF = (torch.float16, torch.bfloat16)


def start_state(spec: RuleSpec, p: Tensor, g: Tensor) -> dict[str, Tensor]:
    "The rule's state before its first step: zeros like `p`, or what the rule says."
    def zeros() -> Tensor: return torch.zeros_like(p, memory_format=torch.preserve_format)
    return {s: spec.starts[s](p.detach(), g).clone() if s in spec.starts else zeros() for s in spec.states}


def eager_step(spec: RuleSpec, p: Tensor, g: Tensor, states: list[Tensor], step: int,
               hypers: dict[str, float], wd: float) -> None:
    """One step in place: decoupled decay, then the rule. Half precision is computed in float32;
    the gradient is left alone."""
    decayed = _wide(p)*(1 - hypers['lr']*wd) if wd else _wide(p)
    new_p, *new_states = _rule_on(spec, decayed, _wide(g), map(_wide, states), step, hypers)
    p.copy_(new_p)
    for old, new in zip(states, new_states, strict=True): old.copy_(new)


def _wide(x: Tensor) -> Tensor: return x.float() if x.dtype in _HALF else x


def _rule_on(spec: RuleSpec, p: Tensor, g: Tensor, states: Any, step: int, hypers: dict[str, float]) -> tuple:
    out = spec.rule(p, g, *states, **(hypers | dict(t=step) if spec.uses_t else hypers))
    out = out if isinstance(out, tuple) else (out,)
    if len(out) == 1 + len(spec.states): return out
    raise TypeError(f"rule {spec.rule.__name__} must return the new parameter "
                    f"and its {len(spec.states)} state(s) {list(spec.states)}, got {len(out)} value(s)")
