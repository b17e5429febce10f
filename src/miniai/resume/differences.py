"Where two nested structures of plain values and tensors differ, to the bit."
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ['differences', 'leaves']


def differences(a: Any, b: Any, leave_out: Collection[str] = ()) -> dict[str, str]:
    """Where two nests of mappings, lists, tuples, tensors, arrays and plain values differ to the bit: from each place,
    its keys and indices joined by spaces, to a description of both values. A list of plain values is one place; what
    mappings hold under a key in `leave_out` is skipped."""
    return dict(_walk(a, b, leave_out, ()))


def leaves(x: Any, leave_out: Collection[str] = ()) -> Iterator[Any]:
    "The tensors and values in a nest that `differences` compares."
    if isinstance(x, Mapping): x = [v for k, v in x.items() if k not in leave_out]
    if not isinstance(x, list | tuple): yield x
    else:
        for v in x: yield from leaves(v, leave_out)


class _Nothing:
    def __repr__(self) -> str: return 'nothing'


_NOTHING = _Nothing()


def _walk(a: Any, b: Any, leave_out: Collection[str], path: tuple) -> Iterator[tuple[str, str]]:
    alike, parts = isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b), ()
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        parts = [(k, a.get(k, _NOTHING), b.get(k, _NOTHING)) for k in {**a, **b} if k not in leave_out]
    elif alike and any(isinstance(x, Mapping | list | tuple | Tensor | np.ndarray) for x in (*a, *b)):
        parts = zip(range(len(a)), a, b, strict=True)
    elif alike:  # a row of plain values is one place
        said = [f'item {i}: {_brief(x)} and {_brief(y)}' for i, (x, y) in enumerate(zip(a, b, strict=True))
                if not _same(x, y)]
        if said: yield ' '.join(map(str, path)), said[0]
    elif not _same(a, b): yield ' '.join(map(str, path)), _difference(a, b)
    for k, x, y in parts: yield from _walk(x, y, leave_out, (*path, k))


def _difference(a: Any, b: Any) -> str:
    "How two values or tensors that are not the same differ."
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)):
        return f'{_brief(a)} and {_brief(b)}'
    wide = torch.complex128 if a.is_complex() else torch.float64
    gaps = (a.detach().cpu().to(wide) - b.detach().cpu().to(wide)).abs()
    n = int((gaps != 0).sum())
    return f'{n:,} of {gaps.numel():,} numbers differ, by up to {gaps.max():.2g}' if n else 'zeros differ in sign'


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(_bytes(a), _bytes(b))
    return type(a) is type(b) and _bits(a) == _bits(b)


def _bytes(t: Tensor) -> Tensor:
    flat = t.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return (flat.as_strided((len(flat),), (1,)) if len(flat) < 2 else flat).view(torch.uint8)  # else of any stride


def _bits(x: Any) -> Any:
    if isinstance(x, np.ndarray | np.generic): return x.dtype, x.shape, x.tobytes()
    return struct.pack('d', x) if isinstance(x, float) else x


def _brief(x: Any) -> str:
    if isinstance(x, Tensor | np.ndarray): return f'{tuple(x.shape)} {x.dtype}'
    if isinstance(x, Mapping | list | tuple): return f'{len(x)} entries'
    text = repr(x)
    return text if len(text) <= 60 else f'{text[:59]}…'
