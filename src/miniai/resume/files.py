"A run's folder of checkpoints: their names, their order, and which of them are kept."
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from miniai.checkpoint import FolderLock, Saver, remove_stale
from miniai.checkpoint.folder import BEST, place_of

__all__ = ['BEST', 'RunFiles', 'NoFiles', 'file_name', 'place_of', 'files_of']

_PHASES = dict(train=1, valid=2, done=3)


def file_name(position: dict[str, Any]) -> str:
    "The name of the checkpoint at `position`: epoch, phase and batch."
    return f"checkpoint-{position['epoch']:05}-{_PHASES[position['phase']]}-{position['batch']:08}.safetensors"


def files_of(folder: Path) -> list[Path]:
    "The checkpoints in `folder`, in the order of the run, regardless of their dates."
    there = [p for p in folder.glob('checkpoint-*') if place_of(p.name)]
    return sorted(there, key=lambda p: place_of(p.name))


class RunFiles:
    """The folder of a run, locked until `close()`. Keeps the last `keep` checkpoints. Files beyond the position that
    the run resumed from were skipped: they stay and do not count. With `background`, files are written while the
    caller continues."""
    def __init__(self, folder: Path, keep: int, background: bool) -> None:
        self.folder, self.keep, self.background = folder, keep, background
        self._saver, self._writing, self._skipped, self._end = Saver(), None, set(), ExitStack()
        if os.path.lexists(folder) and not folder.is_dir():
            raise NotADirectoryError(f"checkpoints need a folder, but {folder} is a file, pipe or broken link")
        folder.mkdir(parents=True, exist_ok=True)
        self._end.enter_context(FolderLock(folder))
        remove_stale(folder, locked=True)

    def start_from(self, position: dict[str, Any]) -> None:
        "Note that the run resumes from `position`: files beyond it were skipped."
        here = place_of(file_name(position))
        self._skipped = {p for p in files_of(self.folder) if place_of(p.name) > here}

    def has(self, phase: str, epoch: int, batch: int) -> bool:
        "Is there a checkpoint of this position?"
        return (self.folder/file_name(dict(phase=phase, epoch=epoch, batch=batch))).exists()

    def has_best(self) -> bool:
        "Is there a checkpoint of the best epoch?"
        return (self.folder/BEST).exists()

    def save(self, state: dict[str, Any], best: bool) -> None:
        "Save `state` under the name of its position, and if it is the `best` under that name too."
        self._finish(self._saver.wait)
        self._writing = path = self.folder/file_name(state['position'])
        also = [self.folder/BEST] if best else []
        def write() -> bool:
            self._saver.save(path, state, also=also, background=self.background)
            return not self.background
        self._finish(write)

    def check_background(self) -> None:
        "Raise what went wrong in the background; if the new file is safely on disk, remove old ones."
        self._finish(self._saver.done)

    def _finish(self, is_done: Callable[[], bool | None]) -> None:
        try: done = is_done()
        except BaseException:
            self._writing = None  # the new file may be there, but is not safe: remove nothing for it
            raise
        if self._writing is None or done is False: return
        self._skipped.discard(self._writing)
        self._writing = None
        there = [p for p in files_of(self.folder) if p not in self._skipped]
        for old in there[:-self.keep]: old.unlink(missing_ok=True)

    def close(self, wait: bool = True) -> None:
        "Unlock the folder, after waiting for what is being written unless `wait` is False. Raises what went wrong."
        with self._end:
            if wait: self._finish(self._saver.wait)
            else: self._saver.abandon()


class NoFiles:
    "Stands in for RunFiles in the processes of a run that write nothing: all but the first."
    def __init__(self, folder: Path) -> None: self.folder = folder
    def start_from(self, position: dict[str, Any]) -> None: "It notes nothing."
    def save(self, state: dict[str, Any], best: bool) -> None: "It saves nothing."
    def check_background(self) -> None: "Nothing can fail."
    def close(self, wait: bool = True) -> None: "Nothing is open."
