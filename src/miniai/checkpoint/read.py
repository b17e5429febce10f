"Read checkpoints: only the sizes of a file's tensors are used before its sha256 has been checked."
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from os import PathLike
from typing import Any, BinaryIO

import numpy as np
import torch

from miniai.checkpoint.header import LONGEST, ZEROS, loads, parse, sealed
from miniai.checkpoint.layout import rebuilt
from miniai.checkpoint.parts import REST, check_parts, filled, is_folder, mapped, read_parts, sharded_in
from miniai.checkpoint.tree import Sharded, unflatten
from miniai.distributed.dtensor import is_dtensor, placed_like

__all__ = ['CheckpointError', 'load', 'load_apart', 'verify_parts', 'read_into', 'placed', 'verify', 'inspect',
           'CheckpointInfo', 'TensorInfo']

_PIECE = 1 << 18  # bytes read at a time, and still in the cache when they are hashed
# What parsing raises: our own ValueErrors, and what Python's operations raise for values of the wrong kind
_BROKEN = (ValueError, TypeError, ArithmeticError, AttributeError, LookupError, RuntimeError, struct.error)


class CheckpointError(ValueError):
    "What is at `path` is not a complete checkpoint: damaged, truncated, or of another kind; `reason` says which."
    def __init__(self, path: str | PathLike, reason: str) -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(f'{self.path}: {reason}')

    def __reduce__(self) -> tuple: return type(self), (self.path, self.reason)


def load(path: str | bytes | PathLike) -> Any:
    """The state given to `save`, verified in the same pass: tensors are on the CPU with their strides, and tensors that
    shared memory share it again. Takes the file's size in memory; plain values may take 50 times theirs in a file made
    for that. A folder of a sharded state is read whole, in one process. CheckpointError for anything but a complete
    checkpoint, FileNotFoundError if there is nothing."""
    path = os.fsdecode(path)
    if not is_folder(path): return _load(path)
    state = load_apart(path)
    verify_parts(path, state.pop('parts'))
    return placed(path, state, lambda keys: None)


def _load(path: str) -> Any:
    with _opened(path) as file:
        memories = {nm: torch.empty(layout.nbytes, dtype=torch.uint8) for nm, layout in file.layouts.items()}
        for m in memories.values(): file.fill(memoryview(m.numpy()))
        file.check()
        tensors = {nm: rebuilt(file.layouts[nm], m) for nm, m in memories.items()}
        return unflatten(loads(file.meta['state']), file.layouts, tensors)


def load_apart(path: str | PathLike) -> dict[str, Any]:
    "The state in a folder, with a Sharded for each tensor that is not read yet, and what `verify_parts` needs."
    return _load(os.path.join(path, REST))


def verify_parts(path: str | PathLike, parts: dict[str, list], i: int = 0, n: int = 1) -> None:
    """CheckpointError unless the other files of a folder are as its state's `parts` says. Of `n` processes that call
    this together the `i`-th verifies its share."""
    with _reported(os.fspath(path)): check_parts(os.fspath(path), parts, i, n)


def read_into(path: str | PathLike, tensors: dict[str, torch.Tensor]) -> None:
    "Fill the sharded `tensors`, by name, from a folder that is verified."
    with _reported(os.fspath(path)): read_parts(os.fspath(path), tensors)


def placed(path: str | PathLike, state: Any, like: Callable[[tuple], Any]) -> Any:
    """`state`, of which sharded tensors are not read yet: they are read from the folder `path`. A tensor for whose keys
    `like(keys)` is a DTensor of its shape is sharded in the same way, others are whole."""
    unread = {}
    def place(x: Any, keys: tuple) -> Any:
        if not isinstance(x, Sharded | torch.Tensor): return x
        shard = like(keys)
        if not is_dtensor(shard) or tuple(shard.shape) != tuple(x.shape): shard = None
        if isinstance(x, torch.Tensor): return x if shard is None else placed_like(x, shard)
        dtype = getattr(torch, x.dtype)
        unread[x.name] = torch.empty(x.shape, dtype=dtype) if shard is None else torch.empty_like(shard, dtype=dtype)
        return x
    state = mapped(place, state)
    if unread: read_into(path, unread)
    return filled(state, unread)


def verify(path: str | bytes | PathLike) -> str:
    """The sha256 of a file that is exactly as it was saved and can be loaded; else CheckpointError. Takes one pass over
    the file and a few MB of memory. For a folder, the sha256 of its file that has those of all others."""
    path = os.fsdecode(path)
    if is_folder(path):
        verify_parts(path, load_apart(path)['parts'])
        path = os.path.join(path, REST)
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
    path = os.fsdecode(path)
    with _opened(os.path.join(path, REST) if is_folder(path) else path) as file:
        known = {k: file.meta[k] for k in ('version', 'saved', 'miniai', 'torch', 'sha256')}
        tensors = {nm: TensorInfo(x.dtype, x.shape, x.nbytes) for nm, x in file.layouts.items()}
        state, size = unflatten(loads(file.meta['state']), file.layouts), file.size
        if is_folder(path):
            size += sum(n for n, _ in state['parts'].values())
            tensors |= {nm: _info(x) for nm, x in sharded_in(state).items()}
        return CheckpointInfo(path, size=size, tensors=tensors, scalars=_scalars(state), **known)


def _info(x: Sharded) -> TensorInfo:
    return TensorInfo(x.dtype, x.shape, prod(x.shape)*getattr(torch, x.dtype).itemsize)


def _scalars(state: Any) -> dict[str, Any]:
    "Numbers, text, None and bools in the top two levels of the state, by path."
    def children(x: Any) -> list: return [(str(k), v) for k, v in x.items()] if isinstance(x, dict) else []
    found = [pair for k, x in children(state) for pair in [(k, x), *((f'{k}/{j}', y) for j, y in children(x))]]
    return {path: v for path, v in found if v is None or isinstance(v, bool | int | float | str | np.generic)}


@contextmanager
def _opened(path: str | bytes | PathLike) -> Iterator['_File']:
    "The file with its head parsed. Problems found inside the `with` become a CheckpointError that names the path."
    path = os.fsdecode(path)
    with _reported(path):
        if not os.path.isfile(path) and os.path.exists(path):  # opening a pipe would wait for a writer
            raise ValueError('not a regular file: give the path of a checkpoint file')
        with open(path, 'rb') as f: yield _File(f)


@contextmanager
def _reported(path: str) -> Iterator[None]:
    try: yield
    except CheckpointError: raise
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
