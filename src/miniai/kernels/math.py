"The functions that a rule may use: the same name for Python floats, tensors and symbols."
import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from miniai.kernels.trace import Symbol, symbolic_double, symbolic_where

__all__ = ['sqrt', 'sign', 'where', 'maximum', 'minimum', 'double', 'has_double', 'widest']


def sqrt(x: Any) -> Any:
    "Square root; NaN below zero."
    if isinstance(x, Tensor | Symbol): return x.sqrt()
    return math.sqrt(x) if x >= 0 else math.nan


def where(cond: Any, a: Any, b: Any) -> Any:
    "`a` where `cond` holds, else `b`."
    if any(isinstance(x, Symbol) for x in (cond, a, b)): return symbolic_where(cond, a, b)
    if not isinstance(cond, Tensor): return a if cond else b
    if cond.dtype is not torch.bool: cond = cond != 0  # a condition on hyperparameters, given as a number
    if isinstance(a, Tensor) or isinstance(b, Tensor): return torch.where(cond, a, b)
    return torch.where(cond, *(torch.tensor(x, dtype=widest(cond), device=cond.device) for x in (a, b)))


def widest(x: Tensor) -> torch.dtype:
    "Double precision, if the device of `x` has it."
    return torch.float64 if has_double(x.device) else torch.float32


def double(x: Any) -> Any:
    "`x` in double precision, or on devices without it in float32; of a comparison 1 where it holds, else 0."
    if isinstance(x, Symbol): return symbolic_double(x)
    return x.to(widest(x)) if isinstance(x, Tensor) else float(x)


@lru_cache(maxsize=64)
def has_double(device: torch.device) -> bool:
    "Whether a device computes in double precision. GPUs of Apple do not, and not all of Intel do."
    if device.type == 'xpu': return torch.xpu.get_device_properties(device).has_fp64
    return device.type != 'mps'


def sign(x: Any) -> Any:
    "-1, 0 or 1; NaN stays NaN."
    return where(x > 0, 1., where(x < 0, -1., x))


def maximum(a: Any, b: Any) -> Any:
    "The larger of two; NaN if either is."
    if isinstance(a, Tensor): return torch.maximum(a, b) if isinstance(b, Tensor) else a.clamp(min=b)
    return b.clamp(min=a) if isinstance(b, Tensor) else where(a > b, a, where(b >= a, b, a + b))


def minimum(a: Any, b: Any) -> Any:
    "The smaller of two; NaN if either is."
    if isinstance(a, Tensor): return torch.minimum(a, b) if isinstance(b, Tensor) else a.clamp(max=b)
    return b.clamp(max=a) if isinstance(b, Tensor) else where(a < b, a, where(b <= a, b, a + b))
