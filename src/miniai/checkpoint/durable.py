"""Writing that survives: a file that is whole under its name, or not there at all, whatever stops the machine. Knows
bytes and the order in which a disk must hear of them, no state."""
import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain

from torch import Tensor

from miniai.checkpoint import disk
from miniai.checkpoint.background import Beside
from miniai.checkpoint.errors import SaveError
from miniai.checkpoint.header import sealed
from miniai.checkpoint.read import check_written, pieces_of

__all__ = ['write_durably', 'temporary_names']

_LARGE = 1 << 24  # bytes; from here on the disk is set to work while the hash is still being taken
_STEM = 27        # characters of a name in its temporary's: of 4 bytes each, all is no longer than 143, the least limit
_BEFORE = 'what stood there before stays'
_ours = set()     # the temporaries of saves under way in this process


def temporary_names() -> frozenset[str]:
    "The paths of this process's own temporaries, of saves under way."
    return frozenset(_ours)


def write_durably(paths: Iterable[str], head: bytes, memories: list[memoryview | Tensor], size: int) -> None:
    """Put a file of `head` and `memories`, flat bytes, `size` in all, at the first of `paths`, real ones, the sha256
    in its place in the head, and then at each other: a second name of the same file, or a copy where the file system
    has none to give. Return when it was read back and is on the disk to stay, under all of them. SaveError, naming
    the path, at the first where that fails: what was there stays, as do the new file under the paths before, and what
    was there under those after; nothing else is left. Where something else than a file stands under any of them, that
    is a SaveError before anything is written."""
    first, *others = paths
    writings = [_Writing(first, size), *(_Writing(p, size, first) for p in others)]
    for w in writings: w.refuse_other_kinds()
    for w in writings: w.run(head, memories)


class _Writing:
    def __init__(self, path: str, size: int, source: str | None = None) -> None:
        self.path, self.wanted, self.written, self.stands, self.source = path, size, 0, _BEFORE, source
        self.folder, name = os.path.split(path)
        stem = os.path.join(self.folder, f'.{name[:_STEM]}.{os.getpid()}.{secrets.token_hex(4)}')
        self.part, self.old = f'{stem}.part', f'{stem}.old.part'

    def refuse_other_kinds(self) -> None:
        "SaveError where a device, a pipe, a folder or a link to itself stands, which renaming would replace."
        try:
            if not disk.is_replaceable(self.path): raise OSError('it is no regular file')
        except Exception as e: raise SaveError(self.path, self.wanted, 0, e, _BEFORE) from e

    def run(self, head: bytes, memories: list[memoryview | Tensor]) -> None:
        try:
            with _removed(self.part), _removed(self.old):
                if not self._linked(): self._write(head, memories)
                self._put_in_place()
        except Exception as e: raise SaveError(self.path, self.wanted, self.written, e, self._what_stands()) from e

    def _linked(self) -> bool:
        "Whether the temporary is another name of `source`; whatever forbids that, the contents may still be written."
        if not self.source: return False
        try: disk.link(self.source, self.part)
        except OSError: return False
        return True

    def _what_stands(self) -> str:
        return f'{self.stands}, and {self.source} is saved' if self.source else self.stands

    def _write(self, head: bytes, memories: list[memoryview | Tensor]) -> None:
        fd = disk.create(self.part)
        try:
            head = self._stream(fd, head, memories)
            disk.fsync(fd)
        finally: disk.close(fd)
        check_written(self.part, head, memories)

    def _stream(self, fd: int, head: bytes, memories: list[memoryview | Tensor]) -> bytes:
        "One pass, hashed beside the writing; last comes the digest, in its place in the head, which is returned so."
        digest = hashlib.sha256(head)
        with Beside() as beside:
            beside.do(_hash, digest, memories)
            for piece in chain([memoryview(head)], pieces_of(memories)): self._write_all(fd, piece)
            if self.wanted >= _LARGE: disk.fsync(fd)
        head, place = sealed(head, digest.hexdigest())
        if disk.pwrite(fd, head[place], place.start) != 64: raise OSError('the digest was not written whole')
        return head

    def _write_all(self, fd: int, piece: memoryview) -> None:
        while len(piece):
            n = disk.write(fd, piece)
            if n <= 0: raise OSError('the system wrote nothing')
            self.written, piece = self.written + n, piece[n:]

    def _put_in_place(self) -> None:
        "Rename, and sync the folder; where that fails the old file, kept by a second name until then, comes back."
        folder = disk.open_dir(self.folder)
        try:
            self._keep_old()
            self._rename(folder)
        finally:
            with suppress(OSError): disk.close_dir(folder)

    def _keep_old(self) -> None:
        try: disk.link(self.path, self.old)
        except FileNotFoundError: self.undo = lambda: disk.unlink(self.path)
        except OSError: self.undo = None  # a file system without second names: there, the new file stays
        else: self.undo = lambda: disk.rename(self.old, self.path)

    def _rename(self, folder: int | None) -> None:
        try:
            disk.rename(self.part, self.path)
            disk.fsync_dir(folder)
        except BaseException:
            if not os.path.lexists(self.part): self._take_back()
            raise

    def _take_back(self) -> None:
        self.stands = 'what stands there is the new file, whole, but not sure to outlive a power loss'
        with suppress(OSError):
            if not self.undo: return
            self.undo()
            self.stands = _BEFORE


def _hash(digest: 'hashlib._Hash', memories: list[memoryview | Tensor]) -> None:
    for piece in pieces_of(memories): digest.update(piece)


@contextmanager
def _removed(path: str) -> Iterator[None]:
    "Whatever comes, nothing is left at `path`; a disk that refuses even that leaves it to `remove_stale`."
    _ours.add(path)
    try: yield
    finally:
        _ours.discard(path)
        with suppress(OSError): disk.unlink(path)
