"Memory as kernels see it: which tensors they can step, and the pieces in which they take them."
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

__all__ = ['BLOCK', 'blocks', 'chunks', 'flat', 'is_dense', 'irregular', 'whole']

BLOCK = 4096  # elements that are summed together, whatever the pieces


def irregular(x: Tensor) -> str:
    "Why no kernel can work on a tensor, whatever its device and dtype; '' if one might."
    if type(x) not in (Tensor, torch.nn.Parameter): return f'{type(x).__name__} is a tensor subclass'
    if x.is_neg(): return 'it is a lazily negated view'
    return '' if is_dense(x) else 'its layout has gaps or overlaps'


def is_dense(x: Tensor) -> bool:
    "Whether `x` fills its memory without gaps or overlaps, in any order of dimensions."
    if x.is_contiguous(): return True
    expected, dims = 1, [(s, n) for n, s in zip(x.shape, x.stride(), strict=True) if n != 1]
    for stride, size in sorted(dims):
        if stride != expected: return False
        expected *= size
    return True


def flat(x: Tensor) -> Tensor:
    "The elements of a dense tensor in the order of memory."
    return x.view(-1) if x.is_contiguous() else x.as_strided((x.numel(),), (1,))


def whole(sizes: list[int]) -> list[tuple[Iterable[int], int]]:
    "One run for each tensor: its elements in the order of memory."
    return [([0], n) for n in sizes]


def chunks(runs: list[tuple[Iterable[int], int]], most: int) -> np.ndarray:
    """Rows (row of the table, first element, number of elements, place of the first in the whole tensor): the `runs` of
    each tensor, the places where they start and their length, cut into pieces of at most `most` elements."""
    rows = [np.zeros((0, 4), np.int64)]
    for e, (starts, n) in enumerate(runs):
        starts, lows = np.asarray(starts, np.int64)[:, None], np.arange(0, n, most)
        first = np.arange(len(starts))[:, None]*n + lows
        columns = np.broadcast_arrays(e, first, np.minimum(most, n - lows), starts + lows)
        rows.append(np.stack(columns, -1).reshape(-1, 4))
    return np.concatenate(rows)


def blocks(chunks: np.ndarray, size: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    "For each chunk the index of its first block of `size`; for each block the row of the table it belongs to."
    counts = -(-chunks[:, 2] // size)
    return np.cumsum(counts) - counts, np.repeat(chunks[:, 0], counts)
