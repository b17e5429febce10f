"""Parameters that are stepped in one pass: their addresses, read again at each step, and the numbers the pass needs.

A pass is a class in kernels/. It is made from a trace, the dtypes of the elements, which of them are rounded at random,
the pieces of memory that a row consists of, and the device. `unsupported(x)` says why it cannot work on a tensor. At
each step it may `prepare`, which can fail, and then must `step`; if asked it finds the `sums` of another trace's
results, for each row. All take the addresses of a table's tensors, and a function that returns the tensors themselves.
"""
from collections.abc import Callable
from itertools import groupby
from operator import is_

import numpy as np
import torch
from torch import Tensor

from miniai.distributed.dtensor import groups_of, local, placement, runs, summed
from miniai.kernels.math import double
from miniai.kernels.memory import whole
from miniai.kernels.python import host_function, scalar_places
from miniai.kernels.rounding import key_of
from miniai.kernels.trace import Trace, trace_rule
from miniai.optim.slot import Slot

__all__ = ['Table']

_SQUARES = trace_rule(lambda p, g: double(g)*double(g), ('p', 'g'))


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
        self.path = path(trace, self.dtypes, (dither[0], False, *dither[1:]),
                         [runs(p) for p in self.params] if self.dithered else whole(sizes), self.device)
        self.h, self.number_names = self._rows(trace), ('t', *first.program.scalars)
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
        sums = {}
        for trace in self.program.passes:
            found = self.sums(trace, hypers, sums)
            found = np.array(summed(found.ravel().tolist(), self.groups)).reshape(found.shape)
            sums |= zip(trace.sums.values(), found.T, strict=True)
        self._fill(self.h, self.program.trace, hypers, sums)
        if self.dithered:
            self.dice[:, 0] = [key_of(seed, s.state['step'] + 1, s.place) for s in self.slots]
        self.path.prepare(self.table, self.h, self.dice)

    def sums(self, trace: Trace, hypers: list[dict[str, float]], known: dict[str, np.ndarray]) -> np.ndarray:
        "For each row the sums of a trace's results, over the elements here. `known` are earlier sums that it takes."
        h = self._rows(trace)
        self._fill(h, trace, hypers, known)
        return self.path.sums(trace, self.table, self._tensors, h)

    def _fill(self, h: np.ndarray, trace: Trace, hypers: list[dict[str, float]], sums: dict[str, np.ndarray]) -> None:
        "Fill the rows of `h`, computing once those of a group that have step count and numbers in common."
        names, hosts = self.number_names, host_function(trace)
        numbers = [[s['step'] + 1 for s in self.states], *([s[k] for s in self.states] for k in self.number_keys)]
        if self.program.passes:
            given = {nm: np.array(xs, np.float64) for nm, xs in zip(names, numbers, strict=True)}
            return self._fill_columns(h, hosts, hypers, given | sums)
        keys = list(zip(*numbers, strict=True))
        for group, first, last in self.runs:
            rows = {k: hosts(**hypers[group], **dict(zip(names, k, strict=True))) for k in set(keys[first:last])}
            if len(rows) == 1: h[first:last] = rows[keys[first]]
            else: h[first:last] = [rows[k] for k in keys[first:last]]
            if self.number_places: self.new_numbers[first:last] = [rows[k] for k in keys[first:last]]

    def _fill_columns(self, h: np.ndarray, hosts: Callable, hypers: list[dict[str, float]],
                      given: dict[str, np.ndarray]) -> None:
        "The same with sums, which differ by row: column by column."
        with np.errstate(all='ignore'):  # what divides by zero on one path does so on all
            for group, first, last in self.runs:
                found = hosts(**hypers[group], **{nm: xs[first:last] for nm, xs in given.items()})
                for i, x in enumerate(found): h[first:last, i] = x
                if not self.number_places: continue
                columns = [np.broadcast_to(x, last - first).tolist() for x in found]
                self.new_numbers[first:last] = zip(*columns, strict=True)

    def launch(self) -> None:
        "Run the pass, then write the new numbers and step counts."
        self.path.step(self.table, self._tensors, self.h, self.dice)
        for state in self.states: state['step'] += 1
        for k, i in zip(self.number_keys, self.number_places, strict=True):
            for state, row in zip(self.states, self.new_numbers, strict=True): state[k] = row[i]

    def sum_of_squares(self) -> float:
        "The sum of squares of the gradients here, in double precision; NaN or infinite if one of them is."
        return float(self.path.sums(_SQUARES, self.table, self._tensors, self._rows(_SQUARES)).sum())

    def __str__(self) -> str:
        dtype, why = str(self.dtypes[0])[6:], f', because {self.why}' if self.why else ''
        count = f"{len(self.slots)} parameter{'s'*(len(self.slots) != 1)}"
        return f"{self.path.name}: {count}, {self.elements:,} elements in {dtype}, {self.path.place()}{why}"

    def _tensors(self) -> list[list[Tensor]]:
        "The parameters, their gradients, and each of their states: what this process has of them."
        n, tensors = len(self.params), [*self.params, *(p.grad for p in self.params), *self.state_tensors]
        if self.where is not None: tensors = list(map(local, tensors))
        return [tensors[i:i + n] for i in range(0, len(tensors), n)]


def _kinds(xs: list[Tensor]) -> list[tuple]:
    return [(x.dtype, x.stride(), x.numel(), x.is_neg(), type(x)) for x in xs]
