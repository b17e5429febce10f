"""A folder of checkpoints: what a dead process left in it, and the newest file that can be trusted. Knows names and
files, no state."""
import os
import re
import stat as st
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
    """Remove the temporary files that saves of dead processes left in `folder`, and return them. Those of saves under
    way in this process stay, and so does every other file. Those of other living processes stay too, by their numbers,
    which after a reboot, or from other machines and containers, mean another process or none: with `locked`, for a
    caller that holds the folder's FolderLock and so writes there alone, they go. A warning names each that cannot be
    removed, and says why."""
    stale = [p for p in sorted(Path(folder).iterdir()) if _is_stale(p, locked)]
    return list(filter(_is_removed, stale))


def _is_removed(path: Path) -> bool:
    "Whether a stale temporary is gone: what is no regular file is none."
    try:
        if not st.S_ISREG(path.lstat().st_mode): return False
        path.unlink()
    except FileNotFoundError: return False
    except OSError as e:
        warnings.warn(f'{path} stays: {e.strerror}', stacklevel=3)
        return False
    return True


def _is_stale(path: Path, locked: bool) -> bool:
    found = _PART.fullmatch(path.name)
    if not found: return False
    pid, mine = int(found[1]), os.path.join(os.path.realpath(path.parent), path.name) in temporary_names()
    return not mine if pid == os.getpid() else locked or not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try: os.kill(pid, 0)
    except ProcessLookupError: return False
    except (OSError, OverflowError): return True  # it is another user's
    return True


def newest_valid(folder: str | PathLike, pattern: str = '*.safetensors') -> Path | None:
    """The checkpoint in `folder` that was saved last, by its own word, of those whose names match `pattern` and
    that verify; None where there is none. A warning names each newer one that does not verify, and says why."""
    dated = [(when, p) for p in sorted(Path(folder).glob(pattern)) if (when := _saved(p))]
    found = first_whole((p for _, p in sorted(dated, reverse=True)), verify)
    return found and found[0]


def first_whole(paths: Iterable[Path], read: Callable[[Path], Any]) -> tuple[Path, Any] | None:
    """The first of `paths` that `read`, such as `load`, does not refuse, and what it made of it, so that each file is
    read once; None where there is none. A warning names each before it, and says why."""
    for p in paths:
        try: return p, read(p)
        except (CheckpointError, OSError) as e: _pass_over(p, e)
    return None


def _saved(path: Path) -> str | None:
    try: return inspect(path).saved
    except (CheckpointError, OSError) as e: return _pass_over(path, e)


def _pass_over(path: Path, e: Exception) -> None:
    said = str(e) if isinstance(e, CheckpointError) else f'{path}: {e}'
    warnings.warn(f'passed over, {said}', stacklevel=5)
