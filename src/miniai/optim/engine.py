"""A step over all tensors and groups of an optimizer: one table of addresses a kernel, checked at every step, and the
eager path for the rest. Knows programs and kernels, no particular rule."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import chain, groupby
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .eager import eager_step, host_function, wide
from .kernel import SIZES, Kernel, kernel_of
from .norm import BLOCK, block_count, first_blocks, norm_kernel
from .rounding import key_of
from .stages import Program
from .threads import on_torchs_threads, parallel_reason

__all__ = ['Plan', 'Slot']

CHUNK = 1 << 15
_HOSTS = {torch.float64: np.float64}


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter of a step, with its group's index, its state, the tensors of the state by name, and its place
    among all."""
    p: Tensor
    group: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]
    place: int


def eager_reason(slot: Slot, program: Program) -> str:
    "Why a parameter cannot be stepped by a kernel; '' where it can."
    p, g = slot.p, slot.p.grad
    if program.trace is None: return program.spec.untraced
    if not p.is_cpu: return f'no kernel for {p.device.type}'
    if type(p) not in (Tensor, torch.nn.Parameter): return f'a {type(p).__name__} is no plain tensor'
    if p.dtype not in SIZES: return f'no kernel for {p.dtype}'
    if not is_dense(p): return 'its layout has gaps or overlaps'
    if g.dtype is not p.dtype or any(_layout(x) != _layout(p) for x in (g, *slot.tensors.values())):
        return 'its gradient or state has another layout or dtype'
    if any(x.dtype not in SIZES or not x.is_cpu for x in slot.tensors.values()): return 'its state has no kernel'
    return _missing_numba()


def _layout(x: Tensor) -> tuple: return x.shape, x.stride(), x.is_cpu, x.is_neg()


def is_dense(x: Tensor) -> bool:
    "Does `x` fill its memory, in whatever order, without gaps or overlaps?"
    if x.is_contiguous(): return True
    expected, dims = 1, [(s, n) for n, s in zip(x.shape, x.stride(), strict=True) if n != 1]
    for stride, size in sorted(dims):
        if stride != expected: return False
        expected *= size
    return True


@lru_cache(maxsize=1)
def _missing_numba() -> str:
    return '' if find_spec('numba') else 'Numba is not installed'


class Batch:
    "Parameters of equal dtypes: one kernel, one table, one call."
    def __init__(self, slots: list[Slot], program: Program, dither: tuple[bool, ...]) -> None:
        self.slots, self.params, self.states = slots, [s.p for s in slots], [s.state for s in slots]
        self.dtypes = (slots[0].p.dtype,)*2 + tuple(x.dtype for x in slots[0].tensors.values())
        self.kernel, self.hosts = kernel_of(program.trace, self.dtypes, dither), host_function(program.trace)
        names = list(slots[0].tensors)
        self.keys = [(s.state, nm) for nm in names for s in slots]
        self.kept = [s.tensors[nm] for nm in names for s in slots]
        self.staying, self.addresses = [*self.params, *self.kept], []
        self.kinds, self.numels = [x.dtype for x in self.staying], [x.numel() for x in self.staying]
        self.grad_dtypes, self.strides = [p.dtype for p in self.params], [p.stride() for p in self.params]
        self.elements, self.dithered = sum(p.numel() for p in self.params), any(dither)
        self.table = np.zeros((len(slots), len(self.dtypes)), np.uint64)
        self.chunks = _chunks([p.numel() for p in self.params], CHUNK)
        self.h = np.zeros((len(slots), max(1, len(program.trace.hosts))), _HOSTS.get(self.dtypes[0], np.float32))
        self.dice = np.zeros((len(slots), 1) if self.dithered else (1, 1), np.uint32)
        self.runs = [(g, list(es)) for g, es in groupby(range(len(slots)), key=lambda e: slots[e].group)]

    def read(self) -> bool:
        """Read every address anew; False where a tensor is no longer what the table was made for. Layout and device of
        what stays are looked at again where an address has changed: other kinds of memory are elsewhere."""
        try:
            grads = [p.grad for p in self.params]
            if [g.dtype for g in grads] != self.grad_dtypes or [g.stride() for g in grads] != self.strides: return False
        except (AttributeError, RuntimeError): return False  # None and sparse gradients have no strides
        if not all(map(is_, [state.get(nm) for state, nm in self.keys], self.kept)): return False
        if [x.dtype for x in self.staying] != self.kinds: return False
        if [x.numel() for x in self.staying] != self.numels: return False
        addresses = [x.data_ptr() for x in self.staying]
        if addresses != self.addresses and not self._moved(addresses): return False
        self.table[:, 1] = [g.data_ptr() for g in grads]
        return True

    def _moved(self, addresses: list[int]) -> bool:
        "Take over the addresses of what stays; False where it has moved to another device or layout."
        columns = len(self.dtypes) - 1
        if not all(x.is_cpu for x in self.staying): return False
        if [x.stride() for x in self.staying] != self.strides*columns: return False
        self.addresses = addresses
        self.table[:, [0, *range(2, columns + 1)]] = np.array(addresses, np.uint64).reshape(columns, -1).T
        return True

    def run(self, kernel: Kernel, chunks: np.ndarray, h: np.ndarray, keys: np.ndarray) -> None:
        "Run a kernel over chunks of the table, in parallel where that is safe and worth it."
        if parallel_reason(self.elements): return kernel.run('serial', self.table, chunks, h, keys)
        on_torchs_threads(lambda: kernel.run('parallel', self.table, chunks, h, keys))

    def sum_of_squares(self) -> float:
        "Of the gradients, in double precision; NaN or infinite where one of them is."
        chunks = _chunks([p.numel() for p in self.params], -(-CHUNK // BLOCK)*BLOCK)
        sums = np.zeros((block_count(chunks), 1))
        self.run(norm_kernel(self.dtypes[0]), chunks, sums, first_blocks(chunks))
        return float(sums.sum())

    def step(self, hypers: list[Callable[[int], dict[str, float]]], seed: int) -> None:
        "Fill in the hyperparameters and step."
        for group, es in self.runs: self._fill(es, hypers[group])
        if self.dithered: self._throw_dice(seed)
        self.run(self.kernel, self.chunks, self.h, self.dice)
        for state in self.states: state['step'] += 1

    def _fill(self, es: list[int], hypers: Callable[[int], dict[str, float]]) -> None:
        "The values that a group's kernel takes, computed once for each step count in it."
        steps = [self.states[e]['step'] + 1 for e in es]
        rows = {t: self.hosts(**hypers(t)) for t in set(steps)}
        if len(rows) == 1: self.h[es[0]:es[-1] + 1] = rows[steps[0]]
        else: self.h[es[0]:es[-1] + 1] = [rows[t] for t in steps]

    def _throw_dice(self, seed: int) -> None:
        self.dice[:, 0] = [key_of(seed, s.state['step'] + 1, s.place) for s in self.slots]


def _chunks(sizes: list[int], most: int) -> np.ndarray:
    "Rows (entry, first element, number of elements) that cut tensors of `sizes` into pieces of at most `most`."
    rows = [(e, low, min(most, n - low)) for e, n in enumerate(sizes) for low in range(0, n, most)]
    return np.array(rows, np.int64).reshape(-1, 3)


class Plan:
    """How an optimizer steps the parameters that have gradients now: batches for kernels, and slots for the eager path
    with reasons."""
    def __init__(self, opt: Any) -> None:
        slots, self.idle = _slots(opt)
        self.program, self.seed, self.state, self.sizes = opt.program, opt.seed, opt.state, _sizes(opt)
        self.things = _things(opt)
        self.dither = [opt.dithers(x) for x in (None, *self.program.states)]
        reasons = [eager_reason(s, self.program) for s in slots]
        self.eager = [s for s, why in zip(slots, reasons, strict=True) if why]
        self.reasons = sorted({why for why in reasons if why})
        kinds = {}
        for s, why in zip(slots, reasons, strict=True):
            if not why: kinds.setdefault((s.p.dtype, *(x.dtype for x in s.tensors.values())), []).append(s)
        self.batches = [Batch(same, self.program, self._dither_of(same[0])) for same in kinds.values()]
        self.unstarted = [s for s in slots if s.state['step'] == 0]
        self.touched = [p for b in self.batches for p in b.params]

    def _dither_of(self, s: Slot) -> tuple[bool, ...]:
        "For parameter, gradient and states: is it kept in bfloat16 and rounded at random?"
        wanted = [d and x.dtype is torch.bfloat16 for d, x in zip(self.dither, (s.p, *s.tensors.values()), strict=True)]
        return (wanted[0], False, *wanted[1:])

    def holds(self, opt: Any) -> bool:
        "Is everything still where and what it was? Reads all addresses anew."
        if opt.state is not self.state or opt.program is not self.program or _sizes(opt) != self.sizes: return False
        if not all(map(is_, _things(opt), self.things)): return False
        if any(p.grad is not None for p in self.idle) or any(s.p.grad is None for s in self.eager): return False
        return all(b.read() for b in self.batches)

    def take_unstarted(self) -> list[Slot]:
        "Parameters before their first step, this once."
        taken, self.unstarted = self.unstarted, []
        return taken

    def sum_of_squares(self) -> float:
        "Of all gradients, NaN where one is not finite."
        eager = sum(float(wide(s.p.grad).double().square().sum()) for s in self.eager)
        return sum((b.sum_of_squares() for b in self.batches), eager)

    def step(self, hypers: list[Callable[[int], dict[str, float]]]) -> None:
        "Step every parameter by its group's hyperparameters, functions of the step count."
        for b in self.batches: b.step(hypers, self.seed)
        for s in self.eager: self._step_eagerly(s, hypers[s.group](s.state['step'] + 1))
        torch.autograd.graph.increment_version(self.touched)

    @torch.no_grad()
    def _step_eagerly(self, s: Slot, hypers: dict[str, float]) -> None:
        tensors = [s.p, *(s.state[nm] for nm in s.tensors)]
        dithered = [d and x.dtype is torch.bfloat16 for d, x in zip(self.dither, tensors, strict=True)]
        key = key_of(self.seed, s.state['step'] + 1, s.place)
        eager_step(self.program, tensors, s.p.grad, hypers, dithered, key)
        s.state['step'] += 1

    def path(self) -> str:
        "Which path steps how many parameters, and why."
        lines = [f"fused: {len(b.slots)} parameter(s) of {b.elements:,} elements in {str(b.dtypes[0])[6:]}, "
                 + _threads(b.elements) for b in self.batches]
        if self.eager: lines.append(f"eager: {len(self.eager)} parameter(s), as {'; '.join(self.reasons)}")
        return '\n'.join(lines) or 'no parameter has a gradient'


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
