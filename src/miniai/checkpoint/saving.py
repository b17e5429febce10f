"""`save`: a state into a file, now or beside the caller, who may change the state right after. Knows tree, header
and durable writing."""
import atexit
import os
import sys
from collections.abc import Iterable, Iterator
from os import PathLike
from threading import Event, Thread
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


def save(path: str | PathLike, state: Any, *, also: Iterable[str | PathLike] = (),
         background: bool = False) -> 'Pending | None':
    """Save `state`, a nest of dict (keys str or int), list, tuple, None, bool, int, float, str, bytes, tensors,
    numpy arrays and scalars, as one safetensors file at `path`, in place of what is there. On return it is on the
    disk to stay: written to a temporary file in the same folder, synced, read back and verified, renamed, the
    folder synced.

    Tensors that are the same memory with the same shape and strides are written once, and are one tensor again
    after `load`; other views of shared memory are written each with all that lies between its first element and its
    last.

    `also` are further names for the file, in any folders, each given as safely once it is on the disk under those
    before. They cost no second writing: it is one file under several names (hard links), so that damage to it is
    damage under all; whoever wants a copy to fall back on saves twice. Replaced or removed under one name, it stays
    under the others. Where the file system has no such names, or it is another one, the contents are written there
    again. A SaveError says which name could not be given: the file stays under those before it, and under it and
    those after it stays what was there.

    With `background=True` the state is copied as of now and written in a thread: the `Pending` that is returned
    knows when it is done. A failure is raised by its `wait()`, or by the next save under one of its names, and is
    said at the interpreter's end at the latest. TypeError, at once and with the path in the nest, for what a
    checkpoint cannot hold; SaveError for what went wrong on the disk: the old file stands, and nothing else is left."""
    return _saved(_real(path, also), state, _Arena() if background else None)


def _saved(paths: list[str], state: Any, arena: '_Arena | None') -> 'Pending | None':
    "Save, beside the caller where there is an arena to copy the state to."
    contents = _Contents(state)
    for earlier in [_pending[p] for p in paths if p in _pending]: earlier.wait()
    if arena: return Pending(paths, contents, arena)
    write_durably(*contents.written(paths, contents.memories()))


def _real(path: str | PathLike, also: Iterable[str | PathLike]) -> list[str]:
    "All paths as they are now, links followed, each once."
    if isinstance(also, str | PathLike): raise TypeError(f'also takes several paths: give ({also!r},) for this one')
    return list(dict.fromkeys(map(os.path.realpath, (path, *also))))


class _Contents:
    "A state as it will lie in the file: the head, and the tensors' memory in order."
    def __init__(self, state: Any) -> None:
        json, leaves = flatten(state)
        by_size = sorted(leaves.items(), key=lambda item: -item[1].geometry.itemsize)  # so that all lie aligned
        self.leaves = dict(by_size)
        self.head = header_bytes(json, self.leaves)
        self.sizes = [leaf.geometry.nbytes for leaf in self.leaves.values()]

    def memories(self) -> list[memoryview | Tensor]: return [memory_of(leaf) for leaf in self.leaves.values()]

    def written(self, paths: list[str], memories: list[memoryview | Tensor]) -> tuple:
        "What `write_durably` takes to write them, nothing else: no tensor may end with a daemon thread."
        return paths, self.head, memories, len(self.head) + sum(self.sizes)


class _Arena:
    """Memory that holds copies of tensors' bytes, used again for the next ones: fresh pages cost more than the copying.
    It is numpy's, so that no thread that writes it needs torch."""
    def __init__(self) -> None: self._memory = np.empty(0, np.uint8)

    def copies(self, contents: _Contents) -> list[memoryview]:
        "The contents' memories, copied, on the CPU."
        total = self.reserve(contents)
        kept = np.split(self._memory, np.cumsum([0, *contents.sizes]))[1:-1]
        pairs = [pair for mine, theirs in zip(kept, contents.memories(), strict=True) for pair in _pieces(theirs, mine)]
        todo = iter(pairs)  # two threads take from it: memory has room for more than one
        with Beside() as beside:
            if total > _PIECE: beside.do(_copy, todo)
            _copy(todo)
        return list(map(memoryview, kept))

    def reserve(self, contents: _Contents) -> int:
        "Have memory for these contents and some growth, as of records, touched already: the number of their bytes."
        total = sum(contents.sizes)
        if len(self._memory) < total: self._memory = np.full(total + total//16 + _PIECE//4, 0, np.uint8)
        return total


def _pieces(source: memoryview | Tensor, to: np.ndarray) -> Iterator[tuple]:
    if isinstance(source, Tensor): return iter([(source, torch.from_numpy(to))])
    return ((np.asarray(source[at:at + _PIECE]), to[at:at + _PIECE]) for at in range(0, len(to), _PIECE))


def _copy(pairs: Iterator[tuple]) -> None:
    for source, to in pairs:
        if isinstance(source, Tensor): to.copy_(source)
        else: np.copyto(to, source)  # torch's own copy may wait for all its threads


class Pending:
    "A save that runs beside its caller, to `paths`. The interpreter's end waits for it, unless it was abandoned."
    def __init__(self, paths: list[str], contents: _Contents, arena: _Arena) -> None:
        self.paths, self._error, self._over, self._abandoned = tuple(paths), None, Event(), False
        work = contents.written(paths, arena.copies(contents))
        self._thread = Thread(target=self._run, args=work, daemon=True, name='miniai-save')
        _pending.update(dict.fromkeys(paths, self))
        try:
            Thread(target=self._keep, daemon=False, name='miniai-save-kept').start()  # after the other it waits for it
            self._thread.start()
        except RuntimeError: self._run(*work)  # no thread can be had any more, at the interpreter's end
        except BaseException:
            self._over.set()  # else the interpreter would wait for ever
            raise

    def _keep(self) -> None:
        """Let the interpreter, which ends amid a daemon, wait for another thread until this save is over: a process
        that multiprocessing forked waits for threads at its end, and calls no atexit function."""
        self._over.wait()
        if self._thread.is_alive() and not self._abandoned: self._thread.join()

    def _run(self, *work: Any) -> None:
        try: write_durably(*work)
        except BaseException as e: self._error = e
        else: self._forget()
        self._over.set()

    def _forget(self) -> None:
        for p in self.paths:
            if _pending.get(p) is self: del _pending[p]

    def abandon(self) -> None:
        """Let the process end amid it: what stood under its names before stays there, and the temporary goes by
        `remove_stale`. As long as the process lives, it is written on, and `wait` waits."""
        self._abandoned = True
        self._over.set()

    def done(self) -> bool:
        "Whether it has ended, well or not."
        return not self._thread.is_alive()

    def wait(self) -> None:
        "Return when the file is on the disk to stay; raise what went wrong, a SaveError as a rule."
        if self._thread.is_alive(): self._thread.join()
        self._forget()
        if self._error: raise self._error


class Saver:
    """Saves one after the other, by default each beside its caller, in memory that is used again: as much as a
    state takes. A failure is raised by the next call, whichever it is. Leaving the `with` waits."""
    def __init__(self) -> None: self._last, self._arena = None, _Arena()
    def __enter__(self) -> 'Saver': return self
    def __exit__(self, *_: Any) -> None: self.wait()

    def save(self, path: str | PathLike, state: Any, *, also: Iterable[str | PathLike] = (),
             background: bool = True) -> None:
        "As `miniai.checkpoint.save`, after the one before is done."
        self.wait()
        self._last = _saved(_real(path, also), state, self._arena if background else None)

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

    def abandon(self) -> None:
        """Wait no longer for what is being written: the process may end amid it, as `Pending.abandon` says. Its failure
        is raised by the next save under one of its names, or said at the interpreter's end."""
        last, self._last, self._arena = self._last, None, _Arena()  # what is being written lies in the old one
        if last: last.abandon()


@atexit.register
def _say_what_nobody_heard() -> None:
    for p in set(_pending.values()):
        if p._error: print(f'miniai: error: {p._error}', file=sys.stderr)
