"A run's folder of checkpoints: their names, their order, and which of them are kept."
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from miniai.checkpoint import FolderLock, Saver, remove_stale
from miniai.checkpoint.folder import BEST, BEST_FOLDER, place_of, remove
from miniai.checkpoint.saving_sharded import ShardedSaver

__all__ = ['BEST', 'BEST_FOLDER', 'RunFiles', 'NoFiles', 'file_name', 'place_of', 'files_of']

_PHASES = dict(train=1, valid=2, done=3)


def file_name(position: dict[str, Any], sharded: bool = False) -> str:
    "The name of the checkpoint at `position`: epoch, phase and batch. That of a `sharded` model is a folder."
    name = f"checkpoint-{position['epoch']:05}-{_PHASES[position['phase']]}-{position['batch']:08}"
    return name if sharded else f'{name}.safetensors'


def files_of(folder: Path) -> list[Path]:
    "The checkpoints in `folder`, in the order of the run, regardless of their dates."
    there = [p for p in folder.glob('checkpoint-*') if place_of(p.name)]
    return sorted(there, key=lambda p: place_of(p.name))


class RunFiles:
    """The folder of a run, locked until `close()`. Keeps the last `keep` checkpoints. Files beyond the position that
    the run resumed from were skipped: they stay and do not count. With `background`, files are written while the
    caller continues. Those of a `sharded` model are folders, and BEST_FOLDER is a link to the one of the best epoch."""
    def __init__(self, folder: Path, keep: int, background: bool, sharded: bool = False) -> None:
        self.folder, self.keep, self.background, self.sharded = folder, keep, background, sharded
        self._saver = ShardedSaver() if sharded else Saver()
        self._writing, self._skipped, self._end = None, set(), ExitStack()
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
        return (self.folder/file_name(dict(phase=phase, epoch=epoch, batch=batch), self.sharded)).exists()

    def has_best(self) -> bool:
        "Is there a checkpoint of the best epoch?"
        return any((self.folder/nm).exists() for nm in (BEST, BEST_FOLDER))

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor], best: bool) -> None:
        """Save `state` under the name of its position, and if it is the `best` under that name too. `tensors` are those
        of a sharded model, by their names in `state`."""
        self._finish(self._saver.wait)
        self._writing = path = self.folder/file_name(state['position'], self.sharded)
        self._best = (BEST_FOLDER if self.sharded else BEST) if best else None
        also = [self.folder/self._best] if best else []
        def write() -> bool:
            whole = (state, tensors) if self.sharded else (state,)
            self._saver.save(path, *whole, also=also, background=self.background)
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
        if self._best:  # another kind of run may have left the other
            remove(self.folder/(BEST if self.sharded else BEST_FOLDER))
        best = (self.folder/BEST_FOLDER).resolve().name
        there = [p for p in files_of(self.folder) if p not in self._skipped]
        for old in there[:-self.keep]:
            if old.name != best: remove(old)

    def close(self, wait: bool = True) -> None:
        "Unlock the folder, after waiting for what is being written unless `wait` is False. Raises what went wrong."
        with self._end:
            if wait: self._finish(self._saver.wait)
            else: self._saver.abandon()


class NoFiles:
    "Stands in for RunFiles in all processes but the first: they write only their parts of a sharded model."
    def __init__(self, folder: Path, background: bool) -> None:
        self.folder, self.background, self._saver = folder, background, ShardedSaver()

    def start_from(self, position: dict[str, Any]) -> None: "It notes nothing."

    def save(self, state: dict[str, Any], tensors: dict[str, Tensor], best: bool) -> None:
        "Save the parts of `tensors` that this process has."
        if tensors: self._saver.save(self.folder/file_name(state['position'], True), state, tensors,
                                     background=self.background)

    def check_background(self) -> None: self._saver.done()

    def close(self, wait: bool = True) -> None:
        "Wait for what is being written unless `wait` is False. Raises what went wrong."
        if wait: self._saver.wait()
