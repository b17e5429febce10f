"""`save`: a state into a file, now or beside the caller, who may change the state right after. Knows tree, header
and durable writing."""
import atexit
import os
import sys
from collections.abc import Iterable, Iterator
from os import PathLike
from queue import SimpleQueue
from threading import Thread, main_thread
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.checkpoint.background import Beside, Task
from miniai.checkpoint.durable import write_durably
from miniai.checkpoint.errors import SaveError
from miniai.checkpoint.geometry import memory_of
from miniai.checkpoint.header import header_bytes
from miniai.checkpoint.tree import flatten

__all__ = ['save', 'Saver', 'Pending']

_PIECE = 1 << 19  # bytes copied at a time: what fits a core's own cache goes a little quicker
_ROOM = 1 << 20   # bytes taken beside what a state needs, for records that grow
_pending: dict[str, 'Pending'] = {}


def save(path: str | bytes | PathLike, state: Any, *, also: Iterable[str | bytes | PathLike] = (),
         background: bool = False) -> 'Pending | None':
    """Save `state`, a nest of dict (keys str or int), list, tuple, None, bool, int, float, str, bytes, tensors,
    numpy arrays and scalars, as one safetensors file at `path`, in place of what is there. On return it is on the
    disk to stay: written to a temporary file in the same folder, synced, read back and verified, renamed, the
    folder synced.

    Tensors that are the same memory with the same shape and strides are written once, and are one tensor again
    after `load`; other views of shared memory are written each with all that lies between its first element and its
    last. Numpy arrays that run backwards, which torch has no strides for, or that are read-only come back by value:
    without gaps, and writable.

    `also` are further names for the file, in any folders, each given as safely once it is on the disk under those
    before. They cost no second writing: it is one file under several names (hard links), so that damage to it is
    damage under all; whoever wants a copy to fall back on saves twice. Replaced or removed under one name, it stays
    under the others. Where the file system has no such names, or it is another one, the contents are written there
    again. A SaveError says which name could not be given: the file stays under those before it, and under it and
    those after it stays what was there.

    With `background=True` the state is copied as of now and written in a thread: the `Pending` that is returned
    knows when it is done. A failure is raised by its `wait()`, or by the next save under one of its names, and is
    said at the interpreter's end at the latest, as is a Ctrl-C that cut its wait for the save short. A process forked
    amid it leaves the save to its parent: `wait` is a RuntimeError there, and what it saves itself waits for none of
    the parent's. Asked for during the interpreter's end, it is written before the call returns.

    TypeError, at once and with the path in the nest, for what a checkpoint cannot hold; SaveError for what went wrong
    on the disk: the old file stands, and nothing else is left. What is no regular file is never replaced: a SaveError
    before anything is written."""
    return _saved(_real(path, also), state, _Arena() if background else None)


def _saved(paths: list[str], state: Any, arena: '_Arena | None') -> 'Pending | None':
    "Save, beside the caller where there is an arena to copy the state to."
    contents = _Contents(state)
    for earlier in _ours(paths): earlier.wait()
    if arena: return Pending(paths, contents, arena)
    write_durably(*contents.written(paths, contents.memories()))


def _real(path: str | bytes | PathLike, also: Iterable[str | bytes | PathLike]) -> list[str]:
    "All paths as they are now, links followed, each once."
    if isinstance(also, str | bytes | PathLike):
        raise TypeError(f'also takes several paths: give ({also!r},) for this one')
    return list(dict.fromkeys(map(_where, (path, *also))))


def _where(path: str | bytes | PathLike) -> str:
    path = os.fsdecode(path)
    try: return os.path.realpath(path)
    except ValueError as e: raise SaveError(path, 0, 0, e, 'it is no path') from e  # it has a NUL


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
        if len(self._memory) < total: self._memory = np.full(total + total//16 + _ROOM, 0, np.uint8)
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
        work = contents.written(paths, arena.copies(contents))
        self.paths, self._pid, self._abandoned, self._let_go = tuple(paths), os.getpid(), False, SimpleQueue()
        self._task = Task(self._write, *work)
        try:
            _pending.update(dict.fromkeys(paths, self))
            self._begin()
        except BaseException:
            if self._task.cancel(): self._drop()
            raise

    def _begin(self) -> None:
        "Write in a thread, or else here, where a failure is raised at once: nobody might hear it later."
        if self._has_threads(): return
        self._task.run()
        self.wait()

    def _has_threads(self) -> bool:
        """One that writes, a daemon, and one that the interpreter waits for until the other is done or abandoned: a
        process that multiprocessing forked waits for threads at its end, and calls no atexit function. Neither, where
        they can be had no more, or nobody waits for them any more: at the interpreter's end."""
        if not main_thread().is_alive(): return False
        try:  # the one that is waited for first: amid the writing, its start would wait for the GIL
            Thread(target=self._let_go.get, daemon=False, name='miniai-save-kept').start()
            self._task.start()
        except RuntimeError: return False
        return True

    def _write(self, *work: Any) -> None:
        try: write_durably(*work)
        finally: self._let_go.put(None)
        self._forget()

    def _drop(self) -> None:
        self._forget()
        self._let_go.put(None)

    def _forget(self) -> None:
        for p in self.paths:
            if _pending.get(p) is self: del _pending[p]

    def abandon(self) -> None:
        """Let the process end amid it: what stood under its names before stays there, and the temporary goes by
        `remove_stale`. As long as the process lives, it is written on, and `wait` waits."""
        self._abandoned = True
        self._let_go.put(None)

    def done(self) -> bool:
        "Whether it has ended, well or not. Never true in a process forked amid it, which cannot know."
        return self._task.over

    def wait(self) -> None:
        """Return when the file is on the disk to stay; raise what went wrong, a SaveError as a rule. RuntimeError in a
        process forked amid it."""
        if not self.done() and not self._is_ours():
            raise RuntimeError(f'{self.paths[0]} is being saved by process {self._pid}, of which this one is a fork: '
                               'only that one can wait for it')
        self._task.wait()
        self._forget()
        if self._task.error: raise self._task.error

    def _is_ours(self) -> bool: return self._pid == os.getpid()

    def _say_at_the_end(self) -> None:
        "Say on stderr what nobody heard."
        e, path = self._task.error, self.paths[0]
        if e: print(f'miniai: error: {str(e) or repr(e)}', file=sys.stderr)
        elif not self.done() and not self._abandoned:
            print(f'miniai: error: {path} may not have been saved: the wait for it was interrupted', file=sys.stderr)


def _ours(paths: Iterable[str] | None = None) -> list[Pending]:
    "This process's saves under way or failed unheard, under any of `paths` or all; a fork has its parent's in memory."
    there = list(_pending.values()) if paths is None else map(_pending.get, paths)
    return [p for p in dict.fromkeys(there) if p and p._is_ours()]


class Saver:
    """Saves one after the other, by default each beside its caller, in memory that is used again: as much as a
    state takes. A failure is raised by the next call, whichever it is. Leaving the `with` waits."""
    def __init__(self) -> None: self._last, self._arena = None, _Arena()
    def __enter__(self) -> 'Saver': return self
    def __exit__(self, *_: Any) -> None: self.wait()

    def save(self, path: str | bytes | PathLike, state: Any, *, also: Iterable[str | bytes | PathLike] = (),
             background: bool = True) -> None:
        "As `miniai.checkpoint.save`, after the one before is done; a forked process leaves that one to its parent."
        if self._last and not self._last._is_ours(): self._last = None
        self.wait()
        arena, self._arena = self._arena, _Arena()  # an interrupt may leave the old one being written
        self._last = _saved(_real(path, also), state, arena if background else None)
        self._arena = arena

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
        last = self._last
        if not last: return
        try: last.wait()
        finally:
            if last.done(): self._last = None  # else an interrupt came, and its memory is not free yet

    def abandon(self) -> None:
        """Wait no longer for what is being written: the process may end amid it, as `Pending.abandon` says. Its failure
        is raised by the next save under one of its names, or said at the interpreter's end."""
        last, self._last, self._arena = self._last, None, _Arena()  # what is being written lies in the old one
        if last: last.abandon()


@atexit.register
def _wait_and_say() -> None:
    "Wait on, where an interrupt ended the interpreter's wait for threads, and say what nobody heard."
    left = _ours()
    try:
        for p in left:
            if not p._abandoned: p._task.wait()
    finally:
        for p in left: p._say_at_the_end()
