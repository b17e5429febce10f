"What a kernel can work on: whether Numba is there, and whether a tensor fills its memory."
from functools import lru_cache
from importlib.util import find_spec

from torch import Tensor

__all__ = ['is_dense', 'missing_numba']


def is_dense(x: Tensor) -> bool:
    "Does `x` fill its memory, in whatever order, without gaps or overlaps?"
    if x.is_contiguous(): return True
    expected, dims = 1, [(s, n) for n, s in zip(x.shape, x.stride(), strict=True) if n != 1]
    for stride, size in sorted(dims):
        if stride != expected: return False
        expected *= size
    return True


@lru_cache(maxsize=1)
def missing_numba() -> str:
    "Why there are no kernels at all; '' where there are."
    return '' if find_spec('numba') else 'Numba is not installed'
