"The jobs that verify checkpoints and show what is in one. Know files alone."
from dataclasses import dataclass
from pathlib import Path

from miniai.checkpoint import CheckpointError, describe, inspect, verify
from miniai.checkpoint.describe import printable
from miniai.jobs.config import ConfigError

__all__ = ['VerifyConfig', 'ShowConfig', 'verify_files', 'show_file']


@dataclass
class VerifyConfig:
    "Say of each file whether it is whole, as it was saved. Exits with 1 if one is not."
    path: tuple[Path, ...]


@dataclass
class ShowConfig:
    "Show what is in a checkpoint: where it comes from, its values, its tensors."
    path: Path
    """The file."""


def verify_files(config: VerifyConfig) -> int:
    "Print a line for each file; return 0 if all are whole, else 1. ConfigError where none is named."
    if not config.path: raise ConfigError("name one checkpoint or more: miniai checkpoint verify PATH…")
    good = [_is_whole(p) for p in config.path]
    return 0 if all(good) else 1


def _is_whole(path: Path) -> bool:
    whole, said = _verdict(path)
    print(printable(said))
    return whole


def _verdict(path: Path) -> tuple[bool, str]:
    try: return True, f'{path}: whole, sha256 {verify(path)}'
    except CheckpointError as e: return False, str(e)
    except OSError as e: return False, f'{path}: {e.strerror or e}'


def show_file(config: ShowConfig) -> int:
    "Print what is in the file; return 0. CheckpointError where it is no checkpoint or cannot be read."
    try: said = describe(inspect(config.path))
    except OSError as e: raise CheckpointError(config.path, e.strerror or str(e)) from e
    print(said)
    return 0
