"What a job can be told: options with their defaults, checked, read from TOML and written back. Knows no training."
import json
import math
import tomllib
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args, get_origin

__all__ = ['ConfigError', 'JobConfig', 'LRFindConfig', 'ProveConfig', 'TrainConfig', 'TrainingConfig']


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
    """Go on with the run in --out, or with the last one, with its own options but for --epochs where that is given."""
    profile: bool = False
    """Say where the time went: a table at the end, and profile.json and profile.png in the run folder."""

    def __new__(cls, **given: Any) -> Self:
        config = super().__new__(cls)
        config.given = frozenset(given)
        return config

    def of_run(self, saved: Self) -> Self:
        """The options of a run that goes on: those of its note, `saved`, with the number of epochs that was given, if
        any. ConfigError for another option that was given and is not the run's, though 'auto' leaves it to the run.
        `given` names what was: on the command line or in the file; in Python the keywords of the call that made this,
        were they the defaults, and so all of them where that was `dataclasses.replace`."""
        for nm in sorted(self.given - {'config', 'epochs', 'out', 'resume', 'profile'}):
            now, then = getattr(self, nm), getattr(saved, nm)
            if _means(now, then, saved.device): continue
            raise ConfigError(f"the run goes on with {nm} = {then!r}, and {now!r} was asked for: leave it out")
        epochs = self.epochs if 'epochs' in self.given else saved.epochs
        return replace(saved, epochs=epochs, resume=True, profile=self.profile)


def _means(given: Any, settled: Any, device: str) -> bool:
    "May an option that was given have been settled so? 'auto' as anything, and float16 on a CPU as bfloat16."
    half = (given, settled) == ('float16', 'bfloat16') and device.startswith('cpu')
    return half or given in ('auto', settled)


@dataclass(kw_only=True)
class ProveConfig(TrainingConfig):
    "Prove that a run can be resumed: kill it, go on, compare; exit with 1 if not."
    batches: int = 6
    """Training batches of a run. It is killed in the middle of its first epoch, and in its last if that is another."""

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
