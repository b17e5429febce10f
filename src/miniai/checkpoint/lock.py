"A lock on a folder that keeps two runs from writing to it; the system releases it when the process ends."
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
except ImportError:  # Windows
    fcntl = None

__all__ = ['FolderLock']

_NAME = '.miniai.lock'
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_held = weakref.WeakSet()


class FolderLock:
    """Locks `folder` for this process until `release`, the end of its `with`, or the end of the process.
    FolderInUseError, with process and host, if another process holds it. On a file system without locks (some network
    folders) a warning says that two runs can write there at once. The lock file itself stays."""
    def __init__(self, folder: str | PathLike) -> None:
        self.folder, self._fd = os.fspath(folder), None
        fd = os.open(os.path.join(self.folder, _NAME), os.O_RDWR | os.O_CREAT, 0o666)
        try: self._lock(fd)
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        _held.add(self)

    def _lock(self, fd: int) -> None:
        try: _flock(fd)
        except BlockingIOError:
            words = os.pread(fd, 300, 0).decode('utf-8', 'replace').split()
            pid, host = words if len(words) == 2 else ('of unknown number', 'an unknown host')
            raise FolderInUseError(self.folder, pid, host) from None
        except OSError as e:
            if e.errno not in _NO_LOCKS: raise
            warnings.warn(f'{self.folder} is on a file system without locks ({e.strerror}): another run can write to '
                          f'it at the same time', stacklevel=3)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f'{os.getpid()} {socket.gethostname()}\n'.encode(), 0)

    def release(self) -> None:
        "Unlock the folder, if it is locked."
        fd, self._fd = self._fd, None
        if fd is not None: os.close(fd)

    def __enter__(self) -> 'FolderLock': return self
    def __exit__(self, *_: Any) -> None: self.release()
    def __del__(self) -> None: self.release()


def _flock(fd: int) -> None:
    if fcntl is None: raise OSError(errno.ENOSYS, 'this system has no flock')
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _release_all() -> None:
    "In a forked worker: it must not keep the folder locked after the process that locked it has ended."
    for lock in list(_held): lock.release()


if hasattr(os, 'register_at_fork'): os.register_at_fork(after_in_child=_release_all)
