"""Parameters that are stepped in one pass: their addresses, read again at each step, and the numbers the pass needs.

A pass is a class in kernels/. It is made from a trace and the mask's, the dtypes of the elements, which of them are
rounded at random, the pieces of memory that a row consists of, and the device. `unsupported(x)` says why it cannot work
on a tensor. At each step it may `prepare`, which can fail, and then must `step`; if asked it finds a `sum_of_squares`,
and `counts` elements. All take the addresses of a table's tensors, and a function that returns the tensors themselves.
"""
from collections.abc import Callable
from itertools import groupby
from operator import is_

import numpy as np
import torch
from torch import Tensor

from miniai.distributed.dtensor import groups_of, local, placement, runs, summed
from miniai.kernels.memory import whole
from miniai.kernels.python import host_function, scalar_places
from miniai.kernels.rounding import key_of
from miniai.kernels.trace import Trace
from miniai.optim.slot import Slot

__all__ = ['Table']


class Table:
    """Parameters with the same program, path, device, dtypes and, as DTensors, placement. Row e of `table` holds the
    addresses of parameter e, its gradient and its states; row e of `h` the values that Python computes for it at each
    step. `why` says why no better path steps them."""
    def __init__(self, slots: list[Slot], dither: tuple[bool, ...], path: type, why: str) -> None:
        first, trace = slots[0], slots[0].program.trace
        self.slots, self.program, self.why = slots, first.program, why
        self.where = placement(first.p)
        self.groups = groups_of(self.where)
        self.params, self.states = [s.p for s in slots], [s.state for s in slots]
        self.state_keys = [(s.state, k) for k in first.keys for s in slots]
        self.state_tensors = [state[k] for state, k in self.state_keys]
        self.staying, self.addresses = [*self.params, *self.state_tensors], []
        here, grads = list(map(local, self.staying)), [local(p.grad) for p in self.params]
        self.device, self.kinds, self.grad_kinds = here[0].device, _kinds(here), _kinds(grads)
        self.strides, sizes = [g.stride() for g in grads], [g.numel() for g in grads]
        self.elements, self.dithered = sum(sizes), any(dither)
        self.dtypes = first.p.dtype, *(x.dtype for x in (first.p, *first.tensors[1:]))
        self.table = np.zeros((len(slots), len(self.dtypes)), np.uint64)
        self.dice = np.zeros((len(slots) if self.dithered else 1, 1), np.uint32)
        self.path = path(trace, first.program.mask_trace, self.dtypes, (dither[0], False, *dither[1:]),
                         [runs(p) for p in self.params] if self.dithered else whole(sizes), self.device)
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
            if any(x.device != self.device for x in staying) or _kinds(staying) != self.kinds: return False
            self.addresses = addresses
            self.table[:, [0, *range(2, len(self.dtypes))]] = np.array(addresses, np.uint64).reshape(-1, len(grads)).T
        self.table[:, 1] = list(map(Tensor.data_ptr, grads))
        return True

    def fill(self, hypers: list[dict[str, float]], seed: int) -> None:
        "Compute the numbers that the pass needs, and prepare it. Changes no parameter and no state."
        shares = [self._shares(hypers)] if self.program.mask else []
        self._fill(self.h, self.hosts, hypers, shares)
        if self.dithered:
            self.dice[:, 0] = [key_of(seed, s.state['step'] + 1, s.place) for s in self.slots]
        self.path.prepare(self.table, self.h, self.dice)

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
        "Run the pass, then write the new numbers and step counts."
        self.path.step(self.table, self._tensors, self.h, self.dice)
        for state in self.states: state['step'] += 1
        for k, i in zip(self.number_keys, self.number_places, strict=True):
            for state, row in zip(self.states, self.new_numbers, strict=True): state[k] = row[i]

    def sum_of_squares(self) -> float:
        "The sum of squares of the gradients here, in double precision; NaN or infinite if one of them is."
        return self.path.sum_of_squares(self.table, self._tensors)

    def __str__(self) -> str:
        dtype, why = str(self.dtypes[0])[6:], f', because {self.why}' if self.why else ''
        count = f"{len(self.slots)} parameter{'s'*(len(self.slots) != 1)}"
        return f"{self.path.name}: {count}, {self.elements:,} elements in {dtype}, {self.path.place()}{why}"

    def _shares(self, hypers: list[dict[str, float]]) -> list[float]:
        "The share of each parameter's elements whose step agrees with the gradient, by a pass that only reads."
        trace, ones = self.program.mask_trace, [1.]*len(self.slots)
        h = self._rows(trace)
        self._fill(h, host_function(trace), hypers, [ones])
        counts = summed(self.path.counts(self.table, self._tensors, h), self.groups)
        return [c/max(1, p.numel()) for c, p in zip(counts, self.params, strict=True)]

    def _tensors(self) -> list[list[Tensor]]:
        "The parameters, their gradients, and each of their states: what this process has of them."
        n, tensors = len(self.params), [*self.params, *(p.grad for p in self.params), *self.state_tensors]
        if self.where is not None: tensors = list(map(local, tensors))
        return [tensors[i:i + n] for i in range(0, len(tensors), n)]


def _kinds(xs: list[Tensor]) -> list[tuple]:
    return [(x.dtype, x.stride(), x.numel(), x.is_neg(), type(x)) for x in xs]
