"The functions that a rule may use: the same name for Python floats and for tensors."
import math
from typing import Any

import torch
from torch import Tensor

__all__ = ['sqrt', 'sign', 'where', 'maximum', 'minimum']


def sqrt(x: Any) -> Any:
    "Square root."
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


def sign(x: Any) -> Any:
    "-1, 0 or 1; NaN stays NaN."
    if isinstance(x, Tensor): return x.sign()
    return x if math.isnan(x) else float((x > 0) - (x < 0))


def where(cond: Any, a: Any, b: Any) -> Any:
    "`a` where `cond` holds, else `b`."
    return torch.where(cond, a, b) if isinstance(cond, Tensor) else a if cond else b


def maximum(a: Any, b: Any) -> Any:
    "The larger of two; NaN where either is."
    return _pair(torch.maximum, a, b) if _any_tensor(a, b) else _extreme(max, a, b)


def minimum(a: Any, b: Any) -> Any:
    "The smaller of two; NaN where either is."
    return _pair(torch.minimum, a, b) if _any_tensor(a, b) else _extreme(min, a, b)


def _any_tensor(a: Any, b: Any) -> bool: return isinstance(a, Tensor) or isinstance(b, Tensor)


def _pair(f: Any, a: Any, b: Any) -> Tensor:
    like = a if isinstance(a, Tensor) else b
    return f(*(x if isinstance(x, Tensor) else like.new_full((), x) for x in (a, b)))


def _extreme(f: Any, a: float, b: float) -> float: return math.nan if math.isnan(a) or math.isnan(b) else f(a, b)
