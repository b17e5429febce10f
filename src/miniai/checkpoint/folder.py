"A folder of checkpoints: remove leftover temporary files, and find the newest valid checkpoint."
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import Any

from miniai.checkpoint.durable import temporary_names
from miniai.checkpoint.errors import CheckpointError
from miniai.checkpoint.read import inspect, verify

__all__ = ['remove_stale', 'newest_valid', 'first_whole']

_PART = re.compile(r'\..+\.(\d+)\.[0-9a-f]{8}(\.old)?\.part', re.DOTALL)


def remove_stale(folder: str | PathLike, locked: bool = False) -> list[Path]:
    """Remove the temporary files that processes which have ended left in `folder`; return their paths. Temporary files
    of saves in progress stay: those of this process, and those with the id of another running process. After a reboot,
    or on a shared folder, that id can belong to an unrelated process; with `locked`, for a caller that holds the
    folder's FolderLock, they are removed as well. A warning names each file that cannot be removed."""
    removed = []
    for path in sorted(Path(folder).iterdir()):
        if not _is_stale(path, locked): continue
        try:
            if not stat.S_ISREG(path.lstat().st_mode): continue
            path.unlink()
            removed.append(path)
        except FileNotFoundError: pass
        except OSError as e: warnings.warn(f'could not remove the temporary file {path}: {e.strerror}', stacklevel=2)
    return removed


def _is_stale(path: Path, locked: bool) -> bool:
    found = _PART.fullmatch(path.name)
    if not found: return False
    pid, ours = int(found[1]), os.path.join(os.path.realpath(path.parent), path.name) in temporary_names()
    return not ours if pid == os.getpid() else locked or not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    except (OSError, OverflowError): return True  # another user's process
    return True


def newest_valid(folder: str | PathLike, pattern: str = '*.safetensors') -> Path | None:
    """The checkpoint in `folder` with the latest time of saving in its header, among those that match `pattern` and
    verify; None if there is none. A warning names each newer file that does not verify, with the reason."""
    dated = []
    for path in sorted(Path(folder).glob(pattern)):
        try: dated.append((inspect(path).saved, path))
        except (CheckpointError, OSError) as e: _warn_skipped(path, e)
    found = first_whole((p for _, p in sorted(dated, reverse=True)), verify)
    return found and found[0]


def first_whole(paths: Iterable[Path], read: Callable[[Path], Any]) -> tuple[Path, Any] | None:
    """The first of `paths` that `read`, such as `load`, accepts, and what it returned; None if there is none. A warning
    names each path before it, with the reason."""
    for path in paths:
        try: return path, read(path)
        except (CheckpointError, OSError) as e: _warn_skipped(path, e)
    return None


def _warn_skipped(path: Path, e: Exception) -> None:
    reason = str(e) if isinstance(e, CheckpointError) else f'{path}: {e}'  # a CheckpointError begins with the path
    warnings.warn(f'skipped {reason}', stacklevel=3)
