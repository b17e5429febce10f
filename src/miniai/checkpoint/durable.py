"Durable writing: after a crash or power loss at any moment, either the old file or the new one is there, complete."
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain

from torch import Tensor

from miniai.checkpoint import disk
from miniai.checkpoint.background import BackgroundThread
from miniai.checkpoint.errors import SaveError
from miniai.checkpoint.header import sealed
from miniai.checkpoint.read import check_written, pieces_of

__all__ = ['write_durably', 'temporary_names']

_LARGE = 1 << 24  # bytes; from this size on, the disk starts to sync while the hash is still being computed
_STEM = 27        # characters kept from the file's name: at 4 bytes each, the temporary name has at most 143 bytes
_UNCHANGED = 'nothing has changed at this path'
_ours = set()     # temporary files of saves in progress in this process


def temporary_names() -> frozenset[str]:
    "Paths of the temporary files of saves in progress in this process."
    return frozenset(_ours)


def write_durably(paths: Iterable[str], head: bytes, memories: list[memoryview | Tensor], size: int) -> None:
    """Write `head`, with the sha256 filled in, and `memories`, flat bytes, `size` bytes in all, to the first of `paths`
    (real paths), then give that file each further name: as a hard link, or as a copy where links are not possible.
    Returns when the file was read back and is on the disk under every name. SaveError names the first path that
    fails: paths before it have the new file, this one and those after it are unchanged, and no temporary is left."""
    first, *others = paths
    writers = [_Writer(first, size), *(_Writer(p, size, first) for p in others)]
    for w in writers: w.check_replaceable()  # before anything is written
    for w in writers: w.write(head, memories)


class _Writer:
    "Writes a file to a temporary name next to `path` and moves it there; `source` is an equal file to link to."
    def __init__(self, path: str, size: int, source: str | None = None) -> None:
        self.path, self.size, self.source, self.written, self.status = path, size, source, 0, _UNCHANGED
        self.folder, name = os.path.split(path)
        stem = os.path.join(self.folder, f'.{name[:_STEM]}.{os.getpid()}.{secrets.token_hex(4)}')
        self.part, self.old = f'{stem}.part', f'{stem}.old.part'

    def check_replaceable(self) -> None:
        "SaveError for a folder, device, pipe or a link to itself: renaming would replace it."
        try:
            if not disk.is_replaceable(self.path):
                raise OSError('there is a folder, device, pipe or socket at this path; choose another')
        except Exception as e: raise SaveError(self.path, self.size, 0, e, _UNCHANGED) from e

    def write(self, head: bytes, memories: list[memoryview | Tensor]) -> None:
        try:
            with _removed(self.part), _removed(self.old):
                if not self._linked(): self._write_part(head, memories)
                self._move_into_place()
        except Exception as e:
            status = f'{self.status}, and {self.source} is saved' if self.source else self.status
            raise SaveError(self.path, self.size, self.written, e, status) from e

    def _linked(self) -> bool:
        "Make the temporary a second name of `source`, if there is one and the file system can."
        if not self.source: return False
        try: disk.link(self.source, self.part)
        except OSError: return False
        return True

    def _write_part(self, head: bytes, memories: list[memoryview | Tensor]) -> None:
        "Write the temporary file, sync it and read it back."
        fd = disk.create(self.part)
        try:
            head = self._stream(fd, head, memories)
            disk.fsync(fd)
        finally: disk.close(fd)
        check_written(self.part, head, memories)

    def _stream(self, fd: int, head: bytes, memories: list[memoryview | Tensor]) -> bytes:
        "Write everything in one pass, hash it in the background, then put the digest into the head, and return that."
        digest = hashlib.sha256(head)
        with BackgroundThread() as hashing:
            hashing.submit(_hash, digest, memories)
            for piece in chain([memoryview(head)], pieces_of(memories)):
                while len(piece):
                    n = disk.write(fd, piece)
                    if n <= 0: raise OSError('the system wrote nothing')
                    self.written, piece = self.written + n, piece[n:]
            if self.size >= _LARGE: disk.fsync(fd)
        head, place = sealed(head, digest.hexdigest())
        if disk.pwrite(fd, head[place], place.start) != 64: raise OSError('the system wrote only a part of the sha256')
        return head

    def _move_into_place(self) -> None:
        "Rename the temporary and sync the folder. If that fails, restore the old file, kept under a second name."
        folder = disk.open_dir(self.folder)
        try:
            try: disk.link(self.path, self.old)
            except FileNotFoundError: undo = partial(disk.unlink, self.path)
            except OSError: undo = None  # a file system without hard links: the new file stays
            else: undo = partial(disk.rename, self.old, self.path)
            try:
                disk.rename(self.part, self.path)
                disk.fsync_dir(folder)
            except BaseException:
                if not os.path.lexists(self.part): self._restore(undo)  # the rename was done
                raise
        finally:
            with suppress(OSError): disk.close_dir(folder)

    def _restore(self, undo: partial | None) -> None:
        self.status = 'the new file is at this path and complete, but may not survive a power loss'
        with suppress(OSError):
            if not undo: return
            undo()
            self.status = _UNCHANGED


def _hash(digest: 'hashlib._Hash', memories: list[memoryview | Tensor]) -> None:
    for piece in pieces_of(memories): digest.update(piece)


@contextmanager
def _removed(path: str) -> Iterator[None]:
    "Remove `path` at the end, whatever happens; if the disk refuses, `remove_stale` does it later."
    _ours.add(path)
    try: yield
    finally:
        _ours.discard(path)
        with suppress(OSError): disk.unlink(path)
