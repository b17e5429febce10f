"What every tracker can do with a run."
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ['Tracker', 'free_name', 'key_of', 'unseen']


class Tracker:
    """One run in the store of a tracker. `folder` is where the store is, `name` what the run is called. `run` is the id
    of a run to continue after training batch `step`; with None a new one begins, whose id is then in `run`. `options`
    go to the tracker's library. `package` is what to install, and `view` a command that shows the run."""
    package = view = run = ''
    def __init__(self, folder: Path, name: str, run: str | None, step: int, **options: Any) -> None:
        raise NotImplementedError

    def config(self, values: Mapping[str, Any]) -> None:
        "Record the configuration of the run."
        raise NotImplementedError

    def figures(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        "Record figures, by name, at a number of training batches."
        raise NotImplementedError

    def picture(self, name: str, png: Path, step: int) -> None:
        "Record a picture, which is in a PNG file."
        raise NotImplementedError

    def alert(self, title: str, text: str, step: int) -> None:
        "Record what the user should look at."
        raise NotImplementedError

    def file(self, path: Path) -> None:
        "Record a file, such as the trained model. By default nothing, for trackers that cannot hold any."

    def close(self, how: str) -> None:
        "Write everything. `how` the run ended: 'finished', 'stopped' or 'failed'."


def unseen(rows: Sequence[tuple[int, Mapping[str, float]]], last: Mapping[str, int]) -> list:
    "`rows` without the figures that a store has already: those of a name up to its `last` step."
    left = [(step, {nm: x for nm, x in values.items() if step > last.get(nm, -1)}) for step, values in rows]
    return [(step, values) for step, values in left if values]


def free_name(folder: Path, name: str) -> str:
    "`name`, or with a number after it if the folder has something of that name."
    names = (name, *(f'{name}-{n}' for n in range(2, 10_000)))
    return next(nm for nm in names if not (folder/nm).exists())


def key_of(text: str) -> str:
    "`text` as a key that every tracker accepts."
    return re.sub(r'[^\w ./-]', '_', text).strip()
