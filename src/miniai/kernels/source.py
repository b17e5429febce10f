"The Python source of a kernel: a trace written out for Numba, as a loop over pieces of a table of addresses."
from collections.abc import Iterable

import torch

from miniai.kernels.trace import Trace

__all__ = ['POINTERS', 'SIZES', 'step_source', 'template_parts']

POINTERS = {torch.float32: 'f32_at', torch.float64: 'f64_at', torch.bfloat16: 'u16_at'}
SIZES = {torch.float32: 4, torch.float64: 8, torch.bfloat16: 2}

STEP = '''"Generated from a rule; safe to delete."
from math import sqrt

import numpy as np
from numba import carray, njit, prange

from miniai.kernels.pointers import dithered, drawn, f32_at, f64_at, high, low, mixed, rounded, u16_at, widened

FLAGS = dict(fastmath={{'contract', 'nsz'}}, error_model='numpy', nogil=True)


@njit(**FLAGS)
def where(c, a, b): return a if c else b


@njit(**FLAGS)
def segment({pointers}, n, place, h, keys, e):
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
        segment({addresses}, n, chunks[k, 3], h, keys, e)


@njit(parallel=True, **FLAGS)
def parallel(table, chunks, h, keys):
    for k in prange(chunks.shape[0]):
        e, first, n = chunks[k, 0], chunks[k, 1], chunks[k, 2]
        segment({addresses}, n, chunks[k, 3], h, keys, e)
'''


def template_parts(trace: Trace, dtypes: tuple[torch.dtype, ...], first_lines: Iterable[str] = ()) -> dict[str, str]:
    """What every template over a trace's elements needs: typed pointers, their addresses in the table, loads, and the
    trace's lines after `first_lines`. `dtypes` are those of the elements."""
    names = trace.arguments
    loads = [f'{nm} = widened(a{k}[j])' if d is torch.bfloat16 else f'{nm} = a{k}[j]'
             for k, (nm, d) in enumerate(zip(names, dtypes, strict=True))]
    return dict(
        pointers=', '.join(f'q{k}' for k in range(len(names))),
        arrays='\n    '.join(f'a{k} = carray({POINTERS[d]}(q{k}), n)' for k, d in enumerate(dtypes)),
        hosts='\n    '.join(f'{nm} = h[e, {i}]' for i, nm in enumerate(trace.hosts.values())) or 'pass',
        loads='\n        '.join(loads),
        lines='\n        '.join([*first_lines, *(f'{nm} = {code}' for code, nm in trace.lines.items()), 'pass']),
        addresses=', '.join(f'table[e, {k}] + np.uint64(first*{SIZES[d]})' for k, d in enumerate(dtypes)))


def step_source(trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...]) -> str:
    """A module whose `serial` and `parallel` write a trace's results over its elements, the gradient excepted. Elements
    have `dtypes`; those marked in `dither` are rounded to bfloat16 at random."""
    noise = ['d0 = drawn(place + j, keys[e, 0])'] if any(dither) else []
    noise += [f'd{i} = mixed(d{i - 1})' for i in range(1, (sum(dither) + 1)//2)]
    results, stores = iter(trace.results), []
    for k, (nm, dtype) in enumerate(zip(trace.arguments, dtypes, strict=True)):
        if nm == 'g_': continue
        value, turn = next(results), sum(dither[:k])  # two elements share a number of 32 random bits, half each
        if dtype is not torch.bfloat16: stores.append(f'a{k}[j] = {value}')
        elif not dither[k]: stores.append(f'a{k}[j] = rounded({value})')
        else: stores.append(f'a{k}[j] = dithered({value}, {("low", "high")[turn % 2]}(d{turn//2}))')
    return STEP.format(stores='\n        '.join(stores), **template_parts(trace, dtypes, noise))
