"""The checkpoints of one run in its folder: names that say where it stood, and so in which order; what is written, when
it counts, and which ones stay. Knows files and positions, no state."""
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from miniai.checkpoint import FolderLock, Saver, remove_stale

__all__ = ['BEST', 'RunFiles', 'file_name', 'place_of', 'files_of', 'is_between_epochs']

BEST = 'best.safetensors'
_NAME = re.compile(r'checkpoint-(\d{5,})-([123])-(\d{8,})\.safetensors', re.ASCII)
_PHASES = dict(train=1, valid=2, done=3)


def file_name(position: dict[str, Any]) -> str:
    "The name of the checkpoint at `position`: its phase, epoch and batch."
    return f"checkpoint-{position['epoch']:05}-{_PHASES[position['phase']]}-{position['batch']:08}.safetensors"


def place_of(name: str) -> tuple | None:
    """What orders the names of one run's checkpoints; None for any other name. A run that was done and then goes on for
    more epochs stands, when done, before the next epoch's first batch."""
    found = _NAME.fullmatch(name)
    if not found: return None
    epoch, phase, batch = map(int, found.groups())
    return epoch, phase == _PHASES['valid'], batch, phase


def files_of(folder: Path) -> list[Path]:
    "The checkpoints in `folder`, in the order of the run, whatever clocks said; other files are left out."
    there = [p for p in folder.glob('checkpoint-*') if place_of(p.name)]
    return sorted(there, key=lambda p: place_of(p.name))


def is_between_epochs(path: Path) -> bool:
    "Is it a checkpoint after which no epoch has to be taken up in its middle?"
    return place_of(path.name)[2] == 0


class RunFiles:
    """The folder of a run under way, locked from its making to `close()`. The last `keep` checkpoints stay; with
    `between`, the last one between epochs besides. Those beyond the position gone on from were passed over: they stay
    too, and do not count. With `background` they are written beside the caller."""
    def __init__(self, folder: Path, keep: int, between: bool, background: bool) -> None:
        self.folder, self.keep, self.between, self.background = folder, keep, between, background
        self._saver, self._writing, self._passed, self._end = Saver(), None, set(), ExitStack()
        if folder.is_file(): raise NotADirectoryError(f"checkpoints go to a folder, and {folder} is a file")
        folder.mkdir(parents=True, exist_ok=True)
        self._end.enter_context(FolderLock(folder))
        remove_stale(folder, locked=True)

    def start_from(self, position: dict[str, Any]) -> None:
        "The run goes on from there: what lies beyond was passed over."
        here = place_of(file_name(position))
        self._passed = {p for p in files_of(self.folder) if place_of(p.name) > here}

    def has(self, phase: str, epoch: int, batch: int) -> bool:
        "Is there a checkpoint of that position?"
        return (self.folder/file_name(dict(phase=phase, epoch=epoch, batch=batch))).exists()

    def has_best(self) -> bool:
        "Is there a best epoch's checkpoint?"
        return (self.folder/BEST).exists()

    def reserve(self, state: dict[str, Any]) -> None:
        "Take the memory for saving such a state beside the caller, before one is due."
        if self.background: self._saver.reserve(state)

    def save(self, state: dict[str, Any], best: bool) -> None:
        "Save the state under the name of its position, and where it is the `best` under that name too."
        self._settle(self._saver.wait)
        path = self.folder/file_name(state['position'])
        self._writing, also = path, [self.folder/BEST] if best else []
        beside = self.background
        self._settle(lambda: self._saver.save(path, state, also=also, background=beside) or not beside)

    def check_background(self) -> None:
        "Raise what went wrong beside the caller; where a save is on the disk to stay, let old ones go."
        self._settle(self._saver.done)

    def _settle(self, is_done: Callable[[], bool | None]) -> None:
        try: done = is_done()
        except BaseException:
            self._writing = None  # it may be there, and not to stay: no old one goes for it
            raise
        if self._writing is None or done is False: return
        self._passed.discard(self._writing)
        self._writing = None
        self._remove_old()

    def _remove_old(self) -> None:
        there = [p for p in files_of(self.folder) if p not in self._passed]
        kept = there[-self.keep:] + ([p for p in there if is_between_epochs(p)][-1:] if self.between else [])
        for old in there:
            if old not in kept: old.unlink(missing_ok=True)

    def remove_all(self) -> None:
        "Let every checkpoint go."
        self._settle(self._saver.wait)
        for p in files_of(self.folder): p.unlink()

    def close(self, in_haste: bool = False) -> None:
        "Wait for what is being written, unless `in_haste`, and let the folder go. Raises what went wrong."
        with self._end:
            if in_haste: self._saver.abandon()
            else: self._settle(self._saver.wait)
