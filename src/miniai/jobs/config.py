"The options of every job: defaults, checks, and reading from and writing to TOML."
import ast
import json
import math
import os
import shlex
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args, get_origin

from miniai.jobs.registry import DATA, MODELS, OPTIMIZERS, SCHEDULES
from miniai.trackers import TRACKERS

__all__ = ['JOBS', 'ConfigError', 'FolderConfig', 'JobConfig', 'LRFindConfig', 'ProveConfig', 'TrainConfig',
           'TrainingConfig', 'check_text', 'column_names', 'parse_options', 'suggestion']


NOT_RECORDED = 'config', 'out', 'resume', 'distributed', 'json'  # they say how to run, not what


class ConfigError(ValueError):
    "An invalid option: an unknown name, a wrong type, or a value out of range."


def _option(default: Any, about: str, rows: Mapping[str, Any] = {}) -> Any:
    "A field with a help text, longer than a line, or one that lists the rows of a registry table."
    lines = [f'{name}: {row.about}.' if hasattr(row, 'about') else f'{name},' for name, row in rows.items()]
    return field(default=default, metadata=dict(help=' '.join([about, *lines]).rstrip(',')))


@dataclass(kw_only=True)
class JobConfig:
    "The options of every job."
    config: Path | None = None
    """A TOML file with options, such as a run's config.toml. Options on the command line override it."""
    data: str = _option('auto', 'A folder of pictures, one folder for each class, a table such as FILE.csv, '
                                'hub:NAME, module:function that returns DataLoaders, or one of these.', DATA)
    target: str = ''
    """The column of a table to predict."""
    valid: float | str = _option(0.2, 'What is held out for validation: a share of the data, if they have no part for '
                                      'it; the name of a column that says which rows; another table or folder; or a '
                                      'split of the hub.')
    cat: str = ''
    """Columns of a table that are categories, such as town,kind. Default: those of text."""
    cont: str = ''
    """Columns of a table that are numbers, such as age,price. Default: those of numbers."""
    drop: str = ''
    """Columns of a table to leave out, such as id,name."""
    classes: Literal['guess', 'yes', 'no'] = 'guess'
    """Whether the values to predict in a table are classes. guess: text, bools and few whole numbers are."""
    size: int = 0
    """Height and width of pictures in pixels. 0: a size that suits them."""
    skip_bad: bool = False
    """Skip pictures that cannot be read, and rows without a target, instead of stopping."""
    model: str = _option('auto', 'The network: timm:NAME, module:function, or one of these. auto: simple for pictures, '
                                 'table for tables.', MODELS)
    net: str = ''
    """Options of the network, given one by one, such as --net.widths [8,16]."""
    optimizer: str = _option('adamw', 'The update rule: module:Name, or one of these.', OPTIMIZERS)
    opt: str = ''
    """Options of the optimizer, given one by one, such as --opt.beta2 0.95."""
    schedule: str = _option('onecycle', 'The learning rate over the run: module:function of an optimizer and a number '
                                        'of steps, or one of these.', SCHEDULES)
    batch_size: int = 128
    """Samples per training batch. Validation batches are twice as large."""
    seed: int = 42
    """Seed for the weights, the order of the samples, and everything else that is random."""
    device: str = 'auto'
    """cpu, cuda or mps. auto: the fastest one available."""
    precision: Literal['float32', 'bfloat16', 'float16'] = 'float32'
    """Precision of the forward pass; weights stay in float32. float16 becomes bfloat16 on a CPU."""
    layout: Literal['auto', 'channels-first', 'channels-last'] = 'auto'
    """Memory layout of the images. auto: the faster one on this device."""
    compile: bool = False
    """Compile the model with torch.compile. Takes seconds to minutes at the start."""

    def __post_init__(self) -> None:
        for f in fields(self): _check(f.name, f.type, getattr(self, f.name))
        for name, rows in _NAMED.items(): _check_named(name, getattr(self, name), rows)
        for name in ('opt', 'net'): parse_options(name, getattr(self, name))
        if not isinstance(self.valid, str) and not 0 < self.valid < 1:
            raise ConfigError(f"valid must be between 0 and 1, got {self.valid}")
        if self.size < 0: raise ConfigError(f"size must be 0 or more, got {self.size}")
        if self.batch_size < 1: raise ConfigError(f"batch_size must be 1 or more, got {self.batch_size}")
        if not 0 <= self.seed < 2**64: raise ConfigError(f"seed must be from 0 to 2**64 - 1, got {self.seed}")

    @classmethod
    def from_toml(cls, path: Path) -> Self:
        """The options in a TOML file, the others at their defaults. Options of other jobs are ignored, so that jobs can
        share a file. ConfigError, naming the file, for an unknown or invalid option."""
        try: found = tomllib.loads(Path(path).read_text('utf-8'))
        except OSError as e: raise ConfigError(f"cannot read the config file {path}: {e.strerror}") from e
        except ValueError as e: raise ConfigError(f"{path} is not valid TOML: {e}") from e
        own = [f.name for f in fields(cls) if f.name != 'config']
        others = {f.name for job in JOBS.values() for f in fields(job)} - {'config', *own}
        for name in found:
            if name in own or name in others: continue
            raise ConfigError(f"{path}: unknown option {name!r}; "
                              f"{suggestion(name.replace('-', '_'), own) or 'known options: ' + ', '.join(own)}")
        try: return cls(**{name: value for name, value in found.items() if name in own}, config=Path(path))
        except ConfigError as e: raise ConfigError(f"{path}: {e}") from e

    def to_toml(self) -> str:
        """The options that define the run, as TOML for `from_toml`: those of NOT_RECORDED are left out, so that
        `--config` with this file starts the same run in a new folder, in any number of processes."""
        return ''.join(f'{name} = {_toml(value)}\n' for name, value in self._recorded().items()
                       if name not in NOT_RECORDED)

    def _recorded(self) -> dict[str, Any]:
        "All options, with paths of data that hold in every folder, since a run is used from others."
        found = asdict(self)
        data, valid = os.path.expanduser(self.data), os.path.expanduser(str(self.valid))
        if self.data in DATA or not os.path.exists(data): return found
        found['data'] = os.path.abspath(data)
        if os.path.isdir(valid) if os.path.isdir(data) else os.path.isfile(valid):  # not a column or a share
            found['valid'] = os.path.abspath(valid)
        return found


@dataclass(kw_only=True)
class FolderConfig:
    "The options of a job that writes a run folder."
    out: str = 'runs/{time}-{job}'
    """The run folder. It must be new or empty."""
    distributed: Literal['auto', 'ddp', 'fsdp'] = _option(
        'auto', 'How the processes that torchrun started train together: ddp, each with the whole model, or fsdp, each '
                'with a part of its weights. auto: ddp, or one process without torchrun.')


@dataclass(kw_only=True)
class TrainingConfig(JobConfig):
    "The options of a job that trains for epochs."
    lr: float | Literal['auto'] = 'auto'
    """The highest learning rate of the schedule. auto: one tuned for the optimizer and schedule, on pictures."""
    epochs: int | Literal['auto'] = 'auto'
    """Number of passes over the training data. auto: 5, or more for a small table."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs != 'auto' and self.epochs < 1: raise ConfigError(f"epochs must be 1 or more, got {self.epochs}")
        if self.lr != 'auto' and not 0 < self.lr < math.inf:
            raise ConfigError(f"lr must be finite and above 0, got {self.lr}")


@dataclass(kw_only=True)
class TrainConfig(FolderConfig, TrainingConfig):
    "Train a model on pictures or a table, and save the results in a run folder."
    stats: bool = True
    """Record activation statistics for activations.png, which makes training about 6 % slower."""
    health: bool = _option(True, 'Say what is wrong with the run, such as a dead layer or a learning rate that is too '
                                 'high: prints verdicts, saves health.json.')
    profile: bool = False
    """Measure where the time goes: prints a table, saves profile.json and profile.png."""
    track: str = _option('', 'Trackers for the run, such as tensorboard,csv. Choose from tensorboard, trackio, wandb, '
                             "mlflow and csv. Their stores are in the run folder, unless a tracker's own settings "
                             'name another place. May be repeated.')
    json: bool = _option(False, 'Print one JSON object per line to stdout: the start, each epoch and phase, verdicts, '
                                'and the end with the result. Everything else goes to stderr.')
    resume: bool = _option(False, 'Resume the run in --out, or the latest run, with its own options. Only --epochs '
                                  'may change, and only with the constant schedule: the others depend on the number '
                                  'of epochs.')

    def __new__(cls, **given: Any) -> Self:
        config = super().__new__(cls)
        config.given = frozenset(given)  # the options that the user chose, even if they equal the defaults
        return config

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in column_names(self.track):
            if name in TRACKERS: continue
            near = suggestion(name, TRACKERS)
            raise ConfigError(f"track must be {', '.join(TRACKERS)}, or several of them, got {name!r}"
                              f"{near and '; '}{near}")

    def for_resume(self, run: Self) -> Self:
        """The options to resume a run that started with `run`: its own, except for `epochs` if given here. ConfigError
        if another option is given here and differs from the run's; 'auto' never differs."""
        given, recorded = self._recorded(), run._recorded()
        for name in sorted(self.given - {'epochs', *NOT_RECORDED}):
            here, there = given[name], recorded[name]
            became_bfloat16 = (here, there) == ('float16', 'bfloat16') and run.device.startswith('cpu')
            if here in ('auto', there) or became_bfloat16: continue
            raise ConfigError(f"cannot resume with {name} = {here!r}: the run has {there!r}. Leave this option out")
        epochs = run.epochs if self.epochs == 'auto' else self.epochs
        if epochs != run.epochs and run.schedule in SCHEDULES.keys() - {'constant'}:
            raise ConfigError(f"cannot resume with epochs = {epochs}: the run's {run.schedule} schedule was made for "
                              f"{run.epochs} epoch{'s'*(run.epochs != 1)}. Leave this option out; only a run with the "
                              f"constant schedule can take more")
        return replace(run, epochs=epochs, resume=True, distributed=self.distributed, json=self.json)


@dataclass(kw_only=True)
class ProveConfig(TrainingConfig):
    "Check that runs resume exactly: train, kill, resume, compare; exit 1 if not."
    batches: int = 6
    """Training batches of the run. It is killed halfway through its first epoch, and in its last if it has several."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batches < 2: raise ConfigError(f"batches must be 2 or more, got {self.batches}")


@dataclass(kw_only=True)
class LRFindConfig(FolderConfig, JobConfig):
    "Suggest a learning rate: raise it until the loss explodes, and plot the loss."


JOBS = {'train': TrainConfig, 'lr-find': LRFindConfig, 'prove-resume': ProveConfig}


def suggestion(name: str, known: Iterable[str], form: str = '{!r}') -> str:
    "'did you mean ...?' with the name in `known` that is most like `name`; '' if none is."
    near = get_close_matches(name, list(known), n=1)
    return f'did you mean {form.format(near[0])}?' if near else ''


def _toml(value: str | float | bool) -> str:
    "JSON is valid TOML, except for characters beyond 16 bits as escapes and for DEL."
    return json.dumps(value, ensure_ascii=False).replace('\x7f', r'\u007f')


_NAMED = dict(model=MODELS, optimizer=OPTIMIZERS, schedule=SCHEDULES)


def _check_named(option: str, value: str, rows: Mapping[str, Any]) -> None:
    known = ['auto', *rows] if option == 'model' else [*rows]
    if value in known or ':' in value: return
    near = suggestion(value, known)
    raise ConfigError(f"{option} must be {', '.join(known)} or module:name, got {value!r}{near and '; '}{near}")


def column_names(text: str) -> list[str]:
    "The names in 'id,name'."
    return [nm.strip() for nm in text.split(',') if nm.strip()]


def parse_options(name: str, text: str) -> dict[str, Any]:
    """The options in 'beta2=0.95 wd=0.1'. Values are Python's numbers, lists and so on, true or false, or text.
    ConfigError for others."""
    found = {}
    for word in shlex.split(text):
        option, equals, value = word.partition('=')
        if not (equals and option.isidentifier()):
            raise ConfigError(f"{name} must have options such as beta2=0.95, separated by spaces, got {word!r}")
        try: found[option] = ast.literal_eval(dict(true='True', false='False', none='None').get(value, value))
        except (ValueError, SyntaxError): found[option] = value
    return found


TYPE_NAMES = {int: 'a whole number', float: 'a number', str: 'text', bool: 'true or false', Path: 'a path'}


def _check(name: str, annotation: Any, value: Any) -> None:
    types, words = _accepted(annotation)
    right = bool in types if isinstance(value, bool) else isinstance(value, types)
    if value in words or right or (float in types and type(value) is int): return
    *first, last = [*words, *(TYPE_NAMES[t] for t in types if t is not NoneType)]
    near = suggestion(value, words) if isinstance(value, str) else ''
    raise ConfigError(f"{name} must be {', '.join(first)}{' or ' if first else ''}{last}, got {value!r}"
                      f"{'; ' if near else ''}{near}")


def check_text(cls: type[JobConfig], name: str, text: str) -> None:
    "ConfigError if `text`, from the command line, is not a valid value of the option `name`."
    types, _ = _accepted(next(f.type for f in fields(cls) if f.name == name))
    value: Any = text
    for kind in {int, float, Path}.intersection(types):
        with suppress(ValueError): value = kind(text)
    cls(**{name: value})


def _accepted(annotation: Any) -> tuple[tuple[type, ...], tuple[str, ...]]:
    "The types and the words that an annotation accepts."
    if get_origin(annotation) is Literal: return (), get_args(annotation)
    parts = [_accepted(a) for a in get_args(annotation)]
    if not parts: return (annotation,), ()
    return sum((types for types, _ in parts), ()), sum((words for _, words in parts), ())
