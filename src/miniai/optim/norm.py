"""The sum of squares of gradients in one pass, the same to the bit for any number of threads and any chunks: in double
precision, block by block, the blocks in order. Knows tables, no optimizer."""
from functools import lru_cache

import numpy as np
import torch

from .kernel import POINTERS, SIZES, Kernel

__all__ = ['BLOCK', 'norm_kernel', 'first_blocks', 'block_count']

BLOCK = 4096
SOURCE = '''"Generated; delete it freely."
import numpy as np
from numba import carray, njit, prange

from miniai.optim.pointers import f32_at, f64_at, u16_at, widened

FLAGS = dict(fastmath={{'contract', 'nsz', 'reassoc'}}, error_model='numpy', nogil=True, cache=True)


@njit(**FLAGS)
def block(q, n):
    a, s = carray({pointer}(q), n), 0.
    for j in range(n):
        x = np.float64({load})
        s += x*x
    return s


@njit(**FLAGS)
def chunk(q, n, first, sums, at):
    for b in range((n + {block} - 1) // {block}):
        low = b*{block}
        sums[at + b, 0] = block(q + np.uint64((first + low)*{size}), min({block}, n - low))


@njit(**FLAGS)
def serial(table, chunks, sums, keys):
    for k in range(chunks.shape[0]): chunk(table[chunks[k, 0], 1], chunks[k, 2], chunks[k, 1], sums, keys[k])


@njit(parallel=True, **FLAGS)
def parallel(table, chunks, sums, keys):
    for k in prange(chunks.shape[0]): chunk(table[chunks[k, 0], 1], chunks[k, 2], chunks[k, 1], sums, keys[k])
'''


@lru_cache(maxsize=8)
def norm_kernel(dtype: torch.dtype) -> Kernel:
    "A kernel that writes the sum of squares of each block of the table's gradients, its second column, to `sums`."
    load = 'widened(a[j])' if dtype is torch.bfloat16 else 'a[j]'
    return Kernel(SOURCE.format(pointer=POINTERS[dtype], size=SIZES[dtype], load=load, block=BLOCK))


def first_blocks(chunks: np.ndarray) -> np.ndarray:
    "For each chunk, the place of its first block among all."
    return np.cumsum(-(-chunks[:, 2] // BLOCK)) - (-(-chunks[:, 2] // BLOCK))


def block_count(chunks: np.ndarray) -> int:
    "The number of blocks in all chunks."
    return int((-(-chunks[:, 2] // BLOCK)).sum())
