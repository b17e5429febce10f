"The data that a job names: a row of the registry, a folder of pictures, a table, a data set of the hub, or a function."
from dataclasses import fields
from pathlib import Path
from typing import Any

from miniai.data import DataLoaders, fashion_mnist, image_loaders
from miniai.data.hub import from_hub
from miniai.data.picture_files import PictureError
from miniai.data.table import TableError
from miniai.distributed.ranks import world
from miniai.jobs.config import ConfigError, JobConfig, column_names
from miniai.jobs.registry import DATA
from miniai.models.by_name import function_at
from miniai.show.displays import say

__all__ = ['build_data', 'columns_of']

_OF_TABLES = 'cat', 'cont', 'drop', 'classes'


def build_data(config: JobConfig) -> DataLoaders:
    """The loaders of `config.data`. Prints what they are. ConfigError for a word that names no data, or a batch size
    that the model cannot train on."""
    dls = _loaders(config)
    if config.model == 'resnet': _check_batches(getattr(dls.train, 'n', 0), config.batch_size)
    return dls


def _check_batches(n: int, bs: int) -> None:
    "The resnet ends in one value per image and channel, and batch norm needs two of them for its statistics."
    last, each = n % bs or bs, f' in each of {world()} processes' if world() > 1 else ''
    if n and last < 2*world(): raise ConfigError(
        f"batch_size {bs} leaves a last batch of {last} out of {n:,} images, and the batch norm in resnet needs at "
        f"least 2{each}: choose another batch size")


def _loaders(config: JobConfig) -> DataLoaders:
    word, path = config.data, Path(config.data).expanduser()
    if word in DATA or (path.is_dir() and any(path.glob('train-images-idx3-ubyte*'))):
        _refuse(config, 'a data set with parts of its own', 'valid', 'target', 'size', 'skip_bad', *_OF_TABLES)
        images = DATA[word].load() if word in DATA else fashion_mnist(folder=word)
        return image_loaders(images, config.batch_size, config.seed)
    if ':' in word and not path.exists() and not word.startswith('hub:'):
        _refuse(config, 'a function', 'valid', 'target', 'size', 'skip_bad', *_OF_TABLES)
        dls = _of_function(word)
    else:
        try: dls = _described(config, word, path)
        except (ConfigError, PictureError, TableError): raise
        except ValueError as e: raise ConfigError(str(e)) from e  # of an option's value
    say(str(dls))
    return dls


def _described(config: JobConfig, word: str, path: Path) -> DataLoaders:
    "The loaders of pictures, a table, or a data set of the hub."
    common = dict(bs=config.batch_size, seed=config.seed, skip_bad=config.skip_bad)
    if path.is_dir():
        _refuse(config, 'a folder of pictures', 'target', *_OF_TABLES)
        return DataLoaders.from_folder(path, config.valid, size=config.size or None, **common)
    if path.is_file():
        _refuse(config, 'a table', 'size')
        if not config.target: raise ConfigError(f"{word} is a table: say which column to predict with --target")
        return DataLoaders.from_table(path, config.target, valid=config.valid, **columns_of(config), **common)
    if word.startswith('hub:'):
        return from_hub(word.removeprefix('hub:'), config.valid, size=config.size, y=config.target,
                        **columns_of(config), **common)
    raise ConfigError(f"no data at {word!r}: give a folder of pictures, a table such as FILE.csv, "
                      f"hub:NAME, module:function, or {', '.join(DATA)}")


def columns_of(config: JobConfig) -> dict[str, Any]:
    "The options of `DataLoaders.from_table` about columns that were given."
    found = {nm: column_names(getattr(config, nm)) for nm in ('cat', 'cont', 'drop') if getattr(config, nm)}
    return found if config.classes == 'guess' else found | dict(classes=config.classes == 'yes')


def _refuse(config: JobConfig, kind: str, *options: str) -> None:
    defaults = {f.name: f.default for f in fields(config)}
    for nm in options:
        if getattr(config, nm) != defaults[nm]:
            raise ConfigError(f"{config.data} is {kind}, which --{nm.replace('_', '-')} is not for: leave it out")


def _of_function(word: str) -> DataLoaders:
    try: dls = function_at(word)()
    except ValueError as e: raise ConfigError(str(e)) from e
    if not (hasattr(dls, 'train') and hasattr(dls, 'valid')):
        raise ConfigError(f"{word} must return DataLoaders, and returned {dls!r:.60}")
    return dls
