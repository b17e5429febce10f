"A pair of loaders, from arrays, datasets or a Hugging Face DatasetDict, and how batches become tuples."
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial, wraps
from os import PathLike
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, default_collate

from miniai.data.cached import cached_pair
from miniai.data.folder import folder_loaders
from miniai.data.memory import MemoryLoader, batches_in_words, some_rows
from miniai.data.pictures import recipe_of
from miniai.data.recipe import Recipe
from miniai.data.split import memory_loaders
from miniai.data.stream import StreamLoader
from miniai.data.table import table_loaders

__all__ = ['inplace', 'collate_dict', 'Dataset', 'get_dls', 'DataLoaders', 'length_of', 'last_batch_size',
           'split_names']


def inplace(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    "Decorator: call `f(b)`, which changes `b`, and return `b`."
    @wraps(f)
    def returning(b: Any) -> Any:
        f(b)
        return b
    return returning


class Dataset:
    "Pairs of an input and a target, from two sequences of equal length; an index may be an int, slice or tensor."
    def __init__(self, x: Sequence, y: Sequence) -> None:
        if len(x) != len(y):
            raise ValueError(f"inputs and targets must have the same length, got {len(x)} and {len(y)}")
        self.x, self.y = x, y

    def __len__(self) -> int: return len(self.x)
    def __getitem__(self, i: Any) -> tuple: return self.x[i], self.y[i]


def collate_dict(ds: Any) -> Callable[[list[dict]], tuple]:
    """A collate function: a list of dicts to a tuple in the order of `ds.features`, or of the keys of the first dict if
    a stream does not know its features. TypeError if another `ds` has no features."""
    names = getattr(ds, 'features', None)
    if names is None and not isinstance(ds, IterableDataset):
        raise TypeError(f"a {type(ds).__name__} has no features to give batches an order: pass collate_fn, or "
                        f"as_tuple=False for batches that are dicts")
    return partial(_collate, names and tuple(names))


def _collate(names: tuple[str, ...] | None, b: list[dict]) -> tuple:  # not nested: spawned workers must pickle it
    if not isinstance(b[0], Mapping): raise TypeError(
        f"samples must be dicts to become tuples by name, got type {type(b[0]).__name__}: pass collate_fn, or "
        f"as_tuple=False")
    batch = default_collate(b)
    return tuple(batch[n] for n in names or b[0])


def get_dls(train_ds: Any, valid_ds: Any, bs: int, **kwargs: Any) -> tuple[DataLoader, DataLoader]:
    """A shuffled DataLoader of batches of `bs`, and one in order with batches twice as large; `kwargs` go to both. An
    IterableDataset cannot be shuffled by its loader: for training it gets a StreamLoader."""
    train = StreamLoader(train_ds, bs, **kwargs) if isinstance(train_ds, IterableDataset) else DataLoader(
        train_ds, bs, shuffle=True, **kwargs)
    return train, DataLoader(valid_ds, bs*2, **kwargs)


class DataLoaders:
    """Any two iterables of batches, `train` and `valid`; either may be replaced, and one may be empty. Warns if a
    MemoryLoader is normalized and the other loader is not, or not known to be, by the same mean and std. `classes` are
    the names of the classes, which may be set."""
    classes: Sequence[str] | None = None
    _recipe = None

    def __init__(self, train: Iterable, valid: Iterable) -> None: self.train, self.valid = train, valid

    def __setattr__(self, name: str, value: Any) -> None:
        if name == 'classes' and self._recipe and value != self._recipe.classes:
            self._recipe = self._recipe.renamed(value)
        other = dict(train='valid', valid='train').get(name)
        if other and hasattr(self, other): _check_normalized_alike(name, value, other, getattr(self, other))
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return f'{type(self).__name__}(train: {_described(self.train)},\n' \
               f'{" "*len(type(self).__name__)} valid: {_described(self.valid)})'

    @classmethod
    def from_dd(cls, dd: Mapping[str, Any], batch_size: int, as_tuple: bool = True, **kwargs: Any) -> 'DataLoaders':
        """From a Hugging Face DatasetDict or IterableDatasetDict: the split 'train' or 'training', and for validation
        'valid', 'validation', 'val', 'dev', 'eval', else 'test'; the first others for those it lacks. Batches are
        tuples in the order of the features, or dicts with `as_tuple=False`. Streams are not shuffled here: use
        `dd['train'].shuffle(buffer_size=…)`, and each epoch has another order. `kwargs` go to both DataLoaders.
        ValueError without two such splits; TypeError for tuples from a split without features, unless `kwargs` have a
        collate_fn."""
        train, valid = (dd[nm] for nm in split_names([*dd]))
        if as_tuple and 'collate_fn' not in kwargs: kwargs['collate_fn'] = collate_dict(train)
        return cls(*get_dls(train, valid, bs=batch_size, **kwargs))

    @classmethod
    def from_arrays(cls, x: Any, y: Any, valid: float | Sequence = 0.2, bs: int = 64, seed: int = 0,
                    normalize: bool | Sequence = False, device: str | torch.device | None = None,
                    drop_last: bool = False, source: str = '', channels_last: bool | None = None) -> 'DataLoaders':
        """MemoryLoaders over inputs `x` (first dimension: samples) and targets `y`, or tuples of several, which stay in
        memory uncopied. `valid` is a pair (x_valid, y_valid), indices, or the fraction of samples to draw with `seed`.
        Training is shuffled by (seed, epoch), and `drop_last` drops its smaller last batch; validation is in order,
        with batches twice as large. Batches go to `device`; `MemoryLoader` says what dtypes become. uint8 inputs become
        float32 from 0 to 1, (N, H, W) gets a channel, and (N, H, W, C) with C of 1, 3 or 4 becomes (N, C, H, W); for
        floats of such a shape `channels_last` must say so. `normalize` subtracts a mean and divides by a standard
        deviation: a pair, or with True those of the training inputs, for each channel (dimension 1).
        `dls.train.like(x, y)` makes a loader of a test set. ValueError or TypeError for what does not fit."""
        return cls(*memory_loaders(x, y, valid, bs, seed, normalize, channels_last, device=device, drop_last=drop_last,
                                   source=source))

    @classmethod
    def from_folder(cls, path: str | PathLike, valid: Any = 0.2, size: int | Sequence[int] | None = None,
                    channels: int | None = None, fit: str = 'crop', bs: int = 64, seed: int = 0,
                    normalize: bool | Sequence = True, device: str | torch.device | None = None,
                    memory: float | None = None, workers: int | None = None,
                    skip_bad: bool = False) -> 'DataLoaders':
        """Loaders of the pictures in a folder that has a folder for each class, or such folders inside train and valid
        (or val, validation, test). Without those, `valid` is a share to draw with `seed`, another folder, or chooses
        pictures: indices in the order of their paths, a mask, or a function of a path. Any picture that Pillow reads is
        turned upright, resized and cropped to `size`, or squashed with fit='squash'; `channels` is 1 for gray or 3; by
        default both suit the pictures. `workers` threads decode them in the first epoch; then they stay in memory as
        uint8, unless that is more than `memory` bytes (default: half of what is available). `normalize` is a pair, mean
        and standard deviation, or with True that of up to 500 training pictures. PictureError for pictures without a
        class, a single class, and a picture that cannot be read, unless `skip_bad` skips it."""
        *loaders, recipe = folder_loaders(path, valid, size, channels, fit, bs, seed, normalize, device, memory,
                                          workers, skip_bad)
        return cls.of_recipe(*loaders, recipe)

    @classmethod
    def from_table(cls, table: Any, y: str, cat: Sequence[str] | None = None, cont: Sequence[str] | None = None,
                   valid: Any = 0.2, bs: int = 64, seed: int = 0, classes: bool | None = None, drop: Sequence[str] = (),
                   device: str | torch.device | None = None, skip_bad: bool = False) -> 'DataLoaders':
        """Loaders of the rows of a table, a DataFrame or a file (CSV, TSV, Parquet, JSON), to predict the column `y`:
        its classes if it has text, bools or few whole numbers, or if `classes` says so, else its numbers. `cat` are
        categories, `cont` numbers; by default text and numbers, except for the columns in `drop`. Missing values,
        categories and scaling are fitted on the training rows. `valid` is a fraction, a column that says which rows,
        indices, or another table. TableError for columns or values that cannot be used; `skip_bad` skips rows without
        `y`."""
        *loaders, recipe = table_loaders(table, y, cat, cont, valid, bs, seed, classes, device, skip_bad, drop)
        return cls.of_recipe(*loaders, recipe)

    @classmethod
    def of_recipe(cls, train: Iterable, valid: Iterable, recipe: Recipe) -> 'DataLoaders':
        "Two loaders that a recipe made."
        dls = cls(train, valid)
        dls._recipe, dls.classes = recipe, recipe.classes
        return dls

    @property
    def recipe(self) -> Recipe | None:
        "How inputs are made from what a user has; None for loaders of which that is not known."
        if self._recipe is not None: return self._recipe
        known = [dl for dl in (self.train, self.valid) if isinstance(dl, MemoryLoader) and dl.pack is tuple]
        return recipe_of(known[0], self.classes) if known else None

    def test(self, x: Any, y: Any = None, bs: int | None = None) -> MemoryLoader:
        """A loader of other data in order, prepared as the training data were: arrays with their targets, a folder of
        pictures, a table. ValueError if it is not known how."""
        if self.recipe is None: raise ValueError(
            "it is not known how these loaders prepare their inputs: make the loader yourself")
        return self.recipe.test(x, y, bs or getattr(self.valid, 'bs', 256), getattr(self.valid, 'device', None))

    def show(self, n: int = 9, **kwargs: Any) -> Any:
        """Look at `n` training samples, drawn at random, with their labels: draws pictures (`kwargs` go to
        `show_images`), and returns rows of a table as a DataFrame. ValueError for data of other kinds."""
        if self.recipe is None or not isinstance(self.train, MemoryLoader) or not hasattr(self.recipe, 'show'):
            raise ValueError("show is for pictures and tables: look at next(iter(dls.train)) instead")
        *kept, targets = some_rows(self.train, n)
        return self.recipe.show(kept, targets, **kwargs)

    def cached(self, memory: float | None = None, check: str = 'some', seed: int = 0) -> 'DataLoaders':
        """The same batches from memory, for DataLoaders over datasets that give the same samples each time. Each sample
        is decoded once, by the loader's own collate function and workers. Batch sizes, the structure of batches and
        `drop_last` stay; a shuffled loader gets an order by (seed, epoch). `check` loads 'some' samples (64) or
        'all' a second time: ValueError if they differ, as with random augmentation, or have unequal shapes.

        A loader stays as it is, with a warning, if it would take more than `memory` bytes (for both; by default half of
        what is available), has no length, has a sampler other than torch's random and sequential ones, or is not a
        DataLoader."""
        new = copy(self)
        new.train, new.valid = cached_pair(self.train, self.valid, memory, check, seed)
        return new


def split_names(names: list[str]) -> tuple[str, str]:
    "The names of the splits to train on and to validate on."
    if len(names) < 2: raise ValueError(
        f"the DatasetDict needs two splits, for train and valid, and has {names}: split it with train_test_split")
    usual = [nm for nm in ('valid', 'validation', 'val', 'dev', 'eval', 'test') if nm in names]
    others = [nm for nm in names if nm not in usual]
    train = next((nm for nm in ('train', 'training') if nm in names), None) or next(iter(others), None)
    if train is None: raise ValueError(f"the DatasetDict has no split to train on, only {names}: name one 'train'")
    return train, next(iter(usual), None) or next(nm for nm in others if nm != train)


def _check_normalized_alike(name: str, dl: Any, other_name: str, other: Any) -> None:
    "Warn if `dl` is not normalized as `other`, a MemoryLoader, is."
    if not isinstance(other, MemoryLoader) or dl is None or length_of(dl) == 0: return
    there, here = other.normalized_by, dl.normalized_by if isinstance(dl, MemoryLoader) else None
    if here == there or (here is None and not there): return
    by = 'in a way that is not known' if here is None else f"by {here or 'nothing'}"
    warnings.warn(f"the inputs of {name}, a {type(dl).__name__}, are normalized {by}, and those of {other_name} by "
                  f"{there or 'nothing'}: dls.{other_name}.like(x, y) makes a loader that is normalized alike",
                  stacklevel=3)


def _described(dl: Any) -> str:
    "A loader in a few words: kind, samples, batches and batch size, as far as it has them."
    if isinstance(dl, MemoryLoader): return repr(dl)
    samples, batches, bs = length_of(getattr(dl, 'dataset', None)), length_of(dl), getattr(dl, 'batch_size', None)
    parts, split = [type(dl).__name__], getattr(getattr(dl, 'dataset', None), 'split', None)
    if split: parts.append(f'split {split}')
    if samples is not None: parts.append(f'{samples:,} samples')
    if batches is not None: parts.append(batches_in_words(batches, bs))
    return ', '.join(parts)


def length_of(x: Any) -> int | None:
    "The number of items in `x`, such as batches; None if it has no length."
    try: return len(x)
    except (TypeError, NotImplementedError): return None


def last_batch_size(dl: Any) -> int | None:
    "The number of samples in the last batch of a DataLoader or MemoryLoader; None if that is not known."
    if isinstance(dl, MemoryLoader): n, bs, drop_last = dl.n, dl.bs, dl.drop_last
    elif isinstance(dl, DataLoader) and type(dl.batch_sampler) is BatchSampler:
        n, bs, drop_last = length_of(dl.batch_sampler.sampler), dl.batch_sampler.batch_size, dl.batch_sampler.drop_last
    else: return None
    return bs if drop_last or not n else (n - 1) % bs + 1
