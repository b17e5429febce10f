"What a run leaves in its folder: configuration, environment, figures as they come, model, pictures. Knows files alone."
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from miniai.events import Callback

__all__ = ['RunFolder', 'HistoryFileCB']

_PACKAGES = ('miniai-torch', 'torch', 'numpy', 'numba', 'safetensors', 'matplotlib', 'tqdm')


class RunFolder:
    """A new folder, `{time}` and `{job}` in its name filled in, with a number where that one exists. FileExistsError
    where there is something in a folder of a plain name already: a run is never written over."""
    def __init__(self, name: str, job: str) -> None:
        self.path = _new_path(name, job)
        if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise FileExistsError(f"the run folder {self.path} is not empty, and a run is never written over: "
                                  f"name another with --out")
        self.path.mkdir(parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> None:
        "Write a text file whole, or leave the old one."
        self._replace(name, lambda p: p.write_text(text))

    def save_model(self, model: nn.Module) -> None:
        "Write `model.safetensors`: the weights and buffers, on the CPU."
        from safetensors.torch import save_model
        self._replace('model.safetensors', lambda p: save_model(model, str(p)))

    def picture(self, name: str, fig: Any) -> None:
        "Write a matplotlib figure as PNG."
        self._replace(name, lambda p: fig.savefig(p, format='png', dpi=100))

    def _replace(self, name: str, write: Callable[[Path], Any]) -> None:
        part = self.path/f'.{name}.part'
        write(part)
        os.replace(part, self.path/name)

    def write_environment(self, device: str) -> None:
        "Write `environment.json`: versions, machine and command, so that the run can be understood later."
        self.write('environment.json', json.dumps(_environment(device), indent=1) + '\n')


def _new_path(name: str, job: str) -> Path:
    path = Path(name.replace('{time}', time.strftime('%Y-%m-%d_%H%M%S')).replace('{job}', job))
    if '{time}' not in name: return path
    return next(p for p in (path, *(path.with_name(f'{path.name}-{n}') for n in range(2, 1000))) if not p.exists())


def _environment(device: str) -> dict[str, Any]:
    return dict(python=platform.python_version(), platform=platform.platform(), machine=platform.machine(),
                cpus=os.cpu_count(), threads=torch.get_num_threads(), device=device, command=sys.argv,
                gpu=torch.cuda.get_device_name() if device.startswith('cuda') else None,
                versions={p: _version(p) for p in _PACKAGES})


def _version(package: str) -> str | None:
    try: return version(package)
    except PackageNotFoundError: return None


class HistoryFileCB(Callback):
    "Appends each new row of `learn.history` to a file, a line of JSON an epoch and phase, as it comes."
    order = 2
    def __init__(self, path: Path) -> None: self.path = path
    def after_epoch(self, learn: Any) -> None:
        with self.path.open('a') as f: f.write(json.dumps(learn.history[-1]) + '\n')
