"Training and validation parts of arrays in memory, and the mean and standard deviation of the training part."
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from miniai.data.memory import MemoryLoader, as_tensors, channels_first, permutation

__all__ = ['split_rows', 'other_rows', 'mean_std', 'memory_loaders']


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


def other_rows(n: int, valid: Any) -> tuple[Tensor, Tensor]:
    """Indices of the training rows, which are all others, and of the validation rows `valid`: indices in any order, or
    a mask of `n` bools. ValueError for indices outside `n` or repeated, and if either part is empty."""
    valid, = (t.cpu() for t in as_tensors(valid))
    if valid.dtype == torch.bool and valid.shape == (n,): valid = valid.nonzero().squeeze(1)
    if valid.ndim != 1 or (len(valid) and (valid.is_floating_point() or valid.dtype == torch.bool)): raise ValueError(
        f"valid must be indices or a mask of {n} bools, got {valid.dtype} of shape {tuple(valid.shape)}")
    valid = valid.long()
    if not 0 < len(valid) < n: raise ValueError(
        f"valid has {len(valid)} of {n} samples, which leaves none for {'training' if len(valid) else 'validation'}")
    if valid.min() < 0 or valid.max() >= n:
        raise ValueError(f"valid has indices from {valid.min()} to {valid.max()}, but there are {n} samples")
    rest = torch.ones(n, dtype=torch.bool)
    rest[valid] = False
    if rest.sum() != n - len(valid): raise ValueError("valid has the same index twice")
    return rest.nonzero().squeeze(1), valid


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


def memory_loaders(x: Any, y: Any, valid: Any, bs: int, seed: int, normalize: bool | Sequence,
                   channels_last: bool | None, **kwargs: Any) -> tuple[MemoryLoader, MemoryLoader]:
    "The two loaders of `DataLoaders.from_arrays`; `kwargs` go to the first, and the second is like it."
    inputs, arrays = _arrays(x), [*_arrays(x), *_arrays(y)]
    tensors, k = as_tensors(*arrays), len(inputs)
    if not len(tensors[0]): raise ValueError("the training arrays have no rows")
    rows, valid_rows = _rows(len(tensors[0]), valid, seed)
    last = [_has_channels_last(t, channels_last) for t in tensors[:k]]
    images = [channels_first(t) if is_last else t for t, is_last in zip(tensors, last, strict=False)]
    means, stds = zip(*_constants(images, normalize, rows), strict=True)
    mean, std, channels_last = (v if k > 1 else v[0] for v in (means, stds, last))
    train = MemoryLoader(*arrays, bs=bs, shuffle=True, seed=seed, rows=rows, n_inp=k, mean=mean, std=std,
                         channels_last=channels_last, **kwargs)
    new = train.like(*(_pair(valid, k, len(arrays)) if valid_rows is None else arrays), rows=valid_rows)
    new.bs = bs*2
    return train, new


def _arrays(x: Any) -> list:
    "The arrays of a tuple of arrays; anything else is one array."
    return list(x) if isinstance(x, tuple) and all(getattr(a, 'shape', ()) for a in x) else [x]


def _rows(n: int, valid: Any, seed: int) -> tuple[Tensor | None, Tensor | None]:
    "The rows for training and for validation; None, which is all, if `valid` is a pair of arrays."
    if isinstance(valid, Real): return split_rows(n, valid, seed)
    is_array = hasattr(valid, 'shape') or isinstance(valid, range)
    is_numbers = isinstance(valid, list | tuple) and all(isinstance(i, Integral) for i in valid)
    return other_rows(n, valid) if is_array or is_numbers else (None, None)


def _pair(valid: Any, n_inp: int, n_arrays: int) -> list:
    "The arrays of a pair (x_valid, y_valid)."
    if not isinstance(valid, tuple | list) or len(valid) != 2: raise TypeError(
        f"valid must be a fraction, indices or a pair (x_valid, y_valid), got a {type(valid).__name__}")
    x, y = map(_arrays, valid)
    if (len(x), len(x) + len(y)) != (n_inp, n_arrays): raise ValueError(
        f"valid has {len(x)} inputs and {len(y)} targets, training has {n_inp} and {n_arrays - n_inp}")
    if not len(as_tensors(*x, *y)[0]): raise ValueError("the validation arrays have no rows")
    return [*x, *y]


def _has_channels_last(x: Tensor, given: bool | None) -> bool:
    "Are inputs images (N, H, W, C)? ValueError if nothing is given and floats have a shape that is more likely this."
    if given is not None: return given and x.ndim == 4
    if x.ndim != 4 or x.shape[3] not in (1, 3, 4) or min(x.shape[1:3]) <= 4: return False
    if x.is_floating_point(): raise ValueError(
        f"inputs of shape {tuple(x.shape)} look like images with the channels last, but may have them in dimension 1: "
        f"pass channels_last=True or channels_last=False")
    return x.dtype == torch.uint8


def _constants(inputs: list[Tensor], normalize: bool | Sequence, rows: Tensor | None) -> list[tuple]:
    "Mean and std of each input, None for one that is not normalized. Of several, only floats and uint8 are."
    if normalize is False: return [(None, None)]*len(inputs)
    if normalize is True:
        return [mean_std(x, rows) if len(inputs) == 1 or x.is_floating_point() or x.dtype == torch.uint8
                else (None, None) for x in inputs]
    if len(inputs) > 1: raise ValueError(f"with several inputs, normalize must be True or False, got {normalize}")
    return [tuple(normalize)]
