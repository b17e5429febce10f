"Loaders: a pair of them, from arrays, datasets or a Hugging Face DatasetDict, and how their items become tuples."
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from functools import partial, wraps
from typing import Any

import torch
from torch.utils.data import DataLoader, default_collate

from miniai.data.cached import cached_pair
from miniai.data.split import memory_loaders

__all__ = ['inplace', 'collate_dict', 'Dataset', 'get_dls', 'DataLoaders', 'length_of']


def inplace(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    "Decorator: a function that changes its argument and returns nothing now returns that argument."
    @wraps(f)
    def returning(b: Any) -> Any:
        f(b)
        return b
    return returning


class Dataset:
    """Inputs and targets of equal length as one sequence of pairs;
    an index, slice or tensor of indices gives the pair of items."""
    def __init__(self, x: Sequence, y: Sequence) -> None:
        if len(x) != len(y):
            raise ValueError(f"inputs and targets must have the same length, got {len(x)} and {len(y)}")
        self.x, self.y = x, y

    def __len__(self) -> int: return len(self.x)
    def __getitem__(self, i: Any) -> tuple: return self.x[i], self.y[i]


def collate_dict(ds: Any) -> Callable[[list[dict]], tuple]:
    """A collate function that turns a list of dicts into a tuple of batches, in the order of `ds.features`. TypeError
    for a dataset that names no features."""
    names = getattr(ds, 'features', None)
    if names is None: raise TypeError(f"a {type(ds).__name__} names no features, whose order batches could have: pass "
                                      f"collate_fn, or as_tuple=False for batches that are dicts")
    return partial(_collated, tuple(names))


def _collated(names: tuple[str, ...], b: list[dict]) -> tuple:
    batch = default_collate(b)
    return tuple(batch[n] for n in names)


def get_dls(train_ds: Any, valid_ds: Any, bs: int, **kwargs: Any) -> tuple[DataLoader, DataLoader]:
    "A shuffled DataLoader of batches of `bs`, and one in order with batches twice as large; `kwargs` go to both."
    return DataLoader(train_ds, batch_size=bs, shuffle=True, **kwargs), DataLoader(valid_ds, batch_size=bs*2, **kwargs)


class DataLoaders:
    "Any two iterables of batches, `train` and `valid`; either may be replaced, and one may be empty."
    def __init__(self, train: Iterable, valid: Iterable) -> None: self.train, self.valid = train, valid

    @classmethod
    def from_dd(cls, dd: Mapping[str, Any], batch_size: int, as_tuple: bool = True, **kwargs: Any) -> 'DataLoaders':
        """From a Hugging Face DatasetDict: its first two splits are train and valid. Batches are tuples in
        the order of the features, or, without `as_tuple`, dicts. `kwargs` go to the DataLoaders.
        ValueError for fewer than two splits, TypeError for tuples in the order of features that a split does not name,
        unless `kwargs` have a collate_fn."""
        if len(dd) < 2:
            raise ValueError(f"a DatasetDict of two splits is needed, for train and valid; this one has {list(dd)}: "
                             f"split it with train_test_split")
        train, valid = list(dd.values())[:2]
        if as_tuple and 'collate_fn' not in kwargs: kwargs['collate_fn'] = collate_dict(train)
        return cls(*get_dls(train, valid, bs=batch_size, **kwargs))

    @classmethod
    def from_arrays(cls, x: Any, y: Any, valid: float | Sequence = 0.2, bs: int = 64, seed: int = 0,
                    normalize: bool | Sequence = False, device: str | torch.device | None = None,
                    drop_last: bool = False, source: str = '') -> 'DataLoaders':
        """Loaders over tensors or arrays, which stay in memory as they are, uncopied: inputs `x`, their first dimension
        the samples, and targets `y`. `valid` is the pair (x_valid, y_valid), or the fraction of the samples that is
        drawn for it by `seed`. Training is shuffled by (seed, epoch); validation comes in order, with batches twice as
        large. Batches are gathered where the arrays live and sent to `device`; uint8 inputs become float32 from 0
        to 1 there, and (N, H, W) gets a channel. `normalize` subtracts a mean and divides by a standard deviation: with
        True those of the training inputs, for each channel (dimension 1), else the pair that is given. `drop_last`
        leaves out a smaller last batch of training. ValueError or TypeError for what cannot be so."""
        return cls(*memory_loaders(x, y, valid, bs, seed, normalize, drop_last, device=device, source=source))

    def cached(self, memory: float | None = None, check: str = 'some', seed: int = 0) -> 'DataLoaders':
        """The same with loaders in memory, in place of DataLoaders over datasets that give the same samples each time:
        each is gone through once, in order, by its own collate function and workers, and what came out is kept, uint8
        as uint8. Batch sizes, the structure of batches and `drop_last` stay; a shuffled loader gets an order of its
        own, by (seed, epoch). `check` compares with a second look: at 'some' samples, first, last and 62 between, or
        at 'all'; ValueError where they differ, as with random augmentation, and for samples of unequal shapes.

        What takes more than `memory` bytes for both (half of what is available unless given) stays as it is, with its
        workers, and a warning says so; so does a loader that has no order of its own to keep (samplers other than
        torch's random and sequential ones), no length, or is no DataLoader at all."""
        new = copy(self)
        new.train, new.valid = cached_pair(self.train, self.valid, memory, check, seed)
        return new


def length_of(x: Any) -> int | None:
    "How many items, such as batches, `x` gives; None where it does not know."
    try: return len(x)
    except TypeError: return None
