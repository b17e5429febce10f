"""A lock on a folder, so that two runs do not write into one. Knows a lock file, held by the system for as long as
its process lives."""
import errno
import os
import socket
import warnings
import weakref
from os import PathLike
from typing import Any

from miniai.checkpoint.errors import FolderInUseError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

__all__ = ['FolderLock']

_NAME = '.miniai.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held = weakref.WeakSet()


class FolderLock:
    """Holds `folder` for this process from now until `release`, the end of its `with`, or the process's own end,
    however it comes. FolderInUseError, with process and host, where another holds it. Where the file system has no
    locks (some network folders) a warning says that nothing keeps two runs apart there. The lock file stays: it is
    empty of meaning unlocked."""
    def __init__(self, folder: str | PathLike) -> None:
        self.folder, self._fd = os.fspath(folder), None
        fd = os.open(os.path.join(self.folder, _NAME), os.O_RDWR | os.O_CREAT | getattr(os, 'O_CLOEXEC', 0), 0o666)
        try: self._take(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        _held.add(self)

    def _take(self, fd: int) -> None:
        try: _flock(fd)
        except BlockingIOError: raise FolderInUseError(self.folder, *_holder(fd)) from None
        except OSError as e:
            if e.errno not in _NO_LOCKS: raise
            warnings.warn(f'{self.folder} is on a file system without locks ({e.strerror}): nothing keeps another '
                          f'run out of it', stacklevel=4)
        _write_holder(fd)

    def release(self) -> None:
        "Let others have the folder; a second time is nothing."
        fd, self._fd = self._fd, None
        if fd is not None: os.close(fd)

    def __enter__(self) -> 'FolderLock': return self
    def __exit__(self, *_: Any) -> None: self.release()
    def __del__(self) -> None: self.release()


def _flock(fd: int) -> None:
    if fcntl is None: raise OSError(errno.ENOSYS, 'this system has no flock')
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _write_holder(fd: int) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, f'{os.getpid()} {socket.gethostname()}\n'.encode(), 0)


def _holder(fd: int) -> tuple[str, str]:
    words = os.pread(fd, 300, 0).decode('utf-8', 'replace').split()
    return (words[0], words[1]) if len(words) == 2 else ('of unknown number', 'an unknown host')


def _let_go_in_a_fork() -> None:
    "A forked worker must not keep the folder locked after the process that locked it is dead."
    for lock in list(_held): lock.release()


if hasattr(os, 'register_at_fork'): os.register_at_fork(after_in_child=_let_go_in_a_fork)
