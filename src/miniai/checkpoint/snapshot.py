"What a save writes: the head and the tensors' memory, or copies of it for a background save."
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.checkpoint.background import BackgroundThread
from miniai.checkpoint.geometry import memory_of
from miniai.checkpoint.header import header_bytes
from miniai.checkpoint.tree import flatten

__all__ = ['Content', 'CopyBuffer']

_PIECE = 1 << 19  # bytes copied at a time; a piece that fits a core's cache is a little faster
_SPARE = 1 << 20  # bytes reserved beyond what a state needs, for records that grow


class Content:
    "A state as it will be in the file: `head`, then the memory of each tensor; `size` is the bytes of all."
    def __init__(self, state: Any) -> None:
        json, leaves = flatten(state)
        by_itemsize = sorted(leaves.items(), key=lambda item: -item[1].geometry.itemsize)  # so that all are aligned
        self.leaves = dict(by_itemsize)
        self.head = header_bytes(json, self.leaves)
        self.sizes = [leaf.geometry.nbytes for leaf in self.leaves.values()]
        self.size = len(self.head) + sum(self.sizes)

    def memories(self) -> list[memoryview | Tensor]:
        "Flat bytes of each tensor, not copied, in the order of the file."
        return [memory_of(leaf) for leaf in self.leaves.values()]


class CopyBuffer:
    """Memory on the CPU for copies of tensors, reused from one save to the next, because allocating new pages takes
    longer than the copy itself. It is a numpy array: the thread that writes it to disk must not call torch."""
    def __init__(self) -> None: self.memory = np.empty(0, np.uint8)

    def copies(self, content: Content) -> list[memoryview]:
        "Copies of the content's memories, in the buffer."
        total = self.reserve(content)
        parts = np.split(self.memory, np.cumsum([0, *content.sizes]))[1:-1]
        todo = iter([pair for source, part in zip(content.memories(), parts, strict=True)
                     for pair in _pieces(source, part)])  # for two threads: memory has bandwidth for more than one
        with BackgroundThread() as thread:
            if total > _PIECE: thread.submit(_copy, todo)
            _copy(todo)
        return list(map(memoryview, parts))

    def reserve(self, content: Content) -> int:
        "Make the buffer large enough for `content` and some growth, its pages touched; return the bytes of data."
        total = sum(content.sizes)
        if len(self.memory) < total: self.memory = np.full(total + total//16 + _SPARE, 0, np.uint8)
        return total


def _pieces(source: memoryview | Tensor, to: np.ndarray) -> Iterator[tuple]:
    if isinstance(source, Tensor): return iter([(source, torch.from_numpy(to))])
    return ((np.asarray(source[at:at + _PIECE]), to[at:at + _PIECE]) for at in range(0, len(to), _PIECE))


def _copy(pairs: Iterator[tuple]) -> None:
    for source, to in pairs:
        if isinstance(source, Tensor): to.copy_(source)
        else: np.copyto(to, source)  # torch's own copy may wait for all its threads
