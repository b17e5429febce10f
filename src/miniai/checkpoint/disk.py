"The system calls that checkpoint files need, one function each, so that tests can make any of them fail."
import os
import stat
import sys

__all__ = ['create', 'is_replaceable', 'open_regular', 'open_dir', 'write', 'pwrite', 'read_into', 'fsync', 'fsync_dir',
           'rename', 'link', 'unlink', 'close', 'close_dir', 'fstat']


def create(path: str) -> int:
    "Create a file for reading and writing, with the mode that the umask leaves; an error if it exists."
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def is_replaceable(path: str) -> bool:
    "Is there a regular file at `path`, or nothing? False for a folder, device, pipe or socket."
    try: return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError: return True


def open_regular(path: str) -> int | None:
    "Open a regular file for reading; None, without opening it, for anything else."
    if not stat.S_ISREG(os.stat(path).st_mode): return None
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)  # it may have been replaced by a pipe since
    if stat.S_ISREG(os.fstat(fd).st_mode): return fd
    os.close(fd)
    return None


def open_dir(path: str) -> int:
    "Open a folder, to sync it."
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY)


def write(fd: int, data: memoryview | bytes) -> int:
    "Write some of `data`; return how many bytes."
    return os.write(fd, data)


def pwrite(fd: int, data: bytes, offset: int) -> int:
    "Write some of `data` at `offset`, without moving the file's position; return how many bytes."
    return os.pwrite(fd, data, offset)


def read_into(fd: int, buffer: memoryview) -> int:
    "Read some bytes into `buffer`; return how many, 0 at the end of the file."
    return os.readv(fd, [buffer])


def fsync(fd: int) -> None:
    "Return when the file or folder is on the disk."
    if sys.platform == 'darwin':
        import fcntl
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # on macOS, fsync leaves the data in the drive's cache
            return
        except OSError: pass  # this file system has no F_FULLFSYNC
    os.fsync(fd)


def fsync_dir(fd: int) -> None:
    "Return when the names in a folder are on the disk."
    fsync(fd)


def rename(old: str, new: str) -> None:
    "Rename `old` to `new` in one step, replacing it."
    os.replace(old, new)


def link(old: str, new: str) -> None:
    "Give a file a second name (a hard link)."
    os.link(old, new)


def unlink(path: str) -> None:
    "Remove a name of a file."
    os.unlink(path)


def close(fd: int) -> None:
    "Close a file."
    os.close(fd)


def close_dir(fd: int) -> None:
    "Close a folder."
    os.close(fd)


def fstat(fd: int) -> os.stat_result:
    "Size, kind and blocks of an open file."
    return os.fstat(fd)
