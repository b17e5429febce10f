"The jobs that verify checkpoints, show what is in one, and gather a sharded one."
from dataclasses import dataclass
from pathlib import Path

from miniai.checkpoint import CheckpointError, describe, gather, inspect, verify
from miniai.checkpoint.describe import printable
from miniai.jobs.config import ConfigError

__all__ = ['VerifyConfig', 'ShowConfig', 'GatherConfig', 'verify_files', 'show_file', 'gather_model']


@dataclass
class VerifyConfig:
    "Check that files are complete, undamaged checkpoints; exit 1 if one is not."
    path: tuple[Path, ...]


@dataclass
class ShowConfig:
    "Show what is in a checkpoint: its origin, values and tensors."
    path: Path
    """The checkpoint."""


@dataclass
class GatherConfig:
    "Turn the checkpoint of a sharded model, a folder, into one file of the whole model, which miniai.load reads."
    folder: Path
    """The checkpoint."""
    out: Path
    """The file to write."""


def verify_files(config: VerifyConfig) -> bool:
    "Print one line for each file; return whether all are intact. ConfigError if none is named."
    if not config.path: raise ConfigError("name at least one checkpoint: miniai checkpoint verify PATH...")
    all_intact = True
    for path in config.path:
        try: line = f'{path}: intact, sha256 {verify(path)}'
        except (CheckpointError, OSError) as e:
            all_intact = False
            line = str(e) if isinstance(e, CheckpointError) else f'{path}: {e.strerror or e}'
        print(printable(line))
    return all_intact


def show_file(config: ShowConfig) -> None:
    "Print what is in the file. CheckpointError if it is not a checkpoint, OSError if it cannot be read."
    print(describe(inspect(config.path)))


def gather_model(config: GatherConfig) -> None:
    "Write the whole model. CheckpointError if there is no intact sharded checkpoint; OSError if it cannot be written."
    if config.out.exists(): raise FileExistsError(f"{config.out} exists already: choose another name")
    gather(config.folder, config.out)
    print(f'{config.out}: the whole model of {config.folder}')
