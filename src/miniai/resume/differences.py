"Where two nests of plain values and tensors differ, to the bit, by name. Knows torch and numpy alone."
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ['differences', 'leaves']


def differences(a: Any, b: Any, leave_out: Collection[str] = ()) -> dict[str, str]:
    """Where nests of mappings, lists, tuples, tensors, arrays and plain values are not the same to the bit: by name,
    which is keys and numbers joined by spaces, what is there in `a` and in `b`. A list of plain values is one place,
    and what mappings have by a key in `leave_out` is passed over."""
    return dict(_walk(a, b, leave_out, ()))


def leaves(x: Any, leave_out: Collection[str] = ()) -> Iterator[Any]:
    "The tensors and values of a nest, which `differences` compares."
    if isinstance(x, Mapping): x = [v for k, v in x.items() if k not in leave_out]
    if not isinstance(x, list | tuple): yield x
    else:
        for v in x: yield from leaves(v, leave_out)


class _Nothing:
    def __repr__(self) -> str: return 'nothing'


_NOTHING = _Nothing()


def _walk(a: Any, b: Any, leave_out: Collection[str], path: tuple) -> Iterator[tuple[str, str]]:
    parts = _parts(a, b, leave_out)
    for k, x, y in parts or (): yield from _walk(x, y, leave_out, (*path, k))
    said = _said(a, b) if parts is None else ''
    if said: yield ' '.join(map(str, path)), said


def _parts(a: Any, b: Any, leave_out: Collection[str]) -> list | None:
    "What is to be compared one by one, with its name in both; None where `a` and `b` are to be compared as they are."
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [(k, a.get(k, _NOTHING), b.get(k, _NOTHING)) for k in {**a, **b} if k not in leave_out]
    alike = isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b)
    return list(zip(range(len(a)), a, b, strict=True)) if alike and any(map(_has_parts, [*a, *b])) else None


def _has_parts(x: Any) -> bool: return isinstance(x, Mapping | list | tuple | Tensor | np.ndarray)


def _said(a: Any, b: Any) -> str:
    "In what two differ; '' where they are the same."
    if _is_row(a) and _is_row(b) and type(a) is type(b) and len(a) == len(b):
        pairs = enumerate(zip(a, b, strict=True))
        return next((f'number {i}: {_brief(x)} and {_brief(y)}' for i, (x, y) in pairs if not _same(x, y)), '')
    if _same(a, b): return ''
    tensors = isinstance(a, Tensor) and isinstance(b, Tensor) and (a.dtype, a.shape) == (b.dtype, b.shape)
    return _apart(a, b) if tensors else f'{_brief(a)} and {_brief(b)}'


def _is_row(x: Any) -> bool: return isinstance(x, list | tuple) and not any(map(_has_parts, x))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(_bytes(a), _bytes(b))
    return type(a) is type(b) and _bits(a) == _bits(b)


def _bytes(t: Tensor) -> Tensor:
    return t.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)


def _bits(x: Any) -> Any:
    if isinstance(x, np.ndarray | np.generic): return x.dtype, x.shape, x.tobytes()
    return struct.pack('d', x) if isinstance(x, float) else x


def _apart(a: Tensor, b: Tensor) -> str:
    wide = torch.complex128 if a.is_complex() else torch.float64
    gaps = (a.detach().cpu().to(wide) - b.detach().cpu().to(wide)).abs()
    n = int((gaps != 0).sum())
    return f'{n:,} of {gaps.numel():,} numbers differ, by up to {gaps.max():.2g}' if n else 'zeros of another sign'


def _brief(x: Any) -> str:
    if isinstance(x, Tensor | np.ndarray): return f'{tuple(x.shape)} {x.dtype}'
    if isinstance(x, Mapping | list | tuple): return f'{len(x)} entries'
    text = repr(x)
    return text if len(text) <= 60 else f'{text[:59]}…'
