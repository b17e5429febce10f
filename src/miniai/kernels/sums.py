"""Kernels that sum over a table: squared gradients, and elements for which a mask holds. They sum by fixed blocks, in
order, and therefore give the same bits for any number of threads and any chunk size."""
from functools import lru_cache

import torch

from miniai.kernels.memory import BLOCK
from miniai.kernels.numba import Kernel
from miniai.kernels.source import template_parts
from miniai.kernels.trace import Trace

__all__ = ['norm_kernel', 'count_kernel']

SOURCE = '''"Generated; safe to delete."
from math import sqrt

import numpy as np
from numba import carray, njit, prange

from miniai.kernels.pointers import f32_at, f64_at, u16_at, widened

FLAGS = dict(fastmath={{{flags}}}, error_model='numpy', nogil=True)


@njit(**FLAGS)
def where(c, a, b): return a if c else b


@njit(**FLAGS)
def block({pointers}, n, h, e):
    {arrays}
    {hosts}
    total = {zero}
    for j in range(n):
        {loads}
        {lines}
        total += {term}
    return total


@njit(**FLAGS)
def chunk(table, e, start, n, h, sums, at):
    for b in range((n + {block} - 1) // {block}):
        first = start + b*{block}
        sums[at + b] = block({addresses}, min({block}, n - b*{block}), h, e)


@njit(**FLAGS)
def serial(table, chunks, h, sums, at):
    for k in range(chunks.shape[0]): chunk(table, chunks[k, 0], chunks[k, 1], chunks[k, 2], h, sums, at[k])


@njit(parallel=True, **FLAGS)
def parallel(table, chunks, h, sums, at):
    for k in prange(chunks.shape[0]): chunk(table, chunks[k, 0], chunks[k, 1], chunks[k, 2], h, sums, at[k])
'''
_SQUARES = Trace(('p', 'g'), (), lines={'np.float64(g_)': 'x'})


@lru_cache(maxsize=8)
def norm_kernel(dtype: torch.dtype) -> Kernel:
    "The kernel that writes to `sums` the sum of squares of each block of gradients, the second column of the table."
    return Kernel(SOURCE.format(flags="'contract', 'nsz', 'reassoc'", zero='0.', term='x*x', block=BLOCK,
                                **template_parts(_SQUARES, (dtype, dtype))))


@lru_cache(maxsize=256)
def count_kernel(mask: Trace, dtypes: tuple[torch.dtype, ...]) -> Kernel:
    "The kernel that writes to `sums` the number of elements in each block for which `mask` holds."
    return Kernel(SOURCE.format(flags="'contract', 'nsz'", zero='0', term=f'({mask.results[0]})', block=BLOCK,
                                **template_parts(mask, dtypes)))
