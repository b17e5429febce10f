"""A step over all tensors and groups of an optimizer: tables for kernels, and the eager path for the rest. Knows
programs and tables, no particular rule."""
from collections.abc import Callable
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from miniai.distributed.dtensor import has_sums_in_parts, local, part_number, placement
from miniai.kernels.kernel import SIZES
from miniai.kernels.python import host_function
from miniai.kernels.support import is_dense, missing_numba
from miniai.kernels.threads import parallel_reason
from miniai.optim.eager import eager_share, eager_step, eager_sum_of_squares
from miniai.optim.rounding import key_of
from miniai.optim.stages import Program
from miniai.optim.table import PLAIN, Slot, Table

__all__ = ['Plan']


def eager_reason(slot: Slot, program: Program) -> str:
    "Why a parameter cannot be stepped by a kernel; '' where it can."
    if program.trace is None: return program.spec.untraced
    if not _placed_alike(slot): return 'gradient or state lie on other processes than it, or are sums in parts'
    p, g, *kept = map(local, (slot.p, slot.p.grad, *slot.tensors.values()))
    if not p.is_cpu: return f'no kernel for {p.device.type}'
    for x in (p, g, *kept):
        if type(x) not in PLAIN: return f'a {type(x).__name__} is no plain tensor'
    if p.dtype not in SIZES: return f'no kernel for {p.dtype}'
    if not is_dense(p): return 'its layout has gaps or overlaps'
    if g.dtype is not p.dtype or any(_layout(x) != _layout(p) for x in (g, *kept)):
        return 'its gradient or state has another layout or dtype'
    if any(x.dtype not in SIZES or not x.is_cpu for x in kept): return 'its state has no kernel'
    return missing_numba()


def _placed_alike(slot: Slot) -> bool:
    where = placement(slot.p)
    if has_sums_in_parts(where): return False
    return all(placement(x) == where for x in (slot.p.grad, *slot.tensors.values()))


def _layout(x: Tensor) -> tuple: return x.shape, x.stride(), x.is_cpu, x.is_neg()


class Plan:
    """How an optimizer steps the parameters that have gradients now: tables for kernels, and slots for the eager path
    with reasons."""
    def __init__(self, opt: Any) -> None:
        slots, self.idle = _slots(opt)
        self.program, self.state, self.sizes, self.things = opt.program, opt.state, _sizes(opt), _things(opt)
        self.scalars = {nm: opt.state_name(nm) for nm in self.program.scalars}
        self.dither = [opt.dithers(x) for x in (None, *self.program.states)]
        reasons = [eager_reason(s, self.program) for s in slots]
        self.eager = {s: why for s, why in zip(slots, reasons, strict=True) if why}
        kinds = {}
        for s, why in zip(slots, reasons, strict=True):
            if not why: kinds.setdefault(_kind(s), []).append(s)
        self.tables = [Table(same, self.program, self._dither_of(same[0]), self.scalars) for same in kinds.values()]
        self.unstarted = [s for s in slots if s.state['step'] == 0]
        self.touched = [p for b in self.tables for p in b.params]

    def _dither_of(self, s: Slot) -> tuple[bool, ...]:
        "For parameter, gradient and states: is it kept in bfloat16 and rounded at random?"
        wanted = [d and x.dtype is torch.bfloat16 for d, x in zip(self.dither, (s.p, *s.tensors.values()), strict=True)]
        return (wanted[0], False, *wanted[1:])

    def holds(self, opt: Any) -> bool:
        "Is everything still where and what it was? Reads all addresses anew."
        if opt.state is not self.state or opt.program is not self.program or _sizes(opt) != self.sizes: return False
        if not all(map(is_, _things(opt), self.things)): return False
        if any(p.grad is not None for p in self.idle): return False
        return all(self._stays_eager(s, why) for s, why in self.eager.items()) and all(b.read() for b in self.tables)

    def _stays_eager(self, s: Slot, why: str) -> bool:
        g = s.p.grad
        return g is not None and g.layout is torch.strided and eager_reason(s, self.program) == why

    def sum_of_squares(self) -> float:
        "Of all gradients, NaN where one is not finite."
        return sum((b.sum_of_squares() for b in self.tables), sum(eager_sum_of_squares(s.p.grad) for s in self.eager))

    def step(self, hypers: list[Callable[[int], dict[str, float]]], seed: int) -> None:
        """Step every parameter by its group's hyperparameters, functions of the step count. All that can fail for their
        sake does so before anything is changed."""
        for b in self.tables: b.fill(hypers, seed)
        given = [self._given(s, hypers[s.group](s.state['step'] + 1)) for s in self.eager]
        for b in self.tables: b.step()
        for s, h in zip(self.eager, given, strict=True): self._step_eagerly(s, h, seed)
        torch.autograd.graph.increment_version(self.touched)
        self.unstarted = []

    @torch.no_grad()
    def _given(self, s: Slot, hypers: dict[str, float]) -> dict[str, float]:
        "What the eager path computes with beside tensors."
        given = hypers | {nm: s.state[key] for nm, key in self.scalars.items()}
        if self.program.mask:
            given['share'] = 1.
            given['share'] = eager_share(self.program, self._tensors(s), s.p.grad, given)
        if self.program.trace: host_function(self.program.trace)(**given)
        return given

    def _tensors(self, s: Slot) -> list[Tensor]: return [s.p, *(s.state[nm] for nm in s.tensors)]

    @torch.no_grad()
    def _step_eagerly(self, s: Slot, given: dict[str, float], seed: int) -> None:
        tensors, part = self._tensors(s), part_number(placement(s.p))
        dithered = [d and x.dtype is torch.bfloat16 for d, x in zip(self.dither, tensors, strict=True)]
        key = key_of(seed, s.state['step'] + 1, s.place, part)
        news = eager_step(self.program, tensors, s.p.grad, given, dithered, key)
        s.state.update(zip(self.scalars.values(), news, strict=True))
        s.state['step'] += 1

    def path(self) -> str:
        "Which path steps how many parameters, and why."
        lines = [f"fused: {len(b.slots)} parameter(s) of {b.elements:,} elements in {str(b.dtypes[0])[6:]}, "
                 + _threads(b.elements) for b in self.tables]
        if self.eager:
            reasons = '; '.join(sorted(set(self.eager.values())))
            lines.append(f"eager: {len(self.eager)} parameter(s), as {reasons}")
        return '\n'.join(lines) or 'no parameter has a gradient'

def _kind(s: Slot) -> tuple: return s.p.dtype, *(x.dtype for x in s.tensors.values()), placement(s.p)


def _threads(elements: int) -> str:
    why = parallel_reason(elements)
    return f'serially, as {why}' if why else f'on {torch.get_num_threads()} threads'


def _sizes(opt: Any) -> list[int]: return [len(g['params']) for g in opt.param_groups] + [len(opt.state)]
def _things(opt: Any) -> list: return [*chain.from_iterable(g['params'] for g in opt.param_groups), *opt.state.values()]


def _slots(opt: Any) -> tuple[list[Slot], list[Tensor]]:
    """The parameters that have a gradient, with their states, begun where there are none; and those that have no
    gradient."""
    slots, idle, place = [], [], 0
    names = tuple(map(opt.state_name, opt.program.states))
    for i, group in enumerate(opt.param_groups):
        for p in group['params']:
            place += 2 + len(names)
            if p.grad is None: idle.append(p)
            else:
                state = opt.state_of(p)
                slots.append(Slot(p, i, state, {nm: state[nm] for nm in names}, place))
    return slots, idle
