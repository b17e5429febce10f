"Durable writing: after a crash or power loss at any moment, either the old file or the new one is there, complete."
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from os import PathLike, fspath
from pathlib import Path
from threading import Event
from typing import Any

from miniai.atomic import atomic_write, sync, sync_folder
from miniai.checkpoint.header import DIGEST_AT, sealed

__all__ = ['SaveError', 'write_durably', 'in_thread']

_PIECE = 1 << 21  # bytes written at a time
_LARGE = 1 << 24  # bytes; from this size on, the disk starts to sync while the hash is still being computed


class SaveError(OSError):
    """A checkpoint of `wanted` bytes could not be saved under the name `path`; `cause`, also `__cause__`, is the error
    behind it. The file that was at `path` is unchanged unless the message says otherwise."""
    def __init__(self, path: str | PathLike, wanted: int, cause: BaseException, status: str) -> None:
        self.path, self.wanted, self.cause = fspath(path), wanted, cause
        reason = getattr(cause, 'strerror', None) or str(cause) or type(cause).__name__
        super().__init__(f'{self.path} was not saved: {reason} (the file takes {wanted:,} bytes); {status}')
        self.errno = getattr(cause, 'errno', None)
        self._args = self.path, wanted, cause, status

    def __reduce__(self) -> tuple: return type(self), self._args


def write_durably(paths: Iterable[str], head: bytes, memories: list[memoryview], stop: Event | None = None) -> None:
    """Write `head`, with the sha256 filled in, and `memories`, flat bytes, to the first of `paths`, then give that file
    the other names, as links or copies. Returns when it was read back and is on the disk under every name. SaveError
    names the first path that fails: paths before it have the new file. Setting `stop` makes it fail."""
    saved, renamed = None, False
    try:
        for path in paths:  # before anything is written
            if os.path.lexists(path) and not os.path.isfile(path):
                raise OSError('at this path is a folder, pipe, device or broken link; choose another')
        for path in paths:
            renamed = False
            with atomic_write(path) as part:
                if not saved or not _linked(saved, part): _write(part, head, memories, stop)
            renamed = True
            sync_folder(os.path.dirname(path))
            saved = saved or path
    except Exception as e:
        status = ('the new file is at this path and complete, but may not survive a power loss' if renamed else
                  'nothing has changed at this path')
        size = len(head) + sum(map(len, memories))
        raise SaveError(path, size, e, f'{status}, and {saved} is saved' if saved else status) from e


def _linked(old: str, new: Path) -> bool:
    try: os.link(old, new)
    except OSError: return False  # not every file system can
    return True


def _write(part: Path, head: bytes, memories: list[memoryview], stop: Event | None) -> None:
    "Write a new file in one pass while a thread computes the sha256; sync it, and read it back."
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        digest = in_thread(_sha256, _pieces(head, memories, stop))
        for piece in _pieces(head, memories, stop):
            while len(piece): piece = piece[os.write(fd, piece):]
        if sum(map(len, memories)) >= _LARGE: sync(fd)
        head = sealed(head, digest.result())
        os.pwrite(fd, head[DIGEST_AT:DIGEST_AT + 64], DIGEST_AT)
        sync(fd)
    finally: os.close(fd)
    with open(part, 'rb') as f:
        buffer = bytearray(_PIECE)
        for piece in _pieces(head, memories, stop):
            if len(buffer) != len(piece): buffer = bytearray(len(piece))
            if f.readinto(buffer) != len(piece) or buffer != piece:
                raise OSError('it reads back different from what was written')


def _pieces(head: bytes, memories: list[memoryview], stop: Event | None) -> Iterator[memoryview]:
    for data in (memoryview(head), *memories):
        for at in range(0, len(data), _PIECE):
            if stop and stop.is_set(): raise OSError('the save was abandoned')
            yield data[at:at + _PIECE]


def _sha256(pieces: Iterable[memoryview]) -> str:
    digest = hashlib.sha256()
    for p in pieces: digest.update(p)
    return digest.hexdigest()


def in_thread(f: Any, *args: Any) -> Future:
    """`f(*args)` in a thread of its own, which the interpreter waits for before it exits. If no thread can start, as
    when the interpreter is exiting, it is done here and now."""
    pool = ThreadPoolExecutor(1, 'miniai-save')
    try: return pool.submit(f, *args)
    except RuntimeError:
        done = Future()
        try: done.set_result(f(*args))
        except Exception as e: done.set_exception(e)
        return done
    finally: pool.shutdown(wait=False)
