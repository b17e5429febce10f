"""`save`: a state into a file, now or beside the caller, who may change the state right after. Knows tree, header
and durable writing."""
import atexit
import os
import sys
from collections.abc import Iterator
from os import PathLike
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .beside import Beside
from .durable import write_durably
from .geometry import memory_of
from .header import header_bytes
from .tree import flatten

__all__ = ['save', 'Saver', 'Pending']

_PIECE = 1 << 22  # bytes copied at a time
_pending: dict[str, 'Pending'] = {}


def save(path: str | PathLike, state: Any, *, background: bool = False) -> 'Pending | None':
    """Save `state`, a nest of dict (keys str or int), list, tuple, None, bool, int, float, str, bytes, tensors,
    numpy arrays and scalars, as one safetensors file at `path`, in place of what is there. On return it is on the
    disk to stay: written to a temporary file in the same folder, synced, read back and verified, renamed, the
    folder synced.

    Tensors that are the same memory with the same shape and strides are written once, and are one tensor again
    after `load`; other views of shared memory are written each with all that lies between its first element and its
    last.

    With `background=True` the state is copied as of now and written in a thread: the `Pending` that is returned
    knows when it is done. A failure is raised by its `wait()`, or by the next `save` to `path`, and is said at the
    interpreter's end at the latest. TypeError, at once and with the path in the nest, for what a checkpoint cannot
    hold; SaveError for what went wrong on the disk: the old file stands, and nothing else is left."""
    contents = _Contents(state)
    if (earlier := _pending.get(_key(path))): earlier.wait()
    if background: return Pending(path, contents, _Arena())
    contents.write(path, contents.memories())


def _key(path: str | PathLike) -> str: return os.path.realpath(path)


class _Contents:
    "A state as it will lie in the file: the head, and the tensors' memory in order."
    def __init__(self, state: Any) -> None:
        json, leaves = flatten(state)
        by_size = sorted(leaves.items(), key=lambda item: -item[1].geometry.itemsize)  # so that all lie aligned
        self.leaves = dict(by_size)
        self.head = header_bytes(json, self.leaves)
        self.sizes = [leaf.geometry.nbytes for leaf in self.leaves.values()]

    def memories(self) -> list[Tensor]: return [memory_of(leaf) for leaf in self.leaves.values()]

    def write(self, path: str | PathLike, memories: list[Tensor]) -> None:
        write_durably(os.fspath(path), self.head, memories, len(self.head) + sum(self.sizes))


class _Arena:
    "Memory that holds copies of tensors' bytes, used again for the next ones: fresh pages cost more than the copying."
    def __init__(self) -> None: self._memory = torch.empty(0, dtype=torch.uint8)

    def copies(self, contents: _Contents) -> list[Tensor]:
        "The contents' memories, copied, on the CPU."
        total = self.reserve(contents)
        kept = self._memory[:total].split(contents.sizes)
        pairs = [pair for mine, theirs in zip(kept, contents.memories(), strict=True) for pair in _pieces(theirs, mine)]
        todo = iter(pairs)  # two threads take from it: memory has room for more than one
        with Beside() as beside:
            if total > _PIECE: beside.do(_copy, todo)
            _copy(todo)
        return list(kept)

    def reserve(self, contents: _Contents) -> int:
        "Have memory for these contents and some growth, as of records, touched already: the number of their bytes."
        total = sum(contents.sizes)
        if len(self._memory) < total: self._memory = torch.zeros(total + total//16 + _PIECE//4, dtype=torch.uint8)
        return total


def _pieces(source: Tensor, to: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    return zip(source.split(_PIECE), to.split(_PIECE), strict=True) if source.is_cpu else iter([(source, to)])


def _copy(pairs: Iterator[tuple[Tensor, Tensor]]) -> None:
    for source, to in pairs:
        if source.is_cpu: np.copyto(to.numpy(), source.numpy())  # torch's own copy may wait for all its threads
        else: to.copy_(source)


class Pending:
    "A save that runs beside its caller."
    def __init__(self, path: str | PathLike, contents: _Contents, arena: _Arena) -> None:
        self.path, self._error = os.fspath(path), None
        memories = arena.copies(contents)
        self._thread = Thread(target=self._run, args=(contents, memories), name='miniai-save')
        _pending[_key(path)] = self
        self._thread.start()

    def _run(self, contents: _Contents, memories: list[Tensor]) -> None:
        try: contents.write(self.path, memories)
        except BaseException as e: self._error = e
        else: self._forget()

    def _forget(self) -> None:
        if _pending.get(_key(self.path)) is self: del _pending[_key(self.path)]

    def done(self) -> bool:
        "Whether it has ended, well or not."
        return not self._thread.is_alive()

    def wait(self) -> None:
        "Return when the file is on the disk to stay; raise what went wrong, a SaveError as a rule."
        self._thread.join()
        self._forget()
        if self._error: raise self._error


class Saver:
    """Saves one after the other, by default each beside its caller, in memory that is used again: as much as a
    state takes. A failure is raised by the next call, whichever it is. Leaving the `with` waits."""
    def __init__(self) -> None: self._last, self._arena = None, _Arena()
    def __enter__(self) -> 'Saver': return self
    def __exit__(self, *_: Any) -> None: self.wait()

    def save(self, path: str | PathLike, state: Any, *, background: bool = True) -> None:
        "As `miniai.checkpoint.save`, after the one before is done."
        contents = _Contents(state)
        self.wait()
        if background: self._last = Pending(path, contents, self._arena)
        else: contents.write(path, contents.memories())

    def reserve(self, state: Any) -> None:
        "Take the memory for background saves of such a state now, so that the first one stops the caller no longer."
        self._arena.reserve(_Contents(state))

    def done(self) -> bool:
        "Whether nothing is being written; raises the failure of what was."
        if self._last is None or not self._last.done(): return self._last is None
        self.wait()
        return True

    def wait(self) -> None:
        "Return when nothing is being written any more; raise the failure of what was."
        last, self._last = self._last, None
        if last: last.wait()


@atexit.register
def _say_what_nobody_heard() -> None:
    for p in list(_pending.values()):
        if p.done() and p._error: print(f'miniai: error: {p._error}', file=sys.stderr)
