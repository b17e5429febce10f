"Read checkpoint files: no part of a file is used before its sha256 has been checked."
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from miniai.checkpoint import disk
from miniai.checkpoint.background import BackgroundHash
from miniai.checkpoint.errors import CheckpointError, Malformed
from miniai.checkpoint.geometry import rebuilt
from miniai.checkpoint.header import DIGEST_AT, LONGEST, geometries, loads, masked, parse
from miniai.checkpoint.tree import top_scalars, unflatten

__all__ = ['load', 'verify', 'inspect', 'CheckpointInfo', 'TensorInfo', 'check_written', 'pieces_of']

_PIECE = 1 << 21  # bytes read or written at a time


def load(path: str | bytes | PathLike) -> Any:
    """The state given to `save`, verified in the same pass: tensors are on the CPU with their strides, and tensors that
    shared memory share it again. Takes the file's size in memory, plus the Python objects for all values other than
    tensors (up to 50 times their bytes in a file made to use memory). CheckpointError for a file that is not a complete
    checkpoint."""
    with _opened(path) as file:
        memories = {nm: torch.empty(e.end - e.begin, dtype=torch.uint8) for nm, e in file.header.entries.items()}
        file.check(memoryview(m.numpy()) for m in memories.values())
        where = geometries(file.header)
        tensors = {nm: rebuilt(where[nm], m) for nm, m in memories.items()}
        return unflatten(loads(file.header.meta['state']), tensors)


def verify(path: str | bytes | PathLike) -> str:
    """The sha256 of a file that is exactly as it was saved and can be loaded; else CheckpointError. Takes one pass over
    the file and a few MB of memory."""
    with _opened(path) as file:
        n = file.header.data_bytes
        buffers = [memoryview(bytearray(min(n, _PIECE))) for _ in range(2)]  # one is filled while the other is hashed
        file.check(buffers[k % 2][:min(_PIECE, n - at)] for k, at in enumerate(range(0, n, _PIECE)))
        unflatten(loads(file.header.meta['state']), geometries(file.header))
        return file.header.meta['sha256']


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
        where, meta = geometries(file.header), file.header.meta
        known = {k: meta[k] for k in ('version', 'saved', 'miniai', 'torch', 'sha256')}
        tensors = {nm: TensorInfo(g.dtype, g.shape, g.nbytes) for nm, g in where.items()}
        scalars = top_scalars(unflatten(loads(meta['state']), where))
        return CheckpointInfo(os.fsdecode(path), size=file.size, tensors=tensors, scalars=scalars, **known)


def check_written(path: str, head: bytes, memories: Iterable[memoryview | torch.Tensor]) -> None:
    "CheckpointError unless the file at `path`, read back, holds exactly these bytes."
    with _opened(path) as file:
        if file.head != head: raise Malformed('its head reads back different from what was written')
        buffer = bytearray(_PIECE)
        for piece in pieces_of(memories):
            if len(buffer) != len(piece): buffer = bytearray(len(piece))
            file.fill(memoryview(buffer))
            if buffer != piece: raise Malformed('its data read back different from what was written')


def pieces_of(memories: Iterable[memoryview | torch.Tensor]) -> Iterator[memoryview]:
    "Flat memory, on any device, as pieces of bytes on the CPU."
    for m in memories:
        data = m if isinstance(m, memoryview) else memoryview(m.cpu().numpy())
        for at in range(0, len(data), _PIECE): yield data[at:at + _PIECE]


@contextmanager
def _opened(path: str | bytes | PathLike) -> Iterator['_File']:
    "The file with its header parsed. Problems found inside the `with` become a CheckpointError that names the path."
    path = os.fsdecode(path)
    try: fd = disk.open_regular(path)
    except ValueError as e: raise CheckpointError(path, f'not a valid path: {e}') from e  # it has a NUL
    if fd is None: raise CheckpointError(path, 'not a regular file: give the path of a checkpoint file')
    try: yield _File(fd)
    except (ValueError, RecursionError) as e: raise CheckpointError(path, str(e)) from e
    except OSError as e: raise CheckpointError(path, f'cannot be read: {e.strerror or e}') from e
    finally:
        with suppress(OSError): disk.close(fd)


class _File:
    "An open checkpoint file: its size, its head as bytes and parsed; the data are read by `fill` or `check`."
    def __init__(self, fd: int) -> None:
        self.fd, self.size = fd, disk.fstat(fd).st_size
        self._refuse_sparse()
        if self.size < DIGEST_AT:
            raise Malformed(f'not a checkpoint of miniai, or truncated: it has {self.size} bytes; use another file')
        first = self._bytes(8)
        n = int.from_bytes(first, 'little')
        if n > min(LONGEST, self.size - 8):
            raise Malformed(f'not a checkpoint of miniai, or truncated: it declares a header of {n:,} bytes and has '
                            f'{self.size:,} in all; use another file')
        self.head = first + self._bytes(n)
        self.header = parse(self.head)
        expected = len(self.head) + self.header.data_bytes
        if self.size < expected:
            raise Malformed(f'truncated: it has {self.size:,} of {expected:,} bytes; use another checkpoint')
        if self.size > expected:
            raise Malformed(f'damaged: it has {self.size - expected:,} bytes after its end; use another checkpoint')

    def _refuse_sparse(self) -> None:
        "Malformed for a huge file that is almost only holes: it would take hours to read as zeros."
        stored = getattr(disk.fstat(self.fd), 'st_blocks', 0)*512
        if self.size <= 1 << 30 or stored >= self.size >> 10: return
        if hasattr(os, 'SEEK_HOLE'):  # ask the file system: some network folders count no blocks at all
            hole = os.lseek(self.fd, 0, os.SEEK_HOLE)
            os.lseek(self.fd, 0, os.SEEK_SET)
            if hole >= self.size: return
        raise Malformed(f'not a checkpoint: only {stored:,} of its {self.size:,} bytes are on the disk (a sparse file)')

    def _bytes(self, n: int) -> bytes:
        buffer = bytearray(n)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def fill(self, piece: memoryview) -> None:
        "Read the next bytes into `piece`; Malformed if the file ends before it is full."
        while len(piece):
            n = disk.read_into(self.fd, piece)
            if not n: raise Malformed('truncated: it ends too early; use another checkpoint')
            piece = piece[n:]

    def check(self, buffers: Iterator[memoryview]) -> None:
        "Read the data into `buffers`, one after the other; Malformed unless the sha256 of the file is as stated."
        with BackgroundHash() as digest:
            digest.update(masked(self.head))
            for piece in (b[at:at + _PIECE] for b in buffers for at in range(0, len(b), _PIECE)):
                self.fill(piece)
                digest.update(piece)
            found, stated = digest.hexdigest(), self.header.meta['sha256']
        if found != stated:
            raise Malformed(f'damaged: its sha256 is {found[:12]}…, not {stated[:12]}…; use another checkpoint')
