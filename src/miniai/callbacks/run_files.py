"The checkpoints of one run in its folder: names that say where it stood, and so in which order. Knows no state."
import re
from pathlib import Path
from typing import Any

__all__ = ['file_name', 'place_of', 'files_of', 'lies_between_epochs']

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


def lies_between_epochs(path: Path) -> bool:
    "Is it a checkpoint after which no epoch has to be taken up in its middle?"
    return place_of(path.name)[2] == 0
