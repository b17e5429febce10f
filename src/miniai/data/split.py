"Training and validation parts of arrays in memory, and the mean and standard deviation of the training part."
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from miniai.data.memory import MemoryLoader, as_tensors, permutation

__all__ = ['split_rows', 'mean_std', 'memory_loaders']


def split_rows(n: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training rows and of the validation rows, `fraction` of `n` rows drawn with `seed`; both sorted.
    ValueError for a fraction outside 0 to 1, or one that leaves either part empty."""
    if not 0 < fraction < 1: raise ValueError(f"the validation fraction must be between 0 and 1, got {fraction}")
    n_valid = round(n*fraction)
    if not 0 < n_valid < n:
        raise ValueError(f"a fraction of {fraction} of {n} samples leaves none for "
                         f"{'training' if n_valid else 'validation'}: change the fraction, or give a validation set")
    order = permutation(n, seed, -1)  # no epoch has this order
    return order[n_valid:].sort().values, order[:n_valid].sort().values


def mean_std(x: Any, rows: Tensor | None = None, most: int = 2**20) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (of the population) of inputs, for each channel, dimension 1; uint8 counts as 0 to 1,
    and a channel that never changes has deviation 1. In double precision, over blocks of about `most` elements,
    merged as in Chan, Golub & LeVeque 1979. ValueError for integers and for values that are not finite."""
    x, = as_tensors(x)
    bs = max(1, most*len(x)//max(1, x.numel()))
    n, mean, m2 = 0, torch.zeros(()), torch.zeros(())
    for xb, in MemoryLoader(x, bs=bs, rows=rows).batches(0):
        if not xb.is_floating_point(): raise ValueError(f"normalize needs floats or uint8 images, got {x.dtype}")
        var, block = torch.var_mean(xb.double(), [d for d in range(xb.ndim) if d != 1], correction=0)
        k = xb.numel()//block.numel()
        step = block - mean
        n, mean, m2 = n + k, mean + step*k/(n + k), m2 + var*k + step**2*n*k/(n + k)
    std = (m2/n).sqrt()
    if not std.isfinite().all(): raise ValueError("normalize needs finite inputs, and some are NaN or infinite")
    return mean.squeeze(), torch.where(std > 0, std, 1.).squeeze()


def memory_loaders(x: Any, y: Any, valid: float | Sequence, bs: int, seed: int, normalize: bool | Sequence,
                   drop_last: bool, **kwargs: Any) -> tuple[MemoryLoader, MemoryLoader]:
    "The two loaders of `DataLoaders.from_arrays`; `kwargs` go to both."
    train, train_rows, valid_rows = as_tensors(x, y), None, None
    if not len(train[0]): raise ValueError("the training arrays have no rows")
    if isinstance(valid, Real):
        train_rows, valid_rows = split_rows(len(train[0]), valid, seed)
        valid = train
    else: valid = _checked_valid(train, valid)
    if normalize is not False:
        mean, std = mean_std(train[0], train_rows) if normalize is True else normalize
        kwargs.update(mean=mean, std=std)
    return (MemoryLoader(*train, bs=bs, shuffle=True, seed=seed, drop_last=drop_last, rows=train_rows, **kwargs),
            MemoryLoader(*valid, bs=bs*2, rows=valid_rows, **kwargs))


def _checked_valid(train: list[Tensor], valid: Any) -> list[Tensor]:
    if not isinstance(valid, tuple | list) or len(valid) != 2:
        raise TypeError(f"valid must be a fraction or a pair (x_valid, y_valid), got a {type(valid).__name__}")
    valid = as_tensors(*valid)
    if not len(valid[0]): raise ValueError("the validation arrays have no rows")
    for nm, t, v in zip('xy', train, valid, strict=True):
        if (t.dtype, t.shape[1:]) == (v.dtype, v.shape[1:]): continue
        raise ValueError(f"{nm} must have the same dtype and row shape for training and validation, got {t.dtype} "
                         f"{tuple(t.shape[1:])} and {v.dtype} {tuple(v.shape[1:])}")
    return valid
