"What a run leaves in its folder: configuration, environment, figures as they come, model, pictures. Knows files alone."
import glob
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miniai.environment import version_of
from miniai.events import Callback

__all__ = ['RunFolder', 'HistoryFileCB', 'as_json']

_CLOCK, _TIME = '%Y-%m-%d_%H%M%S', r'(\d{4}-\d\d-\d\d_\d{6})'
_PACKAGES = ('miniai-torch', 'torch', 'numpy', 'numba', 'safetensors', 'matplotlib', 'tqdm')


def as_json(x: Any, **kwargs: Any) -> str:
    "`x` as JSON, null for numbers that are not finite: JSON has none such."
    return json.dumps(_finite(x), allow_nan=False, **kwargs)


def _finite(x: Any) -> Any:
    if isinstance(x, dict): return {k: _finite(v) for k, v in x.items()}
    if isinstance(x, list): return [_finite(v) for v in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


class RunFolder:
    """A new folder, `{time}` and `{job}` in its name filled in, with a number where that one exists. FileExistsError
    where there is something in a folder of a plain name already: a run is never written over."""
    def __init__(self, name: str, job: str) -> None:
        path = Path(name.replace('{time}', time.strftime(_CLOCK)).replace('{job}', job))
        self.path = _numbered(path) if '{time}' in name else _new_or_empty(path)

    @classmethod
    def of_run(cls, name: str, job: str) -> 'RunFolder':
        """The folder of a run that there is: of that name, or, where it has `{time}` in it, the one made last, by the
        time in its name and then by its number, whatever was written there since. FileNotFoundError where there is
        none."""
        name = name.replace('{job}', job)
        named = _with_times(name) if '{time}' in name else {Path(name): ()}
        made = {p: when for p, when in named.items() if (p/'config.toml').is_file()}
        if not made: raise FileNotFoundError(f"there is no run to go on with at {name}: name its folder with --out")
        folder = cls.__new__(cls)
        folder.path = max(made, key=made.get)
        return folder

    def write(self, name: str, text: str) -> None:
        "Write a text file whole, or leave the old one."
        self._replace(name, lambda p: p.write_text(text, 'utf-8'))

    def save_model(self, model: nn.Module) -> None:
        "Write `model.safetensors`: the weights and buffers, on the CPU."
        from safetensors.torch import save_model
        self._replace('model.safetensors', lambda p: save_model(model, str(p)))

    def picture(self, name: str, fig: Any) -> None:
        "Write a matplotlib figure as PNG."
        self._replace(name, lambda p: fig.savefig(p, format='png', dpi=100))

    def _replace(self, name: str, write: Callable[[Path], Any]) -> None:
        part = self.path/f'.{name}.part'
        try:
            write(part)
            os.replace(part, self.path/name)
        finally: part.unlink(missing_ok=True)

    def write_environment(self, device: str, data: str = '') -> None:
        "Write `environment.json`: versions, machine and command, so that the run can be understood later."
        self.write('environment.json', as_json(_environment(device, data), indent=1) + '\n')


def _numbered(path: Path) -> Path:
    "A new folder of that name, else with a number; made, not looked for, so that two runs at once have two folders."
    for p in (path, *(path.with_name(f'{path.name}-{n}') for n in range(2, 1000))):
        with suppress(FileExistsError):
            p.mkdir(parents=True)
            return p
    raise FileExistsError(f"no folder could be made at {path}, nor with a number: name another with --out")


def _with_times(name: str) -> dict[Path, tuple[str, int]]:
    "What there is by a name with `{time}` in it, each with the time and the number that it was made with."
    parts = Path(name).as_posix().split('{time}')
    made = re.compile(_TIME.join(map(re.escape, parts)) + r'(?:-(\d+))?')
    found = (made.fullmatch(Path(p).as_posix()) for p in glob.glob('*'.join(map(glob.escape, parts)) + '*'))
    return {Path(m[0]): (m[1], int(m[made.groups] or 1)) for m in found if m}


def _new_or_empty(path: Path) -> Path:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"the run folder {path} is not empty, and a run is never written over: "
                              f"name another with --out")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _environment(device: str, data: str) -> dict[str, Any]:
    return dict(python=platform.python_version(), platform=platform.platform(), machine=platform.machine(),
                cpus=os.cpu_count(), threads=torch.get_num_threads(), device=device, data=data, command=sys.argv,
                gpu=torch.cuda.get_device_name() if device.startswith('cuda') else None,
                versions={p: version_of(p) for p in _PACKAGES})


class HistoryFileCB(Callback):
    "Keeps `learn.history` in a file of a run folder, a line of JSON an epoch and phase, as rows come."
    order = 2
    def __init__(self, folder: RunFolder, name: str = 'metrics.jsonl') -> None: self.folder, self.name = folder, name
    def after_epoch(self, learn: Any) -> None:
        self.folder.write(self.name, ''.join(as_json(row) + '\n' for row in learn.history))
