"Atomic writes: a file is replaced as a whole, so readers find the old content or the new, even after a kill."
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path

__all__ = ['atomic_write', 'in_progress', 'temporary_name', 'sync', 'sync_folder']

_STEM = 27  # characters kept from the file's name: at 4 bytes each, the temporary name has at most 143 bytes
in_progress = set()  # the temporary files of this process


@contextmanager
def atomic_write(path: str | PathLike, synced: bool = False) -> Iterator[Path]:
    """Gives a free name next to `path`. What the block writes there replaces the file, or the link, at `path` when the
    block ends; if it raises, nothing has changed. With `synced` the content is on the disk before that, so that even a
    power loss leaves the old content or the new. An OSError names `path` and not the temporary file."""
    part = temporary_name(os.fspath(path))
    in_progress.add(part)
    try:
        yield Path(part)
        if synced:
            with open(part, 'rb+') as f: sync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        if not e.errno or e.filename not in (None, part): raise
        raise type(e)(e.errno, e.strerror, os.fspath(path)) from e
    finally:
        in_progress.discard(part)
        with suppress(OSError): os.unlink(part)  # if the disk refuses, see `remove_stale`


def temporary_name(path: str) -> str:
    "A name next to `path` that `remove_stale` knows."
    folder, name = os.path.split(path)
    return os.path.join(folder, f'.{name[:_STEM]}.{os.getpid()}.{secrets.token_hex(4)}.part')


def sync(fd: int) -> None:
    "Return when the file or folder is on the disk."
    if sys.platform != 'darwin': return os.fsync(fd)
    from fcntl import F_FULLFSYNC, fcntl
    try: fcntl(fd, F_FULLFSYNC)  # on macOS, fsync leaves the data in the drive's cache
    except OSError: os.fsync(fd)  # this file system has no F_FULLFSYNC


def sync_folder(folder: str) -> None:
    "Return when the names in a folder are on the disk."
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try: sync(fd)
    finally: os.close(fd)
