"""Kernels that sum values of elements over the parameters of a table. They sum by fixed blocks, in order, and therefore
give the same bits for any number of threads and any chunk size."""
from functools import lru_cache

import torch

from miniai.kernels.memory import BLOCK
from miniai.kernels.numba import Kernel
from miniai.kernels.packed import PER_BLOCK
from miniai.kernels.source import template_parts
from miniai.kernels.trace import Trace

__all__ = ['block_of', 'sum_kernel']

SOURCE = '''"Generated; safe to delete."
from math import sqrt

import numpy as np
from numba import carray, njit, prange

from miniai.kernels.pointers import f32_at, f64_at, format_of, u8_at, u16_at, unpacked, widened

FLAGS = dict(fastmath={{'contract', 'nsz'}}, error_model='numpy', nogil=True)


@njit(**FLAGS)
def where(c, a, b): return a if c else b


@njit(**FLAGS)
def double(x): return np.float64(x)


@njit(fastmath={{'contract', 'nsz', 'reassoc'}}, error_model='numpy', nogil=True)
def plus(total, x): return total + x


@njit(**FLAGS)
def block({pointers}, n, h, e, sums):
    {arrays}
    {formats}
    {hosts}
    {zeros}
    for j in range(n):
        {loads}
        {lines}
        {terms}
    {totals}


@njit(**FLAGS)
def chunk(table, e, start, n, h, sums, at):
    for b in range((n + {block} - 1) // {block}):
        first = start + b*{block}
        block({addresses}, min({block}, n - b*{block}), h, e, sums[at + b])


@njit(**FLAGS)
def serial(table, chunks, h, sums, at):
    for k in range(chunks.shape[0]): chunk(table, chunks[k, 0], chunks[k, 1], chunks[k, 2], h, sums, at[k])


@njit(parallel=True, **FLAGS)
def parallel(table, chunks, h, sums, at):
    for k in prange(chunks.shape[0]): chunk(table, chunks[k, 0], chunks[k, 1], chunks[k, 2], h, sums, at[k])
'''


def block_of(dtypes: tuple[torch.dtype, ...]) -> int:
    "How many elements are summed together: those that share a scale, where states are kept in 8 bits."
    return PER_BLOCK if torch.uint8 in dtypes else BLOCK


@lru_cache(maxsize=256)
def sum_kernel(trace: Trace, dtypes: tuple[torch.dtype, ...]) -> Kernel:
    """The kernel that writes to `sums`, for each block, the sum of each of the trace's results, in double precision.
    `dtypes` are those of the elements."""
    names = [f't{i}' for i in range(len(trace.results))]
    return Kernel(SOURCE.format(
        block=block_of(dtypes), zeros='\n    '.join(f'{t} = 0.' for t in names),
        terms='\n        '.join(f'{t} = plus({t}, {x})' for t, x in zip(names, trace.results, strict=True)),
        totals='\n    '.join(f'sums[{i}] = {t}' for i, t in enumerate(names)), **template_parts(trace, dtypes)))
