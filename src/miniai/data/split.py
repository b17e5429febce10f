"Training and validation parts of arrays in memory, and the statistics of the first: arguments checked, none copied."
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from miniai.data.memory import MemoryLoader, as_tensors, permutation

__all__ = ['split_rows', 'mean_std', 'memory_loaders']


def split_rows(n: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Which of `n` rows are for training, and which, `fraction` of them, for validation: drawn by `seed`, each in
    rising order. ValueError for a fraction outside 0 to 1, or one that leaves either part empty."""
    if not 0 < fraction < 1: raise ValueError(f"the fraction for validation must lie between 0 and 1, got {fraction}")
    n_valid = round(n*fraction)
    if not 0 < n_valid < n:
        raise ValueError(f"a fraction of {fraction} of {n} samples leaves none for "
                         f"{'training' if n_valid else 'validation'}")
    order = permutation(n, seed, -1)  # no epoch's own
    return order[n_valid:].sort().values, order[:n_valid].sort().values


def mean_std(x: Any, rows: Tensor | None = None, most: int = 2**20) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the population) of inputs as a MemoryLoader makes them float: for each channel,
    dimension 1, and 1 for the deviation of those that never change. Taken in double precision over blocks of about
    `most` elements, merged as in Chan, Golub & LeVeque 1979. ValueError for values that are not finite."""
    x, = as_tensors(x)
    bs = max(1, most*len(x)//max(1, x.numel()))
    n, mean, m2 = 0, torch.zeros(()), torch.zeros(())
    for xb, in MemoryLoader(x, bs=bs, rows=rows).batches(0):
        if not xb.is_floating_point(): raise ValueError(f"normalize is for floats and uint8 images, not for {x.dtype}")
        var, block = torch.var_mean(xb.double(), [d for d in range(xb.ndim) if d != 1], correction=0)
        k = xb.numel()//block.numel()
        step = block - mean
        n, mean, m2 = n + k, mean + step*k/(n + k), m2 + var*k + step**2*n*k/(n + k)
    std = (m2/n).sqrt()
    if not std.isfinite().all(): raise ValueError("the inputs hold values that are not finite: they have no mean")
    return mean.squeeze(), torch.where(std > 0, std, 1.).squeeze()


def memory_loaders(x: Any, y: Any, valid: float | Sequence, bs: int, seed: int, normalize: bool | Sequence,
                   drop_last: bool, **given: Any) -> tuple[MemoryLoader, MemoryLoader]:
    "What `DataLoaders.from_arrays` makes."
    train, rows = as_tensors(x, y), (None, None)
    _check_rows(train, 'training')
    if isinstance(valid, Real): valid, rows = train, split_rows(len(train[0]), valid, seed)
    else: valid = _checked_valid(train, valid)
    given.update(_scale(train[0], rows[0], normalize))
    return (MemoryLoader(*train, bs=bs, shuffle=True, seed=seed, drop_last=drop_last, rows=rows[0], **given),
            MemoryLoader(*valid, bs=bs*2, rows=rows[1], **given))


def _check_rows(tensors: list[Tensor], part: str) -> None:
    if not len(tensors[0]): raise ValueError(f"no {part} data: the arrays have no rows")


def _checked_valid(train: list[Tensor], valid: Any) -> list[Tensor]:
    if not isinstance(valid, tuple | list) or len(valid) != 2:
        raise TypeError(f"valid must be a fraction, or a pair (x_valid, y_valid), got a {type(valid).__name__}")
    valid = as_tensors(*valid)
    _check_rows(valid, 'validation')
    for nm, t, v in zip('xy', train, valid, strict=True):
        if (t.dtype, t.shape[1:]) == (v.dtype, v.shape[1:]): continue
        raise ValueError(f"{nm} differs in kind: {t.dtype} of {tuple(t.shape[1:])} for training, "
                         f"{v.dtype} of {tuple(v.shape[1:])} for validation")
    return valid


def _scale(x: Tensor, rows: Tensor | None, normalize: bool | Sequence) -> dict[str, Any]:
    if normalize is False: return {}
    mean, std = mean_std(x, rows) if normalize is True else normalize
    return dict(mean=mean, std=std)
