"""Files that are checkpoints, read: nothing is believed before the sha256 over all of it is right. Knows the format, no
state's meaning."""
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch

from miniai.checkpoint import disk
from miniai.checkpoint.background import Digest
from miniai.checkpoint.errors import CheckpointError, Malformed
from miniai.checkpoint.geometry import rebuilt
from miniai.checkpoint.header import DIGEST_AT, LONGEST, geometries, loads, masked, parse
from miniai.checkpoint.tree import top_scalars, unflatten

__all__ = ['load', 'verify', 'inspect', 'CheckpointInfo', 'TensorInfo', 'check_written', 'pieces_of']

_PIECE = 1 << 21  # bytes read or written at a time


def load(path: str | bytes | PathLike) -> Any:
    """The state that `save` was given, after the whole file has been verified in the same pass: tensors on the CPU,
    with their strides, tied ones tied. CheckpointError for a file that is no whole checkpoint. Takes the file's
    size in memory; and for its head, at most 100 MB in which all is that is no tensor, what its values take as Python
    objects: of millions of empty lists, as a file made to harm may have, some 50 times their size."""
    with _opened(path) as file:
        memories = {nm: torch.empty(e.end - e.begin, dtype=torch.uint8) for nm, e in file.header.entries.items()}
        file.check(memoryview(m.numpy()) for m in memories.values())
        where = geometries(file.header)
        tensors = {nm: rebuilt(where[nm], m) for nm, m in memories.items()}
        return unflatten(loads(file.header.meta['state']), tensors)


def pieces_of(memories: Iterable[memoryview | torch.Tensor]) -> Iterator[memoryview]:
    "Flat bytes, wherever they are, in pieces on the CPU."
    for m in memories:
        data = m if isinstance(m, memoryview) else memoryview(m.cpu().numpy())
        for at in range(0, len(data), _PIECE): yield data[at:at + _PIECE]


def check_written(path: str, head: bytes, memories: Iterable[memoryview | torch.Tensor]) -> None:
    "CheckpointError unless the file at `path`, read back, is sound and holds these very bytes."
    with _opened(path) as file:
        if file.head != head: raise Malformed('its head was read back otherwise than it was written')
        buffer = bytearray(_PIECE)
        for piece in pieces_of(memories):
            if len(buffer) != len(piece): buffer = bytearray(len(piece))
            file.fill(memoryview(buffer))
            if buffer != piece: raise Malformed('its data were read back otherwise than they were written')


def verify(path: str | bytes | PathLike) -> str:
    """The file's sha256, where all of it is as it was saved and can be loaded; else CheckpointError. Takes one pass
    over the file, a few MB, and what `load` takes for its head."""
    with _opened(path) as file:
        file.check(_pieces(file.header.data_bytes))
        unflatten(loads(file.header.meta['state']), geometries(file.header))
        return file.header.meta['sha256']


def _pieces(n: int) -> Iterator[memoryview]:
    "Two buffers in turn, so that one can be hashed while the other fills, `n` bytes in all."
    buffers = [memoryview(bytearray(min(n, _PIECE))) for _ in range(2)]
    for k, at in enumerate(range(0, n, _PIECE)): yield buffers[k % 2][:min(_PIECE, n - at)]


@dataclass(frozen=True)
class TensorInfo:
    "A tensor of a checkpoint: torch's name of its dtype, its shape and its bytes in the file."
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


@dataclass(frozen=True)
class CheckpointInfo:
    """What the head of a checkpoint says: format version, when it was saved (UTC), by which miniai and torch, bytes
    of the file, its sha256 as stated, the tensors by name, and the plain values of the state's top two levels by
    path."""
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
    "What the file's head says, in its own words: no data are read, so only `verify` knows whether they are whole."
    with _opened(path) as file:
        where, meta = geometries(file.header), file.header.meta
        known = {k: meta[k] for k in ('version', 'saved', 'miniai', 'torch', 'sha256')}
        tensors = {nm: TensorInfo(g.dtype, g.shape, g.nbytes) for nm, g in where.items()}
        scalars = top_scalars(unflatten(loads(meta['state']), where))
        return CheckpointInfo(os.fsdecode(path), size=file.size, tensors=tensors, scalars=scalars, **known)


@contextmanager
def _opened(path: str | bytes | PathLike) -> Iterator['_File']:
    "The file with its header read; what is wrong with it, until the `with` ends, is a CheckpointError that names it."
    path = os.fsdecode(path)
    fd = _descriptor(path)
    try: yield _File(fd)
    except (ValueError, RecursionError) as e: raise CheckpointError(path, str(e)) from e
    except OSError as e: raise CheckpointError(path, f'cannot be read: {e.strerror or e}') from e
    finally:
        with suppress(OSError): disk.close(fd)


def _descriptor(path: str) -> int:
    try: fd = disk.open_regular(path)
    except ValueError as e: raise CheckpointError(path, f'no path: {e}') from e  # it has a NUL
    if fd is None: raise CheckpointError(path, 'no regular file')
    return fd


class _File:
    def __init__(self, fd: int) -> None:
        self.fd, self.size = fd, disk.fstat(fd).st_size
        _refuse_hollow(fd, disk.fstat(fd))
        self.head = self._head()
        self.header = parse(self.head)
        _check_size(self.size, len(self.head) + self.header.data_bytes)

    def _head(self) -> bytes:
        if self.size < DIGEST_AT: raise Malformed(f'not a checkpoint of miniai, or cut: it has only {self.size} bytes')
        first = self._bytes(8)
        n = int.from_bytes(first, 'little')
        if n > min(LONGEST, self.size - 8):
            raise Malformed(f'not a checkpoint of miniai, or cut: '
                            f'a header of {n:,} bytes in a file of {self.size:,}')
        return first + self._bytes(n)

    def _bytes(self, n: int) -> bytes:
        buffer = bytearray(n)
        self.fill(memoryview(buffer))
        return bytes(buffer)

    def fill(self, piece: memoryview) -> None:
        "Read on until `piece` is full; Malformed where the file ends before."
        while len(piece):
            n = disk.read_into(self.fd, piece)
            if not n: raise Malformed('it ends too early')
            piece = piece[n:]

    def check(self, buffers: Iterator[memoryview]) -> None:
        "Read the data into `buffers`, one after the other; Malformed unless the digest of all is as stated."
        with Digest() as digest:
            digest.update(masked(self.head))
            for piece in (b[at:at + _PIECE] for b in buffers for at in range(0, len(b), _PIECE)):
                self.fill(piece)
                digest.update(piece)
            found, stated = digest.hexdigest(), self.header.meta['sha256']
        if found != stated: raise Malformed(f'damaged: its sha256 is {found[:12]}…, and should be {stated[:12]}…')


def _check_size(size: int, expected: int) -> None:
    if size < expected: raise Malformed(f'cut: {size:,} of {expected:,} bytes are there')
    if size > expected: raise Malformed(f'{size - expected:,} bytes follow its end')


def _refuse_hollow(fd: int, info: os.stat_result) -> None:
    "A file of which almost nothing is on the disk would take hours to read as zeros."
    stored = getattr(info, 'st_blocks', 0)*512
    if info.st_size > 1 << 30 and stored < info.st_size >> 10 and _has_a_hole(fd, info.st_size):
        raise Malformed(f'hollow: it says {info.st_size:,} bytes, of which {stored:,} are on the disk')


def _has_a_hole(fd: int, size: int) -> bool:
    "What the number of blocks hints at, asked of the system: some network folders count no blocks at all."
    if not hasattr(os, 'SEEK_HOLE'): return True
    hole = os.lseek(fd, 0, os.SEEK_HOLE)
    os.lseek(fd, 0, os.SEEK_SET)
    return hole < size
