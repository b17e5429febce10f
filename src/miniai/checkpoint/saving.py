"`save` a state to a file, now or in the background while the caller continues and may change the state."
import atexit
import os
import sys
from collections.abc import Iterable
from os import PathLike
from queue import SimpleQueue
from threading import Thread, main_thread
from typing import Any

from miniai.checkpoint.background import Task
from miniai.checkpoint.durable import write_durably
from miniai.checkpoint.errors import SaveError
from miniai.checkpoint.snapshot import Content, CopyBuffer

__all__ = ['save', 'Saver', 'Pending']

_pending: dict[str, 'Pending'] = {}  # saves in progress, or failed and not yet reported, by each of their paths


def save(path: str | bytes | PathLike, state: Any, *, also: Iterable[str | bytes | PathLike] = (),
         background: bool = False) -> 'Pending | None':
    """Save `state`, nested dicts (keys str or int), lists and tuples of None, bools, numbers, text, bytes, tensors and
    numpy arrays and scalars, as one safetensors file that replaces `path`. On return it has been read back and will
    survive a power loss. Tensors that are the same memory with the same shape and strides are written once.

    `also` are further names for the file: hard links, or copies where links are not possible. With `background=True`
    the state is copied now and written in a thread; `wait()` on the Pending returned. A failure is raised by `wait()`,
    by the next save under one of its names, or reported when the interpreter exits. TypeError, with the path in the
    state, for a value that a checkpoint cannot hold; SaveError if the file cannot be written: the old one stays."""
    return _save(_real_paths(path, also), state, CopyBuffer() if background else None)


def _save(paths: list[str], state: Any, buffer: CopyBuffer | None) -> 'Pending | None':
    "Save in the background if there is a buffer to copy the state to, else now."
    content = Content(state)
    for earlier in _ours(paths): earlier.wait()
    if buffer: return Pending(paths, content.head, buffer.copies(content), content.size)
    write_durably(paths, content.head, content.memories(), content.size)


def _real_paths(path: str | bytes | PathLike, also: Iterable[str | bytes | PathLike]) -> list[str]:
    "All paths as they are now, with links followed, each once."
    if isinstance(also, str | bytes | PathLike):
        raise TypeError(f'also must be several paths, got {also!r}: give ({also!r},) for this one')
    real = {}
    for p in map(os.fsdecode, (path, *also)):
        try: real[os.path.realpath(p)] = None
        except ValueError as e: raise SaveError(p, 0, 0, e, 'give a valid path') from e  # it has a NUL
    return list(real)


class Pending:
    "A save in progress, to `paths`. The interpreter waits for it before it exits, unless it was abandoned."
    def __init__(self, paths: list[str], head: bytes, memories: list[memoryview], size: int) -> None:
        # `memories` must be the caller's own copies: a tensor freed in a daemon thread could crash the interpreter.
        self.paths, self._pid, self._abandoned, self._released = tuple(paths), os.getpid(), False, SimpleQueue()
        self._task = Task(self._write, paths, head, memories, size)
        try:
            _pending.update(dict.fromkeys(paths, self))
            if not self._start_threads():
                self._task.run()
                self.wait()  # raise a failure now: there may be no later call that can
        except BaseException:
            if self._task.cancel():
                self._forget()
                self._released.put(None)
            raise

    def _start_threads(self) -> bool:
        """Start a daemon thread that writes, and one that only waits for `_released`, to make the interpreter wait for
        it: a process forked by multiprocessing waits for threads when it ends, but runs no atexit functions. False if
        no thread can start, or the interpreter is shutting down and would not wait."""
        if not main_thread().is_alive(): return False
        try:  # the waiting one first: once the writing has begun, starting a thread would wait for the GIL
            Thread(target=self._released.get, daemon=False, name='miniai-save').start()
            self._task.start()
        except RuntimeError: return False
        return True

    def _write(self, *args: Any) -> None:
        try: write_durably(*args)
        finally: self._released.put(None)
        self._forget()

    def _forget(self) -> None:
        for p in self.paths:
            if _pending.get(p) is self: del _pending[p]

    def abandon(self) -> None:
        """Let the process exit before the save is complete: the files at its paths are then unchanged, and
        `remove_stale` removes the temporary one. While the process lives, writing goes on, and `wait` waits."""
        self._abandoned = True
        self._released.put(None)

    def done(self) -> bool:
        "Has it ended, with or without an error? Always False in a process forked during the save."
        return self._task.finished

    def wait(self) -> None:
        "Return when the file is safe on the disk; raise what went wrong, usually a SaveError."
        if not self.done() and not self._is_ours():
            raise RuntimeError(f'{self.paths[0]} is being saved by process {self._pid}, from which this process was '
                               f'forked: wait for it there')
        self._task.wait()
        self._forget()
        if self._task.error: raise self._task.error

    def _is_ours(self) -> bool: return self._pid == os.getpid()


def _ours(paths: Iterable[str] | None = None) -> list[Pending]:
    "This process's pending saves under any of `paths`, or all of them; those inherited by a fork are its parent's."
    found = list(_pending.values()) if paths is None else map(_pending.get, paths)
    return [p for p in dict.fromkeys(found) if p and p._is_ours()]


class Saver:
    """Saves one file after another, in the background by default, reusing the memory for copies: as much as one state
    takes. A failure is raised by the next call of any method. Leaving the `with` waits."""
    def __init__(self) -> None: self._last, self._buffer = None, CopyBuffer()
    def __enter__(self) -> 'Saver': return self
    def __exit__(self, *_: Any) -> None: self.wait()

    def save(self, path: str | bytes | PathLike, state: Any, *, also: Iterable[str | bytes | PathLike] = (),
             background: bool = True) -> None:
        "Like `miniai.checkpoint.save`, after the last save is done. A forked process does not wait for its parent's."
        if self._last and not self._last._is_ours(): self._last = None
        self.wait()
        buffer, self._buffer = self._buffer, CopyBuffer()  # after an interrupt, the old one may still be in use
        self._last = _save(_real_paths(path, also), state, buffer if background else None)
        self._buffer = buffer

    def reserve(self, state: Any) -> None:
        "Allocate the memory for background saves of such a state now, so that the first is as quick as the others."
        self._buffer.reserve(Content(state))

    def done(self) -> bool:
        "True if no save is in progress. Raises the failure of the last save."
        if self._last is None or not self._last.done(): return self._last is None
        self.wait()
        return True

    def wait(self) -> None:
        "Return when no save is in progress; raise the failure of the last save."
        last = self._last
        if not last: return
        try: last.wait()
        finally:
            if last.done(): self._last = None  # if interrupted, its memory is still in use

    def abandon(self) -> None:
        """Stop waiting for the save in progress: the process may exit before it is complete, see `Pending.abandon`. A
        failure is raised by the next save under one of its names, or reported when the interpreter exits."""
        last, self._last, self._buffer = self._last, None, CopyBuffer()  # the old buffer is still being written
        if last: last.abandon()


@atexit.register
def _finish() -> None:
    "Wait for pending saves, in case a Ctrl-C ended the interpreter's own wait; report failures that were not raised."
    pending = _ours()
    try:
        for p in pending:
            if not p._abandoned: p._task.wait()
    finally:
        for p in pending:
            e = p._task.error
            if e: print(f'miniai: error: {str(e) or repr(e)}', file=sys.stderr)
            elif not p.done() and not p._abandoned:
                print(f'miniai: error: {p.paths[0]} may not be saved: waiting for it was interrupted', file=sys.stderr)
