"The Python source of a kernel: a trace written out for Numba, as a loop over pieces of a table of addresses."
from collections.abc import Iterable, Iterator

import torch

from miniai.kernels.packed import PER_BLOCK, ROW
from miniai.kernels.trace import Trace

__all__ = ['POINTERS', 'SIZES', 'step_source', 'template_parts']

POINTERS = {torch.float32: 'f32_at', torch.float64: 'f64_at', torch.bfloat16: 'u16_at', torch.uint8: 'u8_at'}
SIZES = {torch.float32: 4, torch.float64: 8, torch.bfloat16: 2}

STEP = '''"Generated from a rule; safe to delete."
from math import sqrt

import numpy as np
from numba import carray, njit, prange

from miniai.kernels.pointers import (
    dithered, draw, drawn, f32_at, f64_at, format_of, high, largest, low, mixed, pack, rounded, u8_at, u16_at,
    unpacked, widened)

FLAGS = dict(fastmath={{'contract', 'nsz'}}, error_model='numpy', nogil=True)


@njit(**FLAGS)
def where(c, a, b): return a if c else b


{segment}


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


SEGMENT = '''@njit(**FLAGS)
def segment({pointers}, n, place, h, keys, e):
    {arrays}
    {hosts}
    for j in range(n):
        {loads}
        {lines}
        {stores}'''

# With states in 8 bits: block by block, first all numbers, then the bytes of those states.
BLOCKS = '''@njit(**FLAGS)
def block({pointers}, {buffers}, n, place, h, keys, e):
    {arrays}
    {formats}
    {hosts}
    for j in range(n):
        {loads}
        {lines}
        {stores}
    {packs}


@njit(**FLAGS)
def segment({pointers}, n, place, h, keys, e):
    {allocations}
    for first in range(0, n, {per_block}):
        block({further}, {buffers}, min({per_block}, n - first), place + first, h, keys, e)'''


def template_parts(trace: Trace, dtypes: tuple[torch.dtype, ...], first_lines: Iterable[str] = ()) -> dict[str, str]:
    """What every template over a trace's elements needs: typed pointers, their addresses in the table, how states in
    8 bits are read, loads, and the trace's lines after `first_lines`. `dtypes` are those of the elements."""
    names = trace.arguments
    load = {torch.bfloat16: 'widened(a{0}[j])', torch.uint8: 'unpacked(a{0}[j], *f{0})'}
    loads = [f"{nm} = {load.get(d, 'a{0}[j]').format(k)}" for k, (nm, d) in enumerate(zip(names, dtypes, strict=True))]
    return dict(
        pointers=', '.join(f'q{k}' for k in range(len(names))),
        arrays='\n    '.join(f'a{k} = carray({POINTERS[d]}(q{k}), {_length(d)})' for k, d in enumerate(dtypes)),
        hosts='\n    '.join(f'{nm} = h[e, {i}]' for i, nm in enumerate(trace.hosts.values())) or 'pass',
        loads='\n        '.join(loads),
        lines='\n        '.join([*first_lines, *(f'{nm} = {code}' for code, nm in trace.lines.items()), 'pass']),
        formats='\n    '.join(_formats(dtypes)),
        addresses=', '.join(f'table[e, {k}] + {_offset(d)}' for k, d in enumerate(dtypes)))


def _formats(dtypes: tuple[torch.dtype, ...]) -> Iterator[str]:
    "The scale of each state in 8 bits, and how its bytes are read."
    for k, dtype in enumerate(dtypes):
        if dtype is not torch.uint8: continue
        yield f's{k} = carray(f32_at(q{k} + np.uint64({PER_BLOCK})), 1)'
        yield f'f{k} = (*format_of(s{k}[0]), abs(s{k}[0]))'


def _length(dtype: torch.dtype) -> str: return str(PER_BLOCK) if dtype is torch.uint8 else 'n'


def _offset(dtype: torch.dtype) -> str:
    if dtype is torch.uint8: return f'np.uint64(first//{PER_BLOCK}*{ROW})'
    return f'np.uint64(first*{SIZES[dtype]})'


def step_source(trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...]) -> str:
    """A module whose `serial` and `parallel` write a trace's results over its elements, the gradient excepted. Elements
    have `dtypes`, states in 8 bits uint8; those marked in `dither` are rounded at random."""
    noise = ['d0 = drawn(place + j, keys[e, 0])'] if any(dither) else []
    noise += [f'd{i} = mixed(d{i - 1})' for i in range(1, (sum(dither) + 1)//2)]
    results, stores = iter(trace.results), []
    for k, (nm, dtype) in enumerate(zip(trace.arguments, dtypes, strict=True)):
        if nm == 'g_': continue
        value, turn = next(results), sum(dither[:k])  # two elements share a number of 32 random bits, half each
        if dtype is torch.uint8: stores.append(f'b{k}[j] = {value}')
        elif value == nm: continue  # unchanged
        elif dtype is not torch.bfloat16: stores.append(f'a{k}[j] = {value}')
        elif not dither[k]: stores.append(f'a{k}[j] = rounded({value})')
        else: stores.append(f'a{k}[j] = dithered({value}, {("low", "high")[turn % 2]}(d{turn//2}))')
    parts = template_parts(trace, dtypes, noise) | dict(stores='\n        '.join([*stores, 'pass']))
    template = BLOCKS if torch.uint8 in dtypes else SEGMENT
    return STEP.format(segment=template.format(**parts, **_packing(dtypes, dither)), **parts)


def _packing(dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...]) -> dict[str, str]:
    "What the template needs for states in 8 bits: their buffers, formats and bytes."
    packs, ks = [], [k for k, d in enumerate(dtypes) if d is torch.uint8]
    for k in ks:
        turn = sum(dither[:k])
        if turn % 2 == 0 or k == ks[0]: packs.append(f'draw(noise, n, place, keys[e, 0], {turn//2})')
        packs += [f's{k}[0] = largest(b{k}, n)', f'pack(b{k}, n, a{k}, s{k}[0], noise, np.uint32({turn % 2*16}))']
    buffers = [*(f'b{k}' for k in ks), 'noise']
    allocations = [f'{nm} = np.empty({PER_BLOCK}, np.{"uint32" if nm == "noise" else "float32"})' for nm in buffers]
    return dict(buffers=', '.join(buffers), allocations='\n    '.join(allocations), per_block=str(PER_BLOCK),
                packs='\n    '.join(packs),
                further=', '.join(f'q{k} + {_offset(d)}' for k, d in enumerate(dtypes)))
