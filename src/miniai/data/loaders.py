"Loaders: a pair of them, from a dataset pair or a Hugging Face DatasetDict, and how their items become tuples."
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from typing import Any

from torch.utils.data import DataLoader, default_collate

__all__ = ['inplace', 'collate_dict', 'Dataset', 'get_dls', 'DataLoaders']


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
    "A collate function that turns a list of dicts into a tuple of batches, in the order of `ds.features`."
    return partial(_collated, tuple(ds.features))


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
        ValueError for fewer than two splits."""
        if len(dd) < 2:
            raise ValueError(f"a DatasetDict of two splits is needed, for train and valid; this one has {list(dd)}: "
                             f"split it with train_test_split")
        train, valid = list(dd.values())[:2]
        if as_tuple: kwargs.setdefault('collate_fn', collate_dict(train))
        return cls(*get_dls(train, valid, bs=batch_size, **kwargs))
