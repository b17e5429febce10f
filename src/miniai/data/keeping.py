"What loaders and samplers keep from pass to pass in attributes: numbers and orders. Knows objects alone."
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ['kept_by', 'set_kept_by']

_PLAIN_VALUES = int, float, bool, type(None)
_OF_LOADERS = frozenset(vars(DataLoader([0])))  # choices of its user's


def kept_by(x: Any) -> dict[str, Any]:
    """The attributes of `x` that a pass may change: numbers, such as a count of passes, truth values and None, and
    orders, which are flat lists, tensors and arrays of whole numbers, none twice; those of torch's own samplers stay as
    they are given."""
    with_orders = not type(x).__module__.startswith('torch.')
    return {k: _copy(v) for k, v in vars(x).items()
            if k not in _OF_LOADERS and (type(v) in _PLAIN_VALUES or (with_orders and _is_order(v)))}


def _is_order(x: Any) -> bool:
    if type(x) is list: return len(x) > 1 and all(type(i) is int for i in x) and len(set(x)) == len(x)
    if type(x) is Tensor and _is_plain_row(x): x = x.numpy(force=True)
    return type(x) is np.ndarray and x.ndim == 1 and len(x) > 1 and x.dtype.kind in 'iu' and len(np.unique(x)) == len(x)


def _is_plain_row(t: Tensor) -> bool:
    return (not (t.is_nested or t.is_quantized or t.is_meta) and t.layout is torch.strided and t.ndim == 1
            and not (t.is_floating_point() or t.is_complex()))


def set_kept_by(x: Any, kept: dict[str, Any]) -> None:
    "Give `x` back what `kept_by` gave: orders in the very memory that others may share."
    for k, v in kept.items():
        there = vars(x).get(k)
        if _fits(there, v): there[:] = v
        else: vars(x)[k] = _copy(v)


def _fits(there: Any, v: Any) -> bool:
    if type(there) is not type(v) or type(v) in _PLAIN_VALUES: return False
    return type(v) is list or (there.shape == v.shape and (type(v) is Tensor or there.flags.writeable))


def _copy(v: Any) -> Any:
    if isinstance(v, Tensor): return v.clone()
    return v.copy() if isinstance(v, list | np.ndarray) else v
