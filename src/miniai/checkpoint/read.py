"Read checkpoint files: only the sizes of a file's tensors are used before its sha256 has been checked."
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
import torch

from miniai.checkpoint.header import LONGEST, ZEROS, loads, parse, sealed
from miniai.checkpoint.layout import rebuilt
from miniai.checkpoint.tree import unflatten

__all__ = ['CheckpointError', 'load', 'verify', 'inspect', 'CheckpointInfo', 'TensorInfo']

_PIECE = 1 << 18  # bytes read at a time, and still in the cache when they are hashed
# What parsing raises: our own ValueErrors, and what Python's operations raise for values of the wrong kind
_BROKEN = (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RuntimeError, struct.error)


class CheckpointError(ValueError):
    "The file at `path` is not a complete checkpoint: damaged, truncated, or of another kind; `reason` says which."
    def __init__(self, path: str | PathLike, reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(f'{self.path}: {reason}')


def load(path: str | bytes | PathLike) -> Any:
    """The state given to `save`, verified in the same pass: tensors are on the CPU with their strides, and tensors that
    shared memory share it again. Takes the file's size in memory; plain values may take 50 times theirs in a file made
    for that. CheckpointError for anything but a complete checkpoint, FileNotFoundError if there is nothing."""
    with _opened(path) as file:
        memories = {nm: torch.empty(layout.nbytes, dtype=torch.uint8) for nm, layout in file.layouts.items()}
        for m in memories.values(): file.fill(memoryview(m.numpy()))
        file.check()
        tensors = {nm: rebuilt(file.layouts[nm], m) for nm, m in memories.items()}
        return unflatten(loads(file.meta['state']), file.layouts, tensors)


def verify(path: str | bytes | PathLike) -> str:
    """The sha256 of a file that is exactly as it was saved and can be loaded; else CheckpointError. Takes one pass over
    the file and a few MB of memory."""
    with _opened(path) as file:
        while piece := file.f.read(_PIECE): file.digest.update(piece)
        file.check()
        unflatten(loads(file.meta['state']), file.layouts)
        return file.meta['sha256']


@dataclass(frozen=True)
class TensorInfo:
    "A tensor of a checkpoint: torch's name of its dtype, its shape and its bytes in the file."
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class CheckpointInfo:
    """The head of a checkpoint: format version, when it was saved (UTC), by which miniai and torch, bytes of the file,
    its sha256 as stated, the tensors by name, and the plain values in the top two levels of the state by path."""
    path: str
    version: str
    saved: str
    miniai: str
    torch: str
    size: int
    sha256: str
    tensors: dict[str, TensorInfo]
    scalars: dict[str, Any]


def inspect(path: str | bytes | PathLike) -> CheckpointInfo:
    "Read the head of a checkpoint only. The data are not checked: use `verify` for that."
    with _opened(path) as file:
        known = {k: file.meta[k] for k in ('version', 'saved', 'miniai', 'torch', 'sha256')}
        tensors = {nm: TensorInfo(x.dtype, x.shape, x.nbytes) for nm, x in file.layouts.items()}
        scalars = _scalars(unflatten(loads(file.meta['state']), file.layouts))
        return CheckpointInfo(os.fsdecode(path), size=file.size, tensors=tensors, scalars=scalars, **known)


def _scalars(state: Any) -> dict[str, Any]:
    "Numbers, text, None and bools in the top two levels of the state, by path."
    def children(x: Any) -> list: return [(str(k), v) for k, v in x.items()] if isinstance(x, dict) else []
    found = [pair for k, x in children(state) for pair in [(k, x), *((f'{k}/{j}', y) for j, y in children(x))]]
    return {path: v for path, v in found if v is None or isinstance(v, bool | int | float | str | np.generic)}


@contextmanager
def _opened(path: str | bytes | PathLike) -> Iterator['_File']:
    "The file with its head parsed. Problems found inside the `with` become a CheckpointError that names the path."
    path = os.fsdecode(path)
    try:
        if not os.path.isfile(path) and os.path.exists(path):  # opening a pipe would wait for a writer
            raise ValueError('not a regular file: give the path of a checkpoint file')
        with open(path, 'rb') as f: yield _File(f)
    except FileNotFoundError as e:
        if not os.path.islink(path): raise
        raise CheckpointError(path, f'a link to {os.readlink(path)!r}, which does not exist') from e
    except OSError as e: raise CheckpointError(path, f'cannot be read: {e.strerror or e}') from e
    except _BROKEN as e:
        reason = str(e) if type(e) is ValueError else f'damaged, or not a checkpoint: {type(e).__name__}: {e}'
        raise CheckpointError(path, reason) from e


class _File:
    "An open checkpoint file `f`, read as far as its head; `digest` is the sha256 of what was read so far."
    def __init__(self, f: BinaryIO) -> None:
        self.f, self.size = f, os.fstat(f.fileno()).st_size
        head = f.read(8)
        n = int.from_bytes(head, 'little')
        if n <= min(LONGEST, self.size - 8): head += f.read(n)
        self.meta, self.layouts = parse(head)
        self.digest = hashlib.sha256(sealed(head, ZEROS))
        surplus = self.size - len(head) - sum(layout.nbytes for layout in self.layouts.values())
        if surplus < 0: raise ValueError(f'truncated: its last {-surplus:,} bytes are missing; use another checkpoint')
        if surplus: raise ValueError(f'damaged: it has {surplus:,} bytes after its end; use another checkpoint')

    def fill(self, buffer: memoryview) -> None:
        "Read the next bytes into `buffer`."
        for at in range(0, len(buffer), _PIECE):
            piece = buffer[at:at + _PIECE]
            self.f.readinto(piece)
            self.digest.update(piece)

    def check(self) -> None:
        "ValueError unless the sha256 of the file, which was read and hashed to its end, is as stated."
        found, stated = self.digest.hexdigest(), self.meta['sha256']
        if found != stated:
            raise ValueError(f'damaged: its sha256 is {found[:12]}…, not {stated[:12]}…; use another checkpoint')
