"A folder of checkpoints: a lock for one run at a time, leftover temporary files, and the newest valid checkpoint."
import errno
import os
import re
import shutil
import socket
import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from fnmatch import fnmatch
from os import PathLike
from pathlib import Path
from typing import Any

from miniai.atomic import in_progress, temporary_name
from miniai.checkpoint.parts import REST
from miniai.checkpoint.read import CheckpointError, inspect, verify

__all__ = ['BEST', 'BEST_FOLDER', 'FolderInUseError', 'FolderLock', 'remove_stale', 'newest_valid', 'first_whole',
           'place_of', 'remove']

BEST, BEST_FOLDER = 'best.safetensors', 'best'  # of a run's checkpoints, the one of its best epoch
_PART = re.compile(r'\..+\.(\d+)\.[0-9a-f]{8}(\.old)?\.part', re.DOTALL)
_NAME = re.compile(r'checkpoint-(\d{5,})-([123])-(\d{8,})(?:\.safetensors)?', re.ASCII)
_locks = weakref.WeakSet()


class FolderInUseError(RuntimeError):
    "Another run holds the folder: process `pid` on `host`, if they are known."
    def __init__(self, folder: str | PathLike, pid: str, host: str) -> None:
        self.folder, self.pid, self.host = os.fspath(folder), pid, host
        super().__init__(f'{folder} is in use by process {pid} on {host}: wait for it to end, or use another folder')

    def __reduce__(self) -> tuple: return type(self), (self.folder, self.pid, self.host)


class FolderLock:
    """Locks `folder` for this process until `release`, the end of its `with`, or the end of the process.
    FolderInUseError, with process and host, if another process holds it; NotADirectoryError if it is something else;
    PermissionError if nothing can be written there. A warning if the file system has no locks (some network folders).

    The folder itself is locked, because a lock file can be deleted; and a file, because some file systems lock only
    those. The file says who holds the lock, and stays."""
    def __init__(self, folder: str | PathLike) -> None:
        self.folder, self._fds = os.fspath(folder), []
        _check_folder(self.folder)
        if os.path.isdir(self.folder) and not os.access(self.folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, 'this folder is read-only', self.folder)
        try: self._lock()
        except BaseException:
            self.release()
            raise
        _locks.add(self)

    def _lock(self) -> None:
        from fcntl import LOCK_EX, LOCK_NB, flock  # which Windows lacks
        file, refused, flags = os.path.join(self.folder, '.miniai.lock'), [], os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        if os.path.islink(file): raise OSError(errno.ELOOP, 'this is a link and not a lock file: remove it', file)
        for path, how in ((self.folder, os.O_RDONLY | os.O_DIRECTORY), (file, flags)):
            self._fds.append(os.open(path, how, 0o666))
            try: flock(self._fds[-1], LOCK_EX | LOCK_NB)
            except BlockingIOError: raise self._in_use(file) from None
            except OSError as e: refused.append(e.strerror)
        if len(refused) == 2:
            warnings.warn(f'{self.folder} cannot be locked ({refused[1]}): another run can write to it', stacklevel=2)
        os.ftruncate(self._fds[-1], 0)
        os.write(self._fds[-1], f'{os.getpid()} {socket.gethostname()}\n'.encode())

    def _in_use(self, file: str) -> FolderInUseError:
        try: pid, host = Path(file).read_text('utf-8').split()
        except (OSError, ValueError): pid, host = 'of unknown number', 'an unknown host'
        return FolderInUseError(self.folder, pid, host)

    def release(self) -> None:
        "Unlock the folder, if it is locked."
        fds, self._fds = self._fds, []
        for fd in fds: os.close(fd)

    def __enter__(self) -> 'FolderLock': return self
    def __exit__(self, *_: Any) -> None: self.release()
    def __del__(self) -> None: self.release()


if hasattr(os, 'register_at_fork'):  # a forked worker must not keep the folder locked after its parent's end
    os.register_at_fork(after_in_child=lambda: [lock.release() for lock in list(_locks)])


def _check_folder(path: str | PathLike) -> None:
    if os.path.lexists(path) and not os.path.isdir(path):
        raise NotADirectoryError(errno.ENOTDIR, 'this is not a folder', os.fspath(path))


def remove_stale(folder: str | PathLike, locked: bool = False) -> list[Path]:
    """Remove the temporary files and folders that processes which have ended left in `folder`; return their paths.
    Those of saves in progress stay: this process's, and those with the id of another running process, unless `locked`:
    the caller holds the FolderLock, so it is an unrelated process. A warning names each that cannot be removed."""
    _check_folder(folder)
    removed = []
    for path in sorted(Path(folder).iterdir()):
        if not _is_stale(path, locked): continue
        try: _unlink(path)
        except OSError as e: warnings.warn(f'could not remove the temporary file {path}: {e.strerror}', stacklevel=2)
        else: removed.append(path)
    return removed


def _is_stale(path: Path, locked: bool) -> bool:
    found = _PART.fullmatch(path.name)
    if not found or path.is_symlink() or not (path.is_file() or path.is_dir()): return False
    pid = int(found[1])
    if pid == os.getpid(): return os.path.join(os.path.realpath(path.parent), path.name) not in in_progress
    try: os.kill(pid, 0)
    except ProcessLookupError: return True
    except (OSError, OverflowError): return locked  # another user's process
    return locked


def remove(path: Path) -> None:
    "Remove a checkpoint, a file or folder, if it is there. A folder loses its name first: it is never there in part."
    if path.is_dir() and not path.is_symlink(): path = path.rename(temporary_name(os.fspath(path)))
    with suppress(FileNotFoundError): _unlink(path)


def _unlink(path: Path) -> None:
    if path.is_dir() and not path.is_symlink(): shutil.rmtree(path)
    else: path.unlink()


def place_of(name: str) -> tuple | None:
    """A key that sorts the names of a run's checkpoints, checkpoint-EPOCH-PHASE-BATCH; None for any other name. The
    last one of a finished run (phase 3) sorts before the next epoch's first batch, since the run may go on for more
    epochs."""
    found = _NAME.fullmatch(name)
    if not found: return None
    epoch, phase, batch = map(int, found.groups())
    return epoch, phase == 2, batch, phase


def newest_valid(folder: str | PathLike, pattern: str = '*.safetensors') -> Path | None:
    """The checkpoint in `folder` that is furthest into its run, among those that match `pattern` and verify; None if
    there is none. The names that CheckpointCB gives say how far; no clock counts. Files with other names come only
    after those, the last saved first, by their headers. A folder of a sharded model counts as a file of its name with
    the ending .safetensors. A warning names each damaged one that was skipped."""
    _check_folder(folder)
    found = []
    folders = {p for p in Path(folder).glob('*') if _is_sharded(p) and fnmatch(f'{p.name}.safetensors', pattern)}
    for path in sorted({*Path(folder).glob(pattern), *folders}):
        place = place_of(path.name)
        try: found.append((bool(place), place or inspect(path).saved, path))
        except (CheckpointError, OSError) as e: _warn_skipped(path, e)
    best = first_whole((path for *_, path in sorted(found, reverse=True)), verify)
    return best and best[0]


def _is_sharded(path: Path) -> bool:
    "Is this the folder of a sharded model, even if damaged?"
    return path.is_dir() and bool(place_of(path.name) or (path/REST).exists())


def first_whole(paths: Iterable[Path], read: Callable[[Path], Any]) -> tuple[Path, Any] | None:
    """The first of `paths` that `read`, such as `load`, accepts, and what it returned; None if there is none. A warning
    names each path before it, with the reason."""
    for path in paths:
        try: return path, read(path)
        except (CheckpointError, OSError) as e: _warn_skipped(path, e)
    return None


def _warn_skipped(path: Path, e: Exception) -> None:
    reason = str(e) if isinstance(e, CheckpointError) else f'{path}: {e}'  # a CheckpointError begins with the path
    warnings.warn(f'skipped {reason}', stacklevel=2)
