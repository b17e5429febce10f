"Batches from memory: arrays kept as they came, shuffled by (seed, epoch), gathered and made float by the batch."
import warnings
from collections.abc import Callable, Iterator
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ['MemoryLoader', 'as_tensors', 'permutation', 'Scaling']


class MemoryLoader:
    """Batches of `bs` rows, as tuples, from tensors or arrays of equal length, which stay as they came: uncopied, of
    their own dtypes, where they live. A batch is gathered there, goes to `device` if one is given, and there its first
    tensor, the inputs, is scaled: see `Scaling` for `to_float`, `mean` and `std`. All others stay as they are.

    Order: with `shuffle` a function of `seed` and epoch, else that of the arrays, or of `rows`, the indices of those
    to use. `epoch` is the epoch that the next pass will be; each pass adds one, and it may be set. `batches(epoch,
    start)` begins at any batch without gathering those before. The last batch may be smaller, unless `drop_last` leaves
    it out. `pack` makes the batch of a list of tensors; `source` says where the data came from. ValueError or TypeError
    for arrays that cannot be had as tensors, are unequal in length, or do not go with `mean` and `std`."""
    def __init__(self, *arrays: Any, bs: int, shuffle: bool = False, seed: int = 0, drop_last: bool = False,
                 device: str | torch.device | None = None, to_float: bool = True, mean: Any = None, std: Any = None,
                 rows: Tensor | None = None, pack: Callable[[list[Tensor]], Any] = tuple, source: str = '') -> None:
        if index(bs) < 1: raise ValueError(f"the batch size must be 1 or more, got {bs}")
        self.tensors, self.rows = as_tensors(*arrays), rows
        self.n = len(self.tensors[0]) if rows is None else len(rows)
        self.bs, self.shuffle, self.seed, self.drop_last = bs, shuffle, seed, drop_last
        self.device, self.pack, self.source, self.epoch = device, pack, source, 0
        self.scaling = Scaling(self.tensors[0], to_float, mean, std)

    def __len__(self) -> int: return self.n//self.bs if self.drop_last else (self.n + self.bs - 1) // self.bs

    def __repr__(self) -> str:
        kinds = ', '.join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape[1:])}" for t in self.tensors)
        order = f'shuffled by seed {self.seed}' if self.shuffle else 'in order'
        return f'{self.n:,} samples in memory ({kinds}), {order}, in {len(self):,} batches of {self.bs}'

    def __iter__(self) -> Iterator:
        self.epoch += 1
        return self.batches(self.epoch - 1)

    def batches(self, epoch: int, start: int = 0) -> Iterator:
        """The batches of `epoch` from number `start` on, both counted from 0. Leaves the attribute `epoch` alone.
        ValueError for a `start` below 0 or beyond the end."""
        if not 0 <= index(start) <= len(self):
            raise ValueError(f"start must lie in 0 to {len(self)}, the number of batches, got {start}")
        rows = slice(start*self.bs, min(len(self)*self.bs, self.n))
        return self._batches(self._orders(index(epoch)), rows) if rows.start < rows.stop else iter(())

    def _batches(self, orders: dict[torch.device, Tensor] | None, rows: slice) -> Iterator:
        for batch in zip(*(_gathered(t, orders, rows, self.bs) for t in self.tensors), strict=True):
            x, *others = batch if self.device is None else [t.to(self.device) for t in batch]
            yield self.pack([self.scaling(x), *others])

    def _orders(self, epoch: int) -> dict[torch.device, Tensor] | None:
        "The indices of the rows in the order of `epoch`, on every device that holds some; None for all as they are."
        order = permutation(self.n, self.seed, epoch) if self.shuffle else None
        if self.rows is not None: order = self.rows if order is None else self.rows[order]
        return None if order is None else {t.device: order.to(t.device) for t in self.tensors}


def _gathered(t: Tensor, orders: dict[torch.device, Tensor] | None, rows: slice, bs: int) -> Iterator[Tensor]:
    "Copies of the rows, `bs` at a time: a user may change a batch. index_select takes an eighth of indexing's time."
    if orders is None: yield from (part.clone() for part in t[rows].split(bs))
    else: yield from (t.index_select(0, part) for part in orders[t.device][rows].split(bs))


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    "A permutation of 0 to `n` - 1: a function of `seed` and `epoch` alone, on every machine and device."
    generator = torch.Generator().manual_seed((seed*1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


def as_tensors(*arrays: Any) -> list[Tensor]:
    """Tensors of equal length over the memory of `arrays`: tensors, numpy's (memory maps too) and what turns into them;
    lists of numbers are copied. TypeError or ValueError for others."""
    if not arrays: raise TypeError("no arrays: give at least one tensor or array")
    tensors = [_as_tensor(a) for a in arrays]
    for t in tensors:
        if not t.ndim: raise TypeError("an array of no dimensions has no rows: arguments such as bs go by name")
    lengths = [len(t) for t in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"inputs and targets must have the same length, got {' and '.join(map(str, lengths))}")
    return tensors


def _as_tensor(a: Any) -> Tensor:
    if isinstance(a, Tensor): return a.detach()
    try: return _over(np.asarray(a)) if hasattr(a, '__array__') else torch.as_tensor(a)
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"a {type(a).__name__} that torch cannot take as an array of numbers of one shape: {e}") from e


def _over(a: np.ndarray) -> Tensor:
    with warnings.catch_warnings():  # of arrays that may not be written to: nothing here writes
        warnings.filterwarnings('ignore', '.*not writable', UserWarning)
        return torch.from_numpy(a if all(s >= 0 for s in a.strides) else a.copy())


class Scaling:
    """What a loader does to the inputs of a batch. With `to_float`, uint8 is taken for pixels: float32 from 0 to 1, and
    (N, H, W) gets a channel, (N, 1, H, W). With `mean` and `std`, numbers or one for each channel (dimension 1 of the
    result), values then lose `mean` and are divided by `std`. Floats keep their dtype; integers other than uint8, such
    as the ids of tokens, and bools stay as they are. ValueError for a mean and std that `x`, an example, cannot
    take."""
    def __init__(self, x: Tensor, to_float: bool = True, mean: Any = None, std: Any = None) -> None:
        self.pixels = to_float and x.dtype == torch.uint8
        self.channel = self.pixels and x.ndim == 3
        self.normalises = mean is not None or std is not None
        self.mean, self.std = _constant(mean, 0.), _constant(std, 1.)
        if self.normalises: self._check(x)
        self.scale, self.shift, self._there = 1/(255*self.std), -self.mean/self.std, {}

    def _check(self, x: Tensor) -> None:
        if not (self.pixels or x.is_floating_point()):
            raise ValueError(f"mean and std are for floats, or for uint8 made float; the inputs are {x.dtype}")
        shape = (len(x), 1, *x.shape[1:]) if self.channel else tuple(x.shape)
        for nm, t in (('mean', self.mean), ('std', self.std)):
            if t.ndim == 0 or (t.ndim == 1 and len(shape) > 1 and len(t) == shape[1]): continue
            raise ValueError(f"{nm} must be a number, or one for each of the channels, dimension 1 of {shape}; "
                             f"got shape {tuple(t.shape)}")
        if self.std.gt(0).all() and self.std.isfinite().all() and self.mean.isfinite().all(): return
        raise ValueError(f"mean and std must be finite, and std above 0, got {self.mean.tolist()} and "
                         f"{self.std.tolist()}")

    def __call__(self, x: Tensor) -> Tensor:
        "The inputs of a batch, scaled; `x`, which is the loader's own to change, where nothing is to be done."
        if self.channel: x = x.unsqueeze(1)
        if not self.pixels: return self._centred(x) if self.normalises else x
        return self._normalised(x.float()) if self.normalises else x.float().div_(255)

    def _centred(self, x: Tensor) -> Tensor: return x.sub_(self._like(x, 'mean')).div_(self._like(x, 'std'))

    def _normalised(self, x: Tensor) -> Tensor:
        if self.scale.ndim: return x.mul_(self._like(x, 'scale')).add_(self._like(x, 'shift'))
        # In one pass where there is one channel: a third of the time of div_, sub_, div_.
        return torch.add(self._like(x, 'shift'), x, alpha=self.scale.item(), out=x)

    def _like(self, x: Tensor, name: str) -> Tensor:
        "The constant where `x` is, of its dtype, and in a shape to go with its channels."
        key = name, x.device
        if key not in self._there:
            t = getattr(self, name)
            self._there[key] = t.to(x.device, x.dtype).reshape([-1, *[1]*(x.ndim - 2)] if t.ndim else ())
        return self._there[key]


def _constant(value: Any, default: float) -> Tensor:
    return torch.as_tensor(default if value is None else value, dtype=torch.float64)
