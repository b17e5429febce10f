"The folder of a run: made once, never overwritten, every file complete."
import glob
import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from miniai.atomic import atomic_write
from miniai.distributed.ranks import is_first, of_first, world
from miniai.environment import machine_facts
from miniai.events import Callback
from miniai.report.record import as_json

__all__ = ['RunFolder', 'HistoryFileCB', 'as_json', 'recorded', 'samples_of']

TIME_FORMAT, TIME_PATTERN = '%Y-%m-%d_%H%M%S', r'(\d{4}-\d\d-\d\d_\d{6})'


class RunFolder:
    """A new folder at `path`. `{time}` and `{job}` in its name are filled in; if a folder with that time exists, a
    number is added. FileExistsError if a name without `{time}` is taken: a run is never overwritten. Of several
    processes the first one makes it and writes to it."""
    def __init__(self, name: str, job: str) -> None:
        path = Path(name.replace('{time}', time.strftime(TIME_FORMAT)).replace('{job}', job))
        self.path = of_first(lambda: _make_numbered(path) if '{time}' in name else _make(path))

    @classmethod
    def find(cls, name: str) -> 'RunFolder':
        """The folder of an existing run of `miniai train`; with `{time}` in the name the latest, by the time in its
        name, then by its number. FileNotFoundError if there is none."""
        name = name.replace('{job}', 'train')
        found = _with_times(name) if '{time}' in name else {Path(name): ()}
        runs = {path: when for path, when in found.items() if (path/'config.toml').is_file()}
        if not runs: raise FileNotFoundError(f"no run to resume at {name}: give its folder with --out")
        folder = cls.__new__(cls)
        folder.path = max(runs, key=runs.get)
        return folder

    def write(self, name: str, text: str) -> None:
        "Write a text file completely, or leave the old one."
        if not is_first(): return
        with atomic_write(self.path/name) as part: part.write_text(text, 'utf-8')

    def picture(self, name: str, figure: Any) -> None:
        "Write a matplotlib figure as PNG."
        if not is_first(): return
        with atomic_write(self.path/name) as part: figure.savefig(part, format='png', dpi=100)

    def write_environment(self, device: str, data: str = '', samples: dict[str, Any] | None = None,
                          resumed_at: int | None = None) -> None:
        """Write `environment.json`: versions, machine, command and the number of samples, so that the run can be
        understood later. If it exists, because this process resumes the run, after `resumed_at` training batches, write
        `environment-2.json`, or the next free number."""
        n = 1 + len(list(self.path.glob('environment*.json')))
        environment = machine_facts(device) | dict(processes=world(), data=data, samples=samples, command=sys.argv,
                                                    resumed_at=resumed_at)
        self.write(f'environment-{n}.json' if n > 1 else 'environment.json', as_json(environment, indent=1) + '\n')


@contextmanager
def recorded(name: str) -> Iterator[None]:
    "What a run records must not end it: an error in the block, as of a full disk, is a warning that names the file."
    try: yield
    except Exception as e:
        warnings.warn(f"{name} was not written: {type(e).__name__}: {e}. The run continues without it", stacklevel=3)


def samples_of(dls: Any) -> dict[str, int | None]:
    "The number of samples for training and for validation; None where it is not known."
    return {nm: getattr(getattr(dls, nm), 'n', None) for nm in ('train', 'valid')}


def _make_numbered(path: Path) -> Path:
    "A new folder with that name, or with a number after it. Two runs that start together get a folder each."
    for p in (path, *(path.with_name(f'{path.name}-{n}') for n in range(2, 1000))):
        with suppress(FileExistsError):
            p.mkdir(parents=True)
            return p
    raise FileExistsError(f"cannot make a folder at {path}, even with a number: choose another name with --out")


def _make(path: Path) -> Path:
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        taken = 'not empty' if path.is_dir() else 'a file, pipe or broken link'
        raise FileExistsError(f"the run folder {path} is {taken}, and runs are never overwritten: "
                              f"choose another one with --out")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _with_times(name: str) -> dict[Path, tuple[str, int]]:
    "The existing folders of a name with `{time}`, each with its time and number."
    parts = Path(name).as_posix().split('{time}')
    pattern = re.compile(TIME_PATTERN.join(map(re.escape, parts)) + r'(?:-(\d+))?')
    paths = glob.glob('*'.join(map(glob.escape, parts)) + '*')
    found = (pattern.fullmatch(Path(p).as_posix()) for p in paths)
    return {Path(m[0]): (m[1], int(m[pattern.groups] or 1)) for m in found if m}


class HistoryFileCB(Callback):
    "Writes `learn.history` to metrics.jsonl in the run folder after each epoch and phase: one row as JSON per line."
    order, only_shows = 2, True
    def __init__(self, folder: RunFolder) -> None: self.folder = folder
    def after_epoch(self, learn: Any) -> None:
        if getattr(learn, 'dry_run', False): return  # as in capture_preds: the rows are not the run's
        with recorded('metrics.jsonl'):
            self.folder.write('metrics.jsonl', ''.join(as_json(r) + '\n' for r in learn.history))
