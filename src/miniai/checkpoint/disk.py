"""The calls to the operating system that files of checkpoints take, one function each, so that tests can make any of
them fail. Knows no checkpoint."""
import os
import stat as st
import sys
from os import stat_result

__all__ = ['create', 'is_replaceable', 'open_regular', 'open_dir', 'write', 'pwrite', 'read_into', 'fsync', 'fsync_dir',
           'rename', 'link', 'unlink', 'close', 'close_dir', 'fstat']

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, 'O_CLOEXEC', 0) | getattr(os, 'O_BINARY', 0)
_OLD = os.O_RDONLY | sum(getattr(os, f'O_{nm}', 0) for nm in ('CLOEXEC', 'NONBLOCK', 'NOCTTY', 'BINARY'))


def create(path: str) -> int:
    "A new file, opened to read and write, with the mode that the umask leaves; an error where there is one."
    return os.open(path, _NEW, 0o666)


def is_replaceable(path: str) -> bool:
    "Whether there is nothing, or a regular file: no folder, device, pipe or socket."
    try: return st.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError: return True


def open_regular(path: str) -> int | None:
    "A file opened to read; None where there is something that is no regular file, which is not even opened."
    if not st.S_ISREG(os.stat(path).st_mode): return None
    fd = os.open(path, _OLD)
    if st.S_ISREG(os.fstat(fd).st_mode): return fd
    os.close(fd)
    return None


def open_dir(path: str) -> int | None:
    "A folder opened, to be synced; None where folders cannot be."
    return None if os.name == 'nt' else os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def write(fd: int, data: memoryview | bytes) -> int:
    "Write as much of `data` as goes: the number of bytes."
    return os.write(fd, data)


def pwrite(fd: int, data: bytes, offset: int) -> int:
    "Write at `offset`, the file's position left as it is: the number of bytes."
    return os.pwrite(fd, data, offset)


def read_into(fd: int, buffer: memoryview) -> int:
    "Read as much into `buffer` as comes: the number of bytes, 0 at the end."
    return os.readv(fd, [buffer])


def fsync(fd: int) -> None:
    "Return when the file, or folder, is on the disk."
    if sys.platform == 'darwin': _flush_drive(fd)
    else: os.fsync(fd)


def _flush_drive(fd: int) -> None:
    import fcntl
    try: fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # there, fsync leaves the data in the drive's own cache
    except OSError: os.fsync(fd)


def fsync_dir(fd: int | None) -> None:
    "Return when the names in a folder are on the disk."
    if fd is not None: fsync(fd)


def rename(old: str, new: str) -> None:
    "`old` takes the place of `new`, at once."
    os.replace(old, new)


def link(old: str, new: str) -> None:
    "A second name for a file."
    os.link(old, new)


def unlink(path: str) -> None:
    "Remove a file's name."
    os.unlink(path)


def close(fd: int) -> None:
    "Close a file."
    os.close(fd)


def close_dir(fd: int | None) -> None:
    "Close a folder."
    if fd is not None: os.close(fd)


def fstat(fd: int) -> stat_result:
    "What the system knows of an open file."
    return os.fstat(fd)
