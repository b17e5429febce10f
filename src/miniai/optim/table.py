"Parameters that one kernel call steps: their addresses, read again at each step, and the numbers the kernel needs."
from collections.abc import Callable, Iterable
from itertools import groupby
from operator import is_

import numpy as np
import torch
from torch import Tensor

from miniai.distributed.dtensor import groups_of, local, placement, runs, summed
from miniai.kernels.numba import Kernel, step_kernel
from miniai.kernels.python import host_function, scalar_places
from miniai.kernels.sums import BLOCK, blocks, count_kernel, norm_kernel
from miniai.kernels.trace import Trace
from miniai.optim.rounding import key_of
from miniai.optim.slot import Slot

__all__ = ['CHUNK', 'Table']

CHUNK = 1 << 15  # elements that a thread takes at a time


class Table:
    """Parameters with the same program, dtypes and, as DTensors, placement. Row e of `table` holds the addresses of
    parameter e, its gradient and its states; row e of `h` the values that Python computes for it at each step."""
    def __init__(self, slots: list[Slot], dither: tuple[bool, ...]) -> None:
        first, trace = slots[0], slots[0].program.trace
        self.slots, self.program = slots, first.program
        self.where = placement(first.p)
        self.groups = groups_of(self.where)
        self.params, self.states = [s.p for s in slots], [s.state for s in slots]
        self.state_keys = [(s.state, k) for k in first.keys for s in slots]
        self.state_tensors = [state[k] for state, k in self.state_keys]
        self.staying, self.addresses = [*self.params, *self.state_tensors], []
        here, grads = list(map(local, self.staying)), [local(p.grad) for p in self.params]
        self.kinds, self.grad_kinds = _kinds(here), _kinds(grads)
        self.strides, self.sizes = [g.stride() for g in grads], [g.numel() for g in grads]
        self.elements, self.dithered = sum(self.sizes), any(dither)
        self.chunks = _chunks([runs(p) for p in self.params] if self.dithered else _whole(self.sizes), CHUNK)
        self.dtypes = first.p.dtype, *(x.dtype for x in (first.p, *first.tensors[1:]))
        self.table = np.zeros((len(slots), len(self.dtypes)), np.uint64)
        self.dice = np.zeros((len(slots) if self.dithered else 1, 1), np.uint32)
        self.kernel = step_kernel(trace, self.dtypes, (dither[0], False, *dither[1:]))
        self.h, self.hosts = self._rows(trace), host_function(trace)
        self.number_names = ('t', *first.program.scalars, *(('share',) if first.program.mask else ()))
        self.number_keys, self.number_places = first.number_keys, scalar_places(trace)
        self.new_numbers = [()]*len(slots)
        self.runs = []
        for group, rows in groupby(range(len(slots)), key=lambda e: slots[e].group):
            rows = list(rows)
            self.runs.append((group, rows[0], rows[-1] + 1))

    def _rows(self, trace: Trace) -> np.ndarray:
        dtype = np.float64 if self.dtypes[0] is torch.float64 else np.float32
        return np.zeros((len(self.slots), len(trace.hosts)), dtype)

    def refresh(self) -> bool:
        "Read every address again. False if a tensor is no longer of the kind that the table was made for."
        grads, staying = [p.grad for p in self.params], self.staying
        if self.where is not None:
            if any(placement(x) != self.where for x in (*grads, *staying)): return False
            grads, staying = list(map(local, grads)), list(map(local, staying))
        try:
            if _kinds(grads) != self.grad_kinds: return False
        except (AttributeError, RuntimeError): return False  # None and sparse gradients have no strides
        if not all(map(is_, [state.get(k) for state, k in self.state_keys], self.state_tensors)): return False
        if list(map(Tensor.stride, staying[:len(grads)])) != self.strides: return False
        addresses = list(map(Tensor.data_ptr, staying))
        if addresses != self.addresses:  # memory of another dtype, layout or device is elsewhere
            if not all(x.is_cpu for x in staying) or _kinds(staying) != self.kinds: return False
            self.addresses = addresses
            self.table[:, [0, *range(2, len(self.dtypes))]] = np.array(addresses, np.uint64).reshape(-1, len(grads)).T
        self.table[:, 1] = list(map(Tensor.data_ptr, grads))
        return True

    def fill(self, hypers: list[dict[str, float]], seed: int) -> None:
        "Compute the numbers that the kernel needs, and compile it if necessary. Changes no parameter and no state."
        shares = [self._shares(hypers)] if self.program.mask else []
        self._fill(self.h, self.hosts, hypers, shares)
        if self.dithered:
            self.dice[:, 0] = [key_of(seed, s.state['step'] + 1, s.place) for s in self.slots]
        self.run = self.kernel.ready(self.elements, self.h, self.dice)

    def _fill(self, h: np.ndarray, hosts: Callable, hypers: list[dict[str, float]], shares: list[list[float]]) -> None:
        "Fill the rows of `h`, computing once those of a group that have step count, numbers and share in common."
        steps, names = [state['step'] + 1 for state in self.states], self.number_names
        numbers = [[state[k] for state in self.states] for k in self.number_keys]
        keys = list(zip(steps, *numbers, *shares, strict=True))
        for group, first, last in self.runs:
            rows = {k: hosts(**hypers[group], **dict(zip(names, k, strict=True))) for k in set(keys[first:last])}
            if len(rows) == 1: h[first:last] = rows[keys[first]]
            else: h[first:last] = [rows[k] for k in keys[first:last]]
            if self.number_places: self.new_numbers[first:last] = [rows[k] for k in keys[first:last]]

    def launch(self) -> None:
        "Run the kernel, then write the new numbers and step counts."
        self.run(self.table, self.chunks, self.h, self.dice)
        for state in self.states: state['step'] += 1
        for k, i in zip(self.number_keys, self.number_places, strict=True):
            for state, row in zip(self.states, self.new_numbers, strict=True): state[k] = row[i]

    def sum_of_squares(self) -> float:
        "The sum of squares of the gradients here, in double precision; NaN or infinite if one of them is."
        sums, _ = self._block_sums(norm_kernel(self.dtypes[0]), np.zeros((1, 1)), np.float64)
        return float(sums.sum())

    def _shares(self, hypers: list[dict[str, float]]) -> list[float]:
        "The share of each parameter's elements whose step agrees with the gradient, by a pass that only reads."
        trace, ones = self.program.mask_trace, [1.]*len(self.slots)
        h = self._rows(trace)
        self._fill(h, host_function(trace), hypers, [ones])
        sums, rows = self._block_sums(count_kernel(trace, self.dtypes), h, np.int64)
        counts = summed(np.bincount(rows, sums, len(self.slots)).tolist(), self.groups)
        return [c/max(1, p.numel()) for c, p in zip(counts, self.params, strict=True)]

    def _block_sums(self, kernel: Kernel, h: np.ndarray, dtype: type) -> tuple[np.ndarray, np.ndarray]:
        "A kernel's sum for each block, and the row that each block lies in."
        chunks = _chunks(_whole(self.sizes), -(-CHUNK // BLOCK)*BLOCK)
        at, rows = blocks(chunks)
        sums = np.zeros(len(rows), dtype)
        kernel(self.elements, self.table, chunks, h, sums, at)
        return sums, rows


def _kinds(xs: list[Tensor]) -> list[tuple]:
    return [(x.dtype, x.stride(), x.numel(), x.is_neg(), type(x)) for x in xs]


def _whole(sizes: list[int]) -> list[tuple[list[int], int]]: return [([0], n) for n in sizes]


def _chunks(runs_of: list[tuple[Iterable[int], int]], most: int) -> np.ndarray:
    """Rows (row of the table, first element, number of elements, place of the first in the whole tensor): the `runs` of
    each tensor cut into pieces of at most `most` elements."""
    rows = [(e, i*n + low, min(most, n - low), start + low) for e, (starts, n) in enumerate(runs_of)
            for i, start in enumerate(starts) for low in range(0, n, most)]
    return np.array(rows, np.int64).reshape(-1, 4)
