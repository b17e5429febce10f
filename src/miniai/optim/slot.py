"A parameter as a step sees it: its group, its rule with all stages, and its state, which is created here."
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from miniai.distributed.dtensor import is_dtensor, local, placed_as, placed_like, placement, whole
from miniai.kernels.batched import wide
from miniai.kernels.packed import is_packed, new_packed, packed
from miniai.optim.eager import as_matrix
from miniai.optim.stages import AVERAGES, Program, prepared, program

__all__ = ['Slot', 'new_state', 'state_shape', 'store', 'slots_of', 'start_states']


@dataclass(frozen=True, eq=False, slots=True)
class Slot:
    """A parameter that has a gradient; the index of its group; its rule's class; its state, and the keys there of
    tensors and of numbers; and its place among all parameters and states, for random rounding."""
    p: Tensor
    group: int
    rule: type
    program: Program
    state: dict[str, Any]
    keys: tuple[str, ...]
    number_keys: tuple[str, ...]
    place: int

    @property
    def tensors(self) -> list[Tensor]:
        "The parameter and its states."
        return [self.p, *(self.state[k] for k in self.keys)]

    def dither(self, rounding: str) -> tuple[bool, ...]:
        "Which of `tensors` are rounded at random to 16 or 8 bits: states always, the average of weights never."
        wanted = [rounding == 'stochastic', *(s not in AVERAGES for s in self.program.states)]
        return tuple(w and x.dtype in (torch.bfloat16, torch.uint8) for w, x in zip(wanted, self.tensors, strict=True))


def slots_of(opt: Any) -> Iterator[Slot]:
    "A slot for each parameter that has a gradient. Makes states that are missing, all zeros."
    place = 0
    for i, group in enumerate(opt.param_groups):
        rule = opt.rule_of(group)
        composed = program(rule.spec, opt.stages)
        keys = tuple(map(rule.state_name, composed.states))
        own, everywhere = group['params'], (opt.zero or opt).param_groups[i]['params']
        own = own if own is everywhere else set(own)
        for p in everywhere:
            place += 2 + len(keys)
            if p.grad is None or (own is not everywhere and p not in own): continue
            state = opt.state[p]
            for s, key in zip(composed.states, keys, strict=True):
                if key not in state: state[key] = new_state(opt, p, rule, s)
            numbers = {rule.state_name(s): float(first) for s, first in composed.scalars.items()}
            for key, first in (numbers | dict(step=0)).items(): state.setdefault(key, first)
            yield Slot(p, i, rule, composed, state, keys, tuple(numbers), place)


def new_state(opt: Any, p: Tensor, rule: type, s: str) -> Tensor:
    """Zeros for the state `s` of `p`, in the precision that rules are computed in, or in the one `opt` asks for; the
    latter not for averages and other points of weights, nor for states that sums over all parameters read, nor for
    states of a rule for matrices that start somewhere, such as bases."""
    like, shape = wide(p.detach()), state_shape(p, rule, s)
    if shape != p.shape: return torch.zeros(shape, dtype=like.dtype, device=like.device)
    spec = rule.spec
    exact = s in AVERAGES or (spec.others and s in spec.starts) or s in spec.exact_states
    if opt.state_dtype is not torch.uint8 or exact:
        return torch.zeros_like(like, dtype=like.dtype if exact else opt.state_dtype)
    if is_dtensor(p): raise TypeError(f"state='int8' keeps blocks of numbers together, but a parameter of shape "
                                      f"{tuple(shape)} is a DTensor, cut anywhere: use state='bf16'")
    return new_packed(p.numel(), p.device)


def store(old: Tensor, x: Tensor, p: Tensor) -> None:
    "Write `x` over `old`, a state of `p`."
    local(old).copy_(packed(x, p, key=0) if is_packed(old) else local(x))


def state_shape(p: Tensor, rule: type, s: str) -> torch.Size:
    "That of the parameter; a rule for matrices may have states of other shapes, such as their first values have."
    first = rule.spec.starts.get(s) if rule.spec.others else None
    if first is None: return p.shape
    matrix = as_matrix(torch.empty(p.shape, device='meta'), rule.spec.flat)
    shape = first(matrix, matrix).shape
    return p.shape if shape == matrix.shape else shape


@torch.no_grad()
def start_states(slot: Slot, hypers: dict[str, float]) -> None:
    "Set the states that do not start at zero, from the parameter and from the gradient as the rule will see it."
    state, now, spec = slot.state, wide(slot.p.detach()), slot.program.spec
    for s in slot.program.stages.averages: state[s].copy_(now)
    if slot.program.stages.hyperball and now.ndim > 1: state['radius'] = float(whole(now).norm())
    if not spec.starts: return
    g = placed_as(wide(slot.p.grad), placement(now))
    if spec.others: now, g = (as_matrix(whole(x), spec.flat) for x in (now, g))
    g = prepared(spec, slot.program.stages, now, g, hypers)[1]
    for s, value in spec.starts.items():
        first, old = value(now, g), state[slot.rule.state_name(s)]
        if not isinstance(first, Tensor): first = torch.full_like(now, first)
        store(old, first.reshape(slot.p.shape) if is_packed(old) else local(placed_like(first, old)), slot.p)
