"The data that a job names: a row of the registry, a folder of pictures, a table, a data set of the hub, or a function."
from collections.abc import Callable
from functools import partial
from pathlib import Path

from miniai.data import DataLoaders, fashion_mnist, image_loaders
from miniai.data.hub import from_hub
from miniai.jobs.config import ConfigError, JobConfig, column_names
from miniai.jobs.registry import DATA
from miniai.models.by_name import function_at

__all__ = ['build_data']


def build_data(config: JobConfig) -> DataLoaders:
    """The loaders of `config.data`. Prints what they are. ConfigError for a word that names no data, or a batch size
    that the model cannot train on."""
    dls = _loaders(config)
    n = getattr(dls.train, 'n', 0)
    # The resnet ends in one value per image and channel, and batch norm needs two of them for its statistics.
    if config.model == 'resnet' and (n - 1) % config.batch_size == 0:
        raise ConfigError(f"batch_size {config.batch_size} leaves a last batch of 1 out of {n:,} images, and the batch "
                          f"norm in resnet needs at least 2: choose another batch size")
    return dls


def _loaders(config: JobConfig) -> DataLoaders:
    word, path = config.data, Path(config.data).expanduser()
    if word in DATA: return image_loaders(DATA[word].load(), config.batch_size, config.seed)
    if path.is_dir() and any(path.glob('train-images-idx3-ubyte*')):
        return image_loaders(fashion_mnist(folder=word), config.batch_size, config.seed)
    dls = _described(config, word, path)()
    print(dls)
    return dls


def _described(config: JobConfig, word: str, path: Path) -> Callable[[], DataLoaders]:
    "What makes the loaders of pictures, a table, a data set of the hub, or a function."
    common = dict(bs=config.batch_size, seed=config.seed, skip_bad=config.skip_bad)
    if path.is_dir():
        _refuse(config, 'a folder of pictures', 'target', 'drop')
        return partial(DataLoaders.from_folder, path, config.valid, size=config.size or None, **common)
    if path.is_file():
        _refuse(config, 'a table', 'size')
        if not config.target: raise ConfigError(f"{word} is a table: say which column to predict with --target")
        return partial(DataLoaders.from_table, path, config.target, valid=config.valid, drop=column_names(config.drop),
                       **common)
    if word.startswith('hub:'):
        return partial(from_hub, word.removeprefix('hub:'), config.valid, size=config.size, y=config.target, **common)
    if ':' in word: return partial(_of_function, word)
    raise ConfigError(f"no data at {word!r}: give a folder of pictures, a table such as FILE.csv, "
                      f"hub:NAME, module:function, or {', '.join(DATA)}")


def _refuse(config: JobConfig, kind: str, *options: str) -> None:
    for nm in options:
        if getattr(config, nm): raise ConfigError(f"{config.data} is {kind}, which --{nm} is not for: leave it out")


def _of_function(word: str) -> DataLoaders:
    try: dls = function_at(word)()
    except ValueError as e: raise ConfigError(str(e)) from e
    if not (hasattr(dls, 'train') and hasattr(dls, 'valid')):
        raise ConfigError(f"{word} returned a {type(dls).__name__}: it must return DataLoaders")
    return dls
