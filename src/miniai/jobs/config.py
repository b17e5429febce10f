"What a job can be told: options with their defaults, checked, read from TOML and written back. Knows no training."
import json
import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args, get_origin

__all__ = ['ConfigError', 'JobConfig', 'LRFindConfig', 'ProveConfig', 'TrainConfig',
           'TrainingConfig']


class ConfigError(ValueError):
    "A configuration that cannot be meant: an unknown key, a wrong type, a value out of range."


@dataclass(kw_only=True)
class JobConfig:
    "What every job can be told."
    config: Path | None = None
    """A TOML file with any of these options, underscores for dashes. What the command line says wins over it."""
    data: str = 'auto'
    """A folder with Fashion-MNIST's files, 'hub' or 'sample'. auto: MINIAI_DATA, Debian's package, else the sample."""
    model: Literal['simple', 'resnet'] = 'simple'
    """simple: five convolutions, 30 thousand parameters. resnet: five residual blocks, 300 thousand."""
    optimizer: Literal['sgd', 'momentum', 'rmsprop', 'adam', 'adamw'] = 'adamw'
    """The update rule."""
    batch_size: int = 1024
    """Images in a training batch. Validation takes twice as many."""
    seed: int = 42
    """Seeds the weights, the order of the images, and everything random."""
    device: str = 'auto'
    """Where to train: cpu, cuda, mps. auto: the best there is."""
    precision: Literal['float32', 'bfloat16', 'float16'] = 'float32'
    """What the forward pass computes in; weights stay in float32. On a CPU float16 becomes bfloat16."""
    layout: Literal['auto', 'channels-first', 'channels-last'] = 'auto'
    """How images lie in memory. auto: channels-last where convolutions are quicker so."""
    compile: bool = False
    """Compile the model, which takes seconds to minutes; where that fails, a warning says why."""

    def __post_init__(self) -> None:
        for f in fields(self): _check_type(f.name, f.type, getattr(self, f.name))
        if self.batch_size < 1: raise ConfigError(f"batch_size must be 1 or more, got {self.batch_size}")
        if not 0 <= self.seed < 2**64: raise ConfigError(f"seed must be 0 or more, and below 2**64, got {self.seed}")

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """The options that a TOML file sets, the rest at their defaults. ConfigError, naming the file, for a key or
        value that cannot be meant."""
        try: given = tomllib.loads(Path(path).read_text('utf-8'))
        except OSError as e: raise ConfigError(f"cannot read the config file {path}: {e.strerror}") from e
        except ValueError as e: raise ConfigError(f"{path} is not valid TOML: {e}") from e
        names = [f.name for f in fields(cls) if f.name != 'config']
        for key in given: _check_key(key, names, path)
        try: return cls(**given, config=Path(path))
        except ConfigError as e: raise ConfigError(f"{path}: {e}") from e

    def to_toml(self) -> str:
        "All options but `config`, as TOML that `from_toml` reads back."
        return ''.join(f'{k} = {_toml(v)}\n' for k, v in asdict(self).items() if k != 'config')


@dataclass(kw_only=True)
class FolderConfig:
    "What a job that leaves something can be told."
    out: str = 'runs/{time}-{job}'
    """The run folder, new or empty."""


@dataclass(kw_only=True)
class TrainingConfig(JobConfig):
    "What a job that trains for epochs can be told."
    schedule: Literal['onecycle', 'cosine', 'constant'] = 'onecycle'
    """How the learning rate moves, batch by batch."""
    lr: float | Literal['auto'] = 'auto'
    """The learning rate, the highest one of a schedule. auto: one that suits optimizer and schedule."""
    epochs: int = 5
    """How often to go through the training images."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs < 1: raise ConfigError(f"epochs must be 1 or more, got {self.epochs}")
        if self.lr != 'auto' and not 0 < self.lr < math.inf: raise ConfigError(f"lr must be above 0, got {self.lr}")


@dataclass(kw_only=True)
class TrainConfig(FolderConfig, TrainingConfig):
    "Train a classifier of Fashion-MNIST; leave its weights, figures and pictures."
    resume: bool = False
    """Go on with the run in --out, or with the last one, from its newest checkpoint and with its own options."""
    profile: bool = False
    """Say where the time went: a table at the end, and profile.json and profile.png in the run folder."""

    def of_run(self, saved: Self) -> Self:
        """The options of a run that goes on: `saved`, with the number of epochs asked for. ConfigError for an option
        that was given and is another than the run's."""
        for f in fields(self):
            now, then = getattr(self, f.name), getattr(saved, f.name)
            if f.name in ('config', 'epochs', 'out', 'resume', 'profile') or now in (f.default, then): continue
            raise ConfigError(f"the run goes on with {f.name} = {then!r}, and {now!r} was asked for: leave it out")
        epochs = saved.epochs if self.epochs == type(self).epochs else self.epochs
        return replace(saved, epochs=epochs, resume=True, profile=self.profile)


@dataclass(kw_only=True)
class ProveConfig(TrainingConfig):
    """Prove that a run can be resumed: kill one halfway, go on with it, compare its weights and its optimizer's state
    with those of one left alone, to the bit. Exits with 1 if they differ."""
    batches: int = 6
    """Training batches of each run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches < 2: raise ConfigError(f"batches must be 2 or more, got {self.batches}")


@dataclass(kw_only=True)
class LRFindConfig(FolderConfig, JobConfig):
    "Raise the learning rate until the loss explodes; draw that, and suggest a rate."


def _toml(value: str | float | bool) -> str:
    "JSON's notation, which is TOML's too but for characters outside the 16-bit range and the one named DEL."
    return json.dumps(value, ensure_ascii=False).replace('\x7f', r'\u007f')


def _check_key(key: str, names: list[str], path: Path) -> None:
    if key in names: return
    near = get_close_matches(key.replace('-', '_'), names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(names)}"
    raise ConfigError(f"{path}: unknown key {key!r}; {hint}")


def _check_type(name: str, wanted: Any, value: Any) -> None:
    types, words = _types_and_words(wanted)
    if value in words or (isinstance(value, types) and (bool in types or not isinstance(value, bool))): return
    expected = [*words, *(t.__name__ for t in types if t is not NoneType)]
    raise ConfigError(f"{name} must be {' or '.join(expected)}, got {value!r}")


def _types_and_words(wanted: Any) -> tuple[tuple[type, ...], tuple[str, ...]]:
    "The types and the literal words that an annotation accepts; a float may be written as an int."
    if get_origin(wanted) is Literal: return (), get_args(wanted)
    if get_args(wanted):
        parts = [_types_and_words(a) for a in get_args(wanted)]
        return sum((t for t, _ in parts), ()), sum((w for _, w in parts), ())
    return ((float, int) if wanted is float else (wanted,)), ()
