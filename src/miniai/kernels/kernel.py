"""Kernels: a trace written out as a file for Numba, compiled once and kept on disk. Knows code and files, no rule, no
optimizer."""
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from types import ModuleType

import numpy as np
import torch

from miniai.kernels.cache import load_module, seal
from miniai.kernels.threads import undisturbed
from miniai.kernels.trace import Trace

__all__ = ['Kernel', 'kernel_of', 'parts', 'compiled', 'POINTERS', 'SIZES']

compiled = Counter()
POINTERS = {torch.float32: 'f32_at', torch.float64: 'f64_at', torch.bfloat16: 'u16_at'}
SIZES = {torch.float32: 4, torch.float64: 8, torch.bfloat16: 2}

SOURCE = '''"Generated from a rule; delete it freely."
from math import sqrt

import numpy as np
from numba import carray, njit, prange

from miniai.kernels.pointers import dithered, drawn, f32_at, f64_at, high, low, mixed, rounded, u16_at, widened

FLAGS = dict(fastmath={{'contract', 'nsz'}}, error_model='numpy', nogil=True, cache=True)


@njit(**FLAGS)
def where(c, a, b): return a if c else b


@njit(**FLAGS)
def segment({pointers}, n, first, h, keys, e):
    {arrays}
    {hosts}
    for j in range(n):
        {loads}
        {lines}
        {stores}


@njit(**FLAGS)
def serial(table, chunks, h, keys):
    for k in range(chunks.shape[0]):
        e, first, n = chunks[k, 0], chunks[k, 1], chunks[k, 2]
        segment({addresses}, n, first, h, keys, e)


@njit(parallel=True, **FLAGS)
def parallel(table, chunks, h, keys):
    for k in prange(chunks.shape[0]):
        e, first, n = chunks[k, 0], chunks[k, 1], chunks[k, 2]
        segment({addresses}, n, first, h, keys, e)
'''


def parts(trace: Trace, dtypes: tuple[torch.dtype, ...], lines: Iterable[str] = ()) -> dict[str, str]:
    """What any kernel over a trace's elements, which have `dtypes`, is written with: its pointers and their addresses,
    the values that it is given and loads, and its lines, after `lines`."""
    names = trace.arguments
    def load(k: int, nm: str) -> str:
        return f'{nm} = widened(a{k}[j])' if dtypes[k] is torch.bfloat16 else f'{nm} = a{k}[j]'
    return dict(
        pointers=', '.join(f'q{k}' for k in range(len(names))),
        arrays='\n    '.join(f'a{k} = carray({POINTERS[d]}(q{k}), n)' for k, d in enumerate(dtypes)),
        hosts='\n    '.join(f'{nm} = h[e, {i}]' for i, nm in enumerate(trace.hosts.values())) or 'pass',
        loads='\n        '.join(load(k, nm) for k, nm in enumerate(names)),
        lines='\n        '.join([*lines, *(f'{nm} = {code}' for code, nm in trace.lines.items()), 'pass']),
        addresses=', '.join(f'table[e, {k}] + np.uint64(first*{SIZES[d]})' for k, d in enumerate(dtypes)))


def kernel_source(trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...]) -> str:
    "The file for a trace whose elements have `dtypes`; results of elements marked in `dither` are rounded at random."
    names, stored = trace.arguments, [nm for nm in trace.arguments if nm != 'g_']
    def store(k: int, r: str) -> str:
        if dtypes[k] is not torch.bfloat16: return f'a{k}[j] = {r}'
        if not dither[k]: return f'a{k}[j] = rounded({r})'
        turn = sum(dither[:k])
        return f'a{k}[j] = dithered({r}, {("low", "high")[turn % 2]}(d{turn//2}))'
    noise = ['d0 = drawn(first + j, keys[e, 0])'] if any(dither) else []
    noise += [f'd{i} = mixed(d{i - 1})' for i in range(1, (sum(dither) + 1)//2)]
    results = dict(zip(stored, trace.results, strict=True))
    stores = [store(k, results[nm]) for k, nm in enumerate(names) if nm in results]
    return SOURCE.format(stores='\n        '.join(stores), **parts(trace, dtypes, noise))


class Kernel:
    "A compiled trace: `run` steps chunks of a table of addresses."
    def __init__(self, source: str) -> None: self.source, self.ready = source, {}

    def run(self, way: str, table: np.ndarray, chunks: np.ndarray, *rest: np.ndarray) -> None:
        "Run `way`, 'serial' or 'parallel', compiling it first where that has not been done."
        self.prepare(way, *rest)(table, chunks, *rest)

    def prepare(self, way: str, *rest: np.ndarray) -> Callable:
        """Compile, or load, on no chunks at all: what fails here has touched no memory. A cache that fails is done
        without."""
        if way in self.ready: return self.ready[way]
        with undisturbed:
            try: self.ready[way] = self._compiled(load_module(self.source), way, rest)
            except Exception: self.ready[way] = self._compiled(load_module(self.source, afresh=True), way, rest)
        return self.ready[way]

    def _compiled(self, module: ModuleType, way: str, rest: tuple[np.ndarray, ...]) -> Callable:
        function = getattr(module, way)
        function(np.zeros((1, 1), np.uint64), np.zeros((0, 3), np.int64), *rest)
        compiled[way] += sum(function.stats.cache_misses.values())
        seal(module)
        return function


@lru_cache(maxsize=256)
def kernel_of(trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...]) -> Kernel:
    "The kernel of a trace, one for each choice of dtypes and rounding."
    return Kernel(kernel_source(trace, dtypes, dither))
