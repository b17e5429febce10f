"Batches from arrays in memory: shuffled by (seed, epoch), gathered, and scaled to floats one batch at a time."
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.data.resident import near
from miniai.device import to_device
from miniai.distributed.ranks import part_of

__all__ = ['MemoryLoader', 'Scaling', 'as_tensors', 'channels_first', 'rows_of', 'some_rows', 'kept_rows',
           'permutation', 'own_part', 'batches_in_words']


class MemoryLoader:
    """Batches of `bs` rows, as tuples, from tensors or arrays of equal length, which are neither copied nor converted.
    In a batch tensors keep their dtype. Of other arrays float64 becomes float32, and integers int64, but for uint8
    inputs. Batches go to `device`, if given; one that is CUDA keeps copies of arrays that fit. The first `n_inp`
    arrays, the inputs, are scaled (see `Scaling` for `to_float`, `mean` and `std`), and with `channels_last` images (N,
    H, W, C) come as (N, C, H, W); if `n_inp` is above 1, `mean`, `std` and `channels_last` are lists. With `shuffle`
    the order is a function of `seed` and epoch, else that of the arrays, or of `rows`, the indices to use. `epoch` is
    the next epoch: each pass adds one, and it may be set. `drop_last` drops a smaller last batch, `pack` makes a batch
    from a list of tensors, and `source` says where the data came from. ValueError or TypeError for arguments that do
    not fit."""
    _in_parts = False
    def __init__(self, *arrays: Any, bs: int, shuffle: bool = False, seed: int = 0, drop_last: bool = False,
                 device: str | torch.device | None = None, to_float: bool = True, mean: Any = None, std: Any = None,
                 rows: Tensor | None = None, pack: Callable[[list[Tensor]], Any] = tuple, source: str = '',
                 n_inp: int = 1, channels_last: Any = None) -> None:
        if index(bs) < 1: raise ValueError(f"the batch size must be 1 or more, got {bs}")
        self.bs, self.shuffle, self.seed, self.drop_last = bs, shuffle, seed, drop_last
        self.device, self.pack, self.source, self.n_inp = device, pack, source, n_inp
        means, stds, self.channels_last = ([v] if n_inp == 1 else v or [None]*n_inp for v in (mean, std, channels_last))
        self._hold(arrays, rows)
        inputs, targets = self.tensors[:n_inp], self.tensors[n_inp:]
        scalings = [Scaling(x, to_float, m, s) for x, m, s in zip(inputs, means, stds, strict=True)]
        self.scaling, *self.other_scalings = scalings + [Scaling(y, to_float=False) for y in targets]

    def _hold(self, arrays: tuple, rows: Tensor | None) -> None:
        self.tensors, self.rows, self.epoch = as_tensors(*arrays), rows, 0
        self.n = len(self.tensors[0]) if rows is None else len(rows)
        self.dtypes = [_dtype_in_batches(a, t, i < self.n_inp)
                       for i, (a, t) in enumerate(zip(arrays, self.tensors, strict=True))]
        for i, last in enumerate(self.channels_last):
            if last: self.tensors[i] = channels_first(self.tensors[i])

    def like(self, *arrays: Any, rows: Tensor | None = None) -> 'MemoryLoader':
        """A loader of other arrays, such as a test set, in order, with inputs scaled as those of this loader. Targets
        may be left out. ValueError for arrays of another dtype or row shape."""
        new = copy(self)
        new.shuffle, new.drop_last, new.seed = False, False, 0
        new.scaling, new.other_scalings = deepcopy((self.scaling, self.other_scalings))
        new._hold(arrays, rows)
        for i, kinds in enumerate(zip(self._kinds(), new._kinds(), strict=False)):
            if kinds[0] != kinds[1]: raise ValueError(
                f"{'x' if i < self.n_inp else 'y'} must have the same dtype and row shape in both loaders, got "
                f"{' and '.join(f'{dtype} {shape}' for dtype, shape in kinds)}")
        return new

    def _kinds(self) -> list[tuple]:
        "Dtype in batches and row shape of each array."
        return [(d, tuple(t.shape[1:])) for d, t in zip(self.dtypes, self.tensors, strict=True)]

    @property
    def normalized_by(self) -> str:
        "Mean and standard deviation of each input that is normalized, as text; '' if none is."
        scalings = [s for s in (self.scaling, *self.other_scalings) if s.normalises]
        return ', '.join(f'mean {_rounded(s.mean)} and std {_rounded(s.std)}' for s in scalings)

    def __len__(self) -> int: return self.n//self.bs if self.drop_last else (self.n + self.bs - 1) // self.bs

    def __repr__(self) -> str:
        kinds = [' '.join([str(t.dtype).removeprefix('torch.'), *['x'.join(map(str, t.shape[1:]))]*(t.ndim > 1)])
                 for t in self.tensors]
        order = f'shuffled with seed {self.seed}' if self.shuffle else 'in order'
        where = 'in memory' if all(getattr(t, 'keep', True) for t in self.tensors) else 'read again in each epoch'
        return f'{self.n:,} samples {where} ({", ".join(kinds)}), {batches_in_words(len(self), self.bs)}, {order}'

    def __iter__(self) -> Iterator:
        self.epoch += 1
        return self.batches(self.epoch - 1)

    def snapshot(self) -> Callable[[], None]:
        "A function that puts `epoch` back as it is now, such as after a dry run."
        epoch = self.epoch
        def restore() -> None: self.epoch = epoch
        return restore

    @contextmanager
    def in_parts(self) -> Iterator[None]:
        "Within it, a pass that begins has only this process's part of each batch."
        self._in_parts = True
        try: yield
        finally: del self._in_parts  # checkpoints hold an object's own attributes

    def batches(self, epoch: int, start: int = 0) -> Iterator:
        """The batches of `epoch` from number `start` on, both counted from 0; the attribute `epoch` stays. Batches
        before `start` are not gathered. ValueError for a `start` below 0 or beyond the end."""
        if not 0 <= index(start) <= len(self):
            raise ValueError(f"start must be from 0 to {len(self)}, the number of batches, got {start}")
        rows = slice(start*self.bs, min(len(self)*self.bs, self.n))
        if rows.start >= rows.stop: return iter(())
        order, sizes = self._order(index(epoch)), self.bs
        if self._in_parts:
            order = torch.arange(self.n) if order is None else order
            batches = [own_part(rows) for rows in order[rows].split(self.bs)]
            order, rows, sizes = torch.cat(batches), slice(None), list(map(len, batches))
        tensors = near(self)
        orders = None if order is None else {t.device: order.to(t.device) for t in tensors}
        return self._batches(tensors, orders, rows, sizes)

    def _order(self, epoch: int) -> Tensor | None:
        "The indices of the rows in the order of `epoch`; None for all in order."
        order = permutation(self.n, self.seed, epoch) if self.shuffle else None
        return order if self.rows is None else self.rows if order is None else self.rows[order]

    def _batches(self, tensors: list, orders: dict[torch.device, Tensor] | None, rows: slice,
                 sizes: int | list[int]) -> Iterator:
        for batch in zip(*(self._parts(i, t, orders, rows, sizes) for i, t in enumerate(tensors)), strict=True):
            yield self.pack([*batch])

    def _parts(self, i: int, t: Any, orders: dict[torch.device, Tensor] | None, rows: slice,
               sizes: int | list[int]) -> Iterator[Tensor]:
        "What batches hold of array `i`, which is kept as `t`, one batch after the other."
        dtype, scaling = self.dtypes[i], self.other_scalings[i - 1] if i else self.scaling
        parts, early = _gathered(t, orders, rows, sizes), t.dtype != dtype
        # Double precision is scaled before it is rounded, and before it moves: some devices have none.
        if early: parts = (scaling(part).to(dtype) for part in parts)
        if self.device is not None: parts = (to_device(part, self.device) for part in parts)
        return map(scaling, parts) if scaling.changes and not early else parts


def _rounded(t: Tensor) -> str:
    return str([round(x, 4) for x in t.tolist()] if t.ndim else round(t.item(), 4))


def batches_in_words(n: int, bs: int | None) -> str:
    "'1,200 batches of 64', '1 batch', for a repr."
    return f'{n:,} batch{"es"*(n != 1)}' + (f' of {bs}' if bs else '')


_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}


def own_part(rows: Any) -> Any:
    """This process's part of a batch, given its rows. If there are fewer than processes, some repeat the first row;
    it does not count there (`learn.counts`)."""
    own = part_of(len(rows))
    return rows[own.start:own.stop] if own else rows[:1]


def _gathered(t: Tensor, orders: dict[torch.device, Tensor] | None, rows: slice,
              bs: int | list[int]) -> Iterator[Tensor]:
    "Copies of the rows, `bs` at a time, or as many as a list says: the user may change a batch."
    if hasattr(t, 'gathered'): return (yield from t.gathered(torch.arange(len(t))[rows] if orders is None else
                                                             orders[t.device][rows], bs))
    signed = _SIGNED.get(t.dtype)  # index_select takes these
    if signed: yield from (part.view(t.dtype) for part in _gathered(t.view(signed), orders, rows, bs))
    elif orders is None: yield from (part.clone(memory_format=torch.contiguous_format) for part in t[rows].split(bs))
    else: yield from (t.index_select(0, part) for part in orders[t.device][rows].split(bs))  # 8x faster than t[part]


def rows_of(dl: 'MemoryLoader', n: int) -> list[Tensor]:
    "The first `n` rows of each input of a MemoryLoader in order, as they are kept."
    return kept_rows(dl, torch.arange(dl.n)[:n])[:dl.n_inp]


def some_rows(dl: 'MemoryLoader', n: int) -> list[Tensor]:
    "Up to `n` rows of each array of a MemoryLoader, drawn with its seed, as they are kept."
    return kept_rows(dl, permutation(dl.n, dl.seed, -2)[:n])


def kept_rows(dl: 'MemoryLoader', rows: Tensor) -> list[Tensor]:
    "Those rows of each array of a MemoryLoader, as they are kept; they are numbered as in a pass in order."
    if dl.rows is not None: rows = dl.rows[rows]
    return [next(_gathered(t, {t.device: rows.to(t.device)}, slice(None), len(rows))) for t in dl.tensors]


def permutation(n: int, seed: int, epoch: int) -> Tensor:
    "A permutation of 0 to `n` - 1 that depends only on `seed` and `epoch`, on every machine and device."
    generator = torch.Generator().manual_seed((seed*1_000_003 + epoch) % 2**63)
    return torch.randperm(n, generator=generator)


def as_tensors(*arrays: Any) -> list[Tensor]:
    """Tensors over the memory of `arrays`: tensors, numpy arrays and memory maps, and what converts to them; lists are
    copied. TypeError for anything else, ValueError for unequal lengths."""
    if not arrays: raise TypeError("no arrays: give at least one tensor or array")
    tensors = [_as_tensor(a) for a in arrays]
    if not all(t.ndim for t in tensors):
        raise TypeError("an array of 0 dimensions has no rows: pass arguments such as bs by name")
    lengths = [len(t) for t in tensors]
    if len(set(lengths)) > 1:
        raise ValueError(f"inputs and targets must have the same length, got {' and '.join(map(str, lengths))}")
    return tensors


def _as_tensor(a: Any) -> Tensor:
    if isinstance(a, Tensor): return a.detach()
    if hasattr(a, 'gathered'): return a  # such as PictureRows, which stands for a tensor
    try:
        if not hasattr(a, '__array__'): return torch.as_tensor(a)
        a = np.asarray(a)
        if any(s < 0 for s in a.strides): a = a.copy()
        with warnings.catch_warnings():  # torch warns about read-only arrays; nothing here writes to them
            warnings.filterwarnings('ignore', '.*not writable', UserWarning)
            return torch.from_numpy(a)
    except (TypeError, ValueError, RuntimeError) as e:
        raise TypeError(f"cannot make a tensor from type {type(a).__name__}: give numbers of one shape ({e})") from e


def _dtype_in_batches(a: Any, t: Tensor, is_input: bool) -> torch.dtype:
    "The dtype in batches of the array `a`, which is held as the tensor `t`."
    if isinstance(a, Tensor) or (is_input and t.dtype == torch.uint8): return t.dtype
    if t.dtype == torch.float64: return torch.float32
    return t.dtype if t.is_floating_point() or t.is_complex() or t.dtype == torch.bool else torch.int64


def channels_first(x: Tensor) -> Tensor:
    "Images (N, H, W, C) as (N, C, H, W), a view."
    if x.ndim != 4: raise ValueError(f"channels_last needs images (N, H, W, C), got shape {tuple(x.shape)}")
    return x.permute(0, 3, 1, 2)


class Scaling:
    """Scales the inputs of a batch. With `to_float`, uint8 becomes float32 from 0 to 1, and (N, H, W) gets a channel,
    (N, 1, H, W). Then `mean` is subtracted and the result divided by `std`: numbers, or one for each channel (dimension
    1). Floats keep their dtype; other integers, such as token ids, and bools stay as they are. ValueError if `x`, an
    example, does not fit `mean` and `std`."""
    def __init__(self, x: Tensor, to_float: bool = True, mean: Any = None, std: Any = None) -> None:
        self.pixels = to_float and x.dtype == torch.uint8
        self.channel = self.pixels and x.ndim == 3
        self.normalises = mean is not None or std is not None  # so called in checkpoints
        self.changes = self.pixels or self.normalises
        self.mean = torch.as_tensor(0. if mean is None else mean, dtype=torch.float64)
        self.std  = torch.as_tensor(1. if std is None else std, dtype=torch.float64)
        if self.normalises: self._check(x)
        self.scale, self.shift, self._constants = 1/(255*self.std), -self.mean/self.std, {}

    def _check(self, x: Tensor) -> None:
        if not (self.pixels or x.is_floating_point()):
            raise ValueError(f"mean and std need inputs of floats, or of uint8 with to_float=True, got {x.dtype}")
        shape = (len(x), 1, *x.shape[1:]) if self.channel else tuple(x.shape)
        for nm, t in (('mean', self.mean), ('std', self.std)):
            if t.ndim == 0 or (t.ndim == 1 and len(shape) > 1 and len(t) == shape[1]): continue
            raise ValueError(f"{nm} must be a number, or one for each channel, dimension 1 of {shape}; "
                             f"got shape {tuple(t.shape)}")
        if not (self.std.gt(0).all() and self.std.isfinite().all() and self.mean.isfinite().all()):
            raise ValueError(f"mean and std must be finite, and std above 0, got {self.mean.tolist()} and "
                             f"{self.std.tolist()}")

    def __call__(self, x: Tensor) -> Tensor:
        "The inputs of a batch, scaled; `x` itself, which may be changed, where nothing has to be done."
        if self.channel: x = x.unsqueeze(1)
        if not self.normalises: return x.float().div_(255) if self.pixels else x
        if not self.pixels: return x.sub_(self._constant('mean', x)).div_(self._constant('std', x))
        x = x.float()
        if self.scale.ndim: return self._scaled_by_channel(x, self._constant('scale', x), self._constant('shift', x))
        # One pass where mean and std are numbers: a third of the time of div_, sub_, div_.
        return torch.add(self._constant('shift', x), x, alpha=self.scale.item(), out=x)

    def _scaled_by_channel(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
            # As rows of width times channels: seven times as fast as with three numbers in the innermost loop.
            rows = x.permute(0, 2, 3, 1).flatten(2)
            scale, shift = (t.flatten().repeat(x.shape[3]) for t in (scale, shift))
            rows.mul_(scale).add_(shift)
            return x
        return x.mul_(scale).add_(shift)

    def _constant(self, name: str, x: Tensor) -> Tensor:
        "mean, std, scale or shift on the device of `x`, in its dtype, shaped for its channels."
        key = name, x.device, x.dtype
        if key not in self._constants:
            t = getattr(self, name)
            shape = [-1, *[1]*(x.ndim - 2)] if t.ndim else ()
            self._constants[key] = t.to(x.device, x.dtype).reshape(shape)
        return self._constants[key]
