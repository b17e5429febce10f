"`save` a state to a file, now or in the background while the caller continues and may change the state."
import atexit
import os
import sys
from collections.abc import Iterable
from concurrent.futures import wait
from itertools import zip_longest
from os import PathLike
from threading import Event
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.checkpoint.durable import SaveError, in_thread, write_durably
from miniai.checkpoint.header import header_bytes
from miniai.checkpoint.layout import memory_of
from miniai.checkpoint.tree import flatten

__all__ = ['save', 'Saver', 'Pending']

_last: 'Pending | None' = None  # the save that is in progress, or failed and was not reported


def save(path: str | bytes | PathLike, state: Any, *, also: Iterable[str | bytes | PathLike] = (),
         background: bool = False) -> 'Pending | None':
    """Save `state`, nested dicts (keys str or int), lists and tuples of None, bools, numbers, text, bytes, tensors and
    numpy arrays and scalars, as one safetensors file that replaces `path`. On return it has been read back and will
    survive a power loss. Tensors that are the same memory with the same shape and strides are written once.

    `also` are further names for the file: hard links, or copies where links are not possible. With `background=True`
    the state is copied now and written in a thread. The next save, and the interpreter's exit, wait for it; they or the
    Pending's `wait()` report a failure. TypeError, with the path in the state, for a value that a checkpoint cannot
    hold; SaveError if the file cannot be written: the old one stays."""
    return _save(path, state, also, [] if background else None)


def _save(path: Any, state: Any, also: Any, copies: list[np.ndarray] | None) -> 'Pending | None':
    "Save now, or with `copies`, into which the state is copied, in the background."
    paths = _real_paths(path, also)
    json, leaves = flatten(state)
    leaves = dict(sorted(leaves.items(), key=lambda item: -item[1][0].itemsize))  # so that all are aligned
    head, memories = header_bytes(json, leaves), [memory_of(t) for _, t in leaves.values()]
    if _last: _last.wait()
    if copies is None: return write_durably(paths, head, [memoryview(m.cpu().numpy()) for m in memories])
    copies[:] = [_copy(m, old) for m, old in zip_longest(memories, copies[:len(memories)])]
    return Pending(paths, head, list(map(memoryview, copies)))


def _copy(memory: Tensor, old: np.ndarray | None) -> np.ndarray:
    "A copy on the CPU, in old memory of the same size, because it takes longer to get new memory than to fill it."
    if old is None or len(old) != len(memory): old = np.empty(len(memory), np.uint8)
    if memory.is_cpu: np.copyto(old, memory.numpy())  # torch's own copy may wait for all its threads
    else: torch.from_numpy(old).copy_(memory)
    return old


def _real_paths(path: str | bytes | PathLike, also: Iterable[str | bytes | PathLike]) -> list[str]:
    "All paths as they are now, with links followed, each once."
    if isinstance(also, str | bytes | PathLike):
        raise TypeError(f'also must be several paths, got {also!r}: give ({also!r},) for this one')
    real = {}
    for p in map(os.fsdecode, (path, *also)):
        try: real[os.path.realpath(p)] = None
        except ValueError as e: raise SaveError(p, 0, e, 'give a valid path') from e  # it has a NUL
    return list(real)


class Pending:
    "A save in progress, to `paths`. In a process forked meanwhile it is never done, and not waited for."
    def __init__(self, paths: list[str], head: bytes, memories: list[memoryview]) -> None:
        global _last
        self.paths, self._pid, self._stop = tuple(paths), os.getpid(), Event()
        self._future = in_thread(write_durably, paths, head, memories, self._stop)
        _last = self

    def done(self) -> bool:
        "Has it ended, with or without an error?"
        return self._pid == os.getpid() and self._future.done()

    def wait(self) -> None:
        "Return when the file is safe on the disk, or was abandoned; raise what went wrong, usually a SaveError."
        global _last
        if self._pid != os.getpid(): return
        wait([self._future])
        if _last is self: _last = None
        if not self._stop.is_set(): self._future.result()

    result = wait  # as of a Future

    def abandon(self) -> None:
        "Stop it: unless it is complete, the files at its paths are unchanged. Does not wait for its end."
        self._stop.set()


class Saver:
    """Saves one file after another, in the background by default, reusing the memory for copies: as much as one state
    takes. A failure is raised by the next call of any method. Leaving the `with` waits."""
    def __init__(self) -> None: self._last, self._copies = None, []
    def __enter__(self) -> 'Saver': return self
    def __exit__(self, *_: Any) -> None: self.wait()

    def save(self, path: str | bytes | PathLike, state: Any, *, also: Iterable[str | bytes | PathLike] = (),
             background: bool = True) -> None:
        "Like `miniai.checkpoint.save`, after the last save is done."
        self.wait()
        copies, self._copies = self._copies, []  # after an interrupt, they may still be in use
        self._last = _save(path, state, also, copies if background else None)
        self._copies = copies

    def done(self) -> bool:
        "True if no save is in progress. Raises the failure of the last save."
        if self._last and not self._last.done(): return False
        self.wait()
        return True

    def wait(self) -> None:
        "Return when no save is in progress; raise the failure of the last save."
        if not self._last: return
        try: self._last.result()
        finally:
            if self._last.done(): self._last = None

    def abandon(self) -> None:
        "Stop the save in progress: the files at its paths are then unchanged, unless it is complete."
        last, self._last, self._copies = self._last, None, []
        if last: last.abandon()


@atexit.register
def _finish() -> None:
    "Report a failure that was not raised. The interpreter has waited before; if a Ctrl-C ended that, wait again."
    if not _last: return
    try: _last.wait()
    except Exception as e: print(f'miniai: error: {e}', file=sys.stderr)
    except KeyboardInterrupt:
        print(f'miniai: error: {_last.paths[0]} may not be saved: waiting for it was interrupted', file=sys.stderr)
