"""Parameters of equal dtypes as a table of addresses, read anew or checked at every step, over which one kernel runs.
Knows programs and kernels, no particular rule and no optimizer."""
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.distributed.dtensor import local, part_number, placement, summed
from miniai.kernels.kernel import Kernel, kernel_of
from miniai.kernels.python import host_function, scalar_places
from miniai.kernels.sums import BLOCK, blocks, count_kernel, norm_kernel
from miniai.kernels.threads import on_torchs_threads, parallel_reason
from miniai.optim.rounding import key_of
from miniai.optim.stages import Program

__all__ = ['CHUNK', 'PLAIN', 'Slot', 'Table']

CHUNK = 1 << 15
_HOSTS = {torch.float64: np.float64}


PLAIN = {Tensor, torch.nn.Parameter}


@dataclass(frozen=True, eq=False, slots=True)
class Slot:
    """A parameter of a step, with its group's index, its state, the tensors of the state by name, and its place
    among all."""
    p: Tensor
    group: int
    state: dict[str, Any]
    tensors: dict[str, Tensor]
    place: int


class Table:
    """Parameters of equal dtypes and, where they are DTensors, placement: one kernel, one call. `scalars` says under
    which names states keep the rule's scalars."""
    def __init__(self, slots: list[Slot], program: Program, dither: tuple[bool, ...], scalars: dict[str, str]) -> None:
        self.slots, self.params, self.states = slots, [s.p for s in slots], [s.state for s in slots]
        self.program, self.scalars, self.where = program, scalars, placement(slots[0].p)
        self.dtypes = (slots[0].p.dtype,)*2 + tuple(x.dtype for x in slots[0].tensors.values())
        names = list(slots[0].tensors)
        self.keys = [(s.state, nm) for nm in names for s in slots]
        self.kept = [s.tensors[nm] for nm in names for s in slots]
        self.staying, self.addresses = [*self.params, *self.kept], []
        here = list(map(local, self.staying))
        self.kinds, self.nbytes = [x.dtype for x in here], [x.nbytes for x in here]
        self.grad_dtypes, self.strides = self.kinds[:len(slots)], [x.stride() for x in here[:len(slots)]]
        self.sizes = [x.numel() for x in here[:len(slots)]]
        self.elements, self.dithered = sum(self.sizes), any(dither)
        self.table = np.zeros((len(slots), len(self.dtypes)), np.uint64)
        self.chunks = _chunks(self.sizes, CHUNK)
        self.dice = np.zeros((len(slots), 1) if self.dithered else (1, 1), np.uint32)
        self.runs = [(g, es[0], es[-1] + 1) for g, es in _grouped(slots)]
        self._take_kernel(dither)

    def _take_kernel(self, dither: tuple[bool, ...]) -> None:
        trace = self.program.trace
        self.kernel, self.hosts, self.h = kernel_of(trace, self.dtypes, dither), host_function(trace), self._rows(trace)
        self.numbers = (*self.scalars, *(('share',) if self.program.mask else ()))
        self.news = [()]*len(self.slots)
        self.news_at = list(zip(self.scalars.values(), scalar_places(trace), strict=True))

    def _rows(self, trace: Any) -> np.ndarray:
        return np.zeros((len(self.slots), max(1, len(trace.hosts))), _HOSTS.get(self.dtypes[0], np.float32))

    def read(self) -> bool:
        """Read every address anew; False where a tensor is no longer what the table was made for. Layout, dtype and
        device of what stays are looked at again where an address has changed: other kinds of memory are elsewhere."""
        grads, staying = [p.grad for p in self.params], self.staying
        if self.where is not None:
            if any(placement(x) != self.where for x in (*grads, *staying)): return False
            grads, staying = list(map(local, grads)), list(map(local, staying))
        try:
            if [g.dtype for g in grads] != self.grad_dtypes: return False
            if list(map(Tensor.stride, grads)) != self.strides: return False
            if not PLAIN.issuperset(map(type, grads)) or list(map(Tensor.numel, grads)) != self.sizes: return False
            if any(map(Tensor.is_neg, grads)): return False
        except (AttributeError, RuntimeError): return False  # None and sparse gradients have no strides
        if not all(map(is_, [state.get(nm) for state, nm in self.keys], self.kept)): return False
        if [x.nbytes for x in staying] != self.nbytes: return False
        addresses = list(map(Tensor.data_ptr, staying))
        if addresses != self.addresses and not self._moved(staying, addresses): return False
        self.table[:, 1] = list(map(Tensor.data_ptr, grads))
        return True

    def _moved(self, staying: list[Tensor], addresses: list[int]) -> bool:
        "Take over the addresses of what stays; False where it has moved to another device or layout."
        columns = len(self.dtypes) - 1
        if not all(x.is_cpu and not x.is_neg() for x in staying): return False
        if [x.dtype for x in staying] != self.kinds: return False
        if [x.stride() for x in staying] != self.strides*columns: return False
        self.addresses = addresses
        self.table[:, [0, *range(2, columns + 1)]] = np.array(addresses, np.uint64).reshape(columns, -1).T
        return True

    def run(self, kernel: Kernel, chunks: np.ndarray, *rest: np.ndarray) -> None:
        "Run a kernel over chunks of the table, in parallel where that is safe and worth it."
        way = self._way()
        if way == 'serial': return kernel.run(way, self.table, chunks, *rest)
        on_torchs_threads(lambda: kernel.run(way, self.table, chunks, *rest))

    def _way(self) -> str: return 'serial' if parallel_reason(self.elements) else 'parallel'

    def _total(self, kernel: Kernel, h: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        "What a kernel gives for each block, and the entry that each block lies in."
        chunks = _chunks(self.sizes, -(-CHUNK // BLOCK)*BLOCK)
        at, entries = blocks(chunks)
        sums = np.zeros(len(entries), dtype)
        self.run(kernel, chunks, h, sums, at)
        return sums, entries

    def sum_of_squares(self) -> float:
        "Of the gradients, in double precision; NaN or infinite where one of them is."
        sums, _ = self._total(norm_kernel(self.dtypes[0]), np.zeros((1, 1)), np.float64)
        return summed([float(sums.sum())], self.where)[0]

    def fill(self, hypers: list[Callable[[int], dict[str, float]]], seed: int) -> None:
        "Compute what the kernel takes beside elements. Changes no parameter and no state."
        self.shares = [1.]*len(self.slots)
        if self.program.mask: self._measure_shares(hypers)
        self._fill(self.h, self.hosts, hypers)
        if self.dithered:
            part = part_number(self.where)
            self.dice[:, 0] = [key_of(seed, s.state['step'] + 1, s.place, part) for s in self.slots]
        self.kernel.prepare(self._way(), self.h, self.dice)

    def _fill(self, h: np.ndarray, hosts: Callable, hypers: list[Callable[[int], dict[str, float]]]) -> None:
        "Rows of host values, computed once for what entries of a group have in common: step count, scalars, share."
        own = [[state[nm] for state in self.states] for nm in self.scalars.values()]
        keys = list(zip([state['step'] + 1 for state in self.states], *own, self.shares, strict=True))
        for group, first, last in self.runs:
            of = {k: hosts(**hypers[group](k[0]), **dict(zip(self.numbers, k[1:], strict=False)))
                  for k in set(keys[first:last])}
            if len(of) == 1: h[first:last] = of[keys[first]]
            else: h[first:last] = [of[k] for k in keys[first:last]]
            if self.news_at: self.news[first:last] = [of[k] for k in keys[first:last]]

    def _measure_shares(self, hypers: list[Callable[[int], dict[str, float]]]) -> None:
        "The share of each parameter's elements whose step agrees with its gradient, by a pass that only reads."
        trace = self.program.mask_trace
        h = self._rows(trace)
        self._fill(h, host_function(trace), hypers)
        sums, entries = self._total(count_kernel(trace, self.dtypes), h, np.int64)
        counts = summed(np.bincount(entries, sums, len(self.slots)).tolist(), self.where)
        self.shares = [c/max(1, p.numel()) for c, p in zip(counts, self.params, strict=True)]

    def step(self) -> None:
        "Run the kernel that was filled in, and count."
        self.run(self.kernel, self.chunks, self.h, self.dice)
        for state in self.states: state['step'] += 1
        for nm, i in self.news_at:
            for state, row in zip(self.states, self.news, strict=True): state[nm] = row[i]


def _grouped(slots: list[Slot]) -> list[tuple[int, list[int]]]:
    return [(g, list(es)) for g, es in groupby(range(len(slots)), key=lambda e: slots[e].group)]


def _chunks(sizes: list[int], most: int) -> np.ndarray:
    "Rows (entry, first element, number of elements) that cut tensors of `sizes` into pieces of at most `most`."
    rows = [(e, low, min(most, n - low)) for e, n in enumerate(sizes) for low in range(0, n, most)]
    return np.array(rows, np.int64).reshape(-1, 3)
