"""Tensors and arrays as flat memory, and back, with dtype, shape and strides.

Memory is saved as it is, from a tensor's first element to its last: contiguous and densely permuted tensors
(channels_last) take exactly their size; a view with gaps is saved with the gaps."""
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ['Layout', 'DTYPES', 'layout_of', 'memory_of', 'rebuilt', 'dense_strides']

DTYPES = dict(bool='BOOL', uint8='U8', int8='I8', float8_e4m3fn='F8_E4M3', float8_e5m2='F8_E5M2', uint16='U16',
              int16='I16', float16='F16', bfloat16='BF16', uint32='U32', int32='I32', float32='F32', uint64='U64',
              int64='I64', float64='F64', complex64='F32', complex128='F64')  # torch's name: safetensors' name


@dataclass(frozen=True)
class Layout:
    "Dtype, shape, strides (in elements) and device of a tensor, or of a numpy array."
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: str = 'cpu'
    numpy: bool = False

    @property
    def itemsize(self) -> int: return getattr(torch, self.dtype).itemsize
    @property
    def nbytes(self) -> int: return self.itemsize * _span(self.shape, self.stride)

    def entry(self, at: int) -> dict[str, Any]:
        """The tensor's entry in a safetensors header, if its bytes begin at `at`. The shape has the axes in the order
        of the memory, is flat for a view with gaps, and ends in 2 for the parts of complex numbers."""
        order = sorted(range(len(self.shape)), key=lambda d: -self.stride[d])
        shape, stride = (tuple(x[d] for d in order) for x in (self.shape, self.stride))
        if _is_dense(self.shape, self.stride) or not prod(shape): shape = self.shape
        elif not _is_dense(shape, stride): shape = (_span(shape, stride),)
        if self.dtype.startswith('complex'): shape = (*shape, 2)
        return dict(dtype=DTYPES[self.dtype], shape=shape, data_offsets=[at, at + self.nbytes])

    def row(self) -> dict[str, Any]:
        "What the entry does not say about a tensor: nothing, for a contiguous one on the CPU."
        row = {} if self.stride == dense_strides(self.shape) else dict(shape=self.shape, stride=self.stride)
        if self.dtype.startswith('complex'): row['dtype'] = self.dtype
        if self.device != 'cpu': row['device'] = self.device
        return row | dict(numpy=True) if self.numpy else row


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    "Number of elements in memory from the first to the last."
    return 0 if 0 in shape else 1 + sum((n - 1)*s for n, s in zip(shape, stride, strict=True))


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    "The strides of a contiguous tensor."
    return tuple(prod(max(n, 1) for n in shape[d + 1:]) for d in range(len(shape)))


def _is_dense(shape: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    "Do the elements lie in the order of their indices, without gaps?"
    return all(n == 1 or s == d for n, s, d in zip(shape, stride, dense_strides(shape), strict=True))


def layout_of(x: Tensor | np.ndarray) -> tuple[Layout, Tensor]:
    "The layout of a tensor or array, and the tensor to save; TypeError for a kind that a checkpoint cannot hold."
    numpy = isinstance(x, np.ndarray)
    t = _from_array(x) if numpy else _plain(x)
    return Layout(_name(t.dtype), tuple(t.shape), t.stride(), str(t.device), numpy), t


def _from_array(a: np.ndarray) -> Tensor:
    if type(a) is not np.ndarray or a.dtype.name not in DTYPES or not a.dtype.isnative:
        raise TypeError(f'a {type(a).__name__} of {a.dtype.str}, not a plain array of native numbers or bools')
    # torch has no negative strides. A read-only array may overlap itself (broadcast, sliding windows), and would be
    # writable after loading. Both are saved as copies.
    plain = a.flags.writeable and all(s >= 0 and s % a.itemsize == 0 for s in a.strides)
    return torch.from_numpy(a if plain else a.copy(order='K'))


def _plain(t: Tensor) -> Tensor:
    if type(t) not in (Tensor, nn.Parameter): raise TypeError(f'a {type(t).__name__}, not a plain tensor')
    if t.layout is not torch.strided or t.is_quantized or t.is_nested:
        raise TypeError('a tensor that is sparse, quantized or nested')
    if t.device.type == 'meta': raise TypeError('a tensor on the meta device, which has no data')
    if _name(t.dtype) not in DTYPES: raise TypeError(f'a tensor of {t.dtype}')
    return t.detach().resolve_conj().resolve_neg()


def _name(dtype: torch.dtype) -> str: return str(dtype).removeprefix('torch.')


def memory_of(t: Tensor) -> Tensor:
    "The bytes from the first element to the last, as a flat uint8 tensor on the same device, not copied."
    if not t.numel(): return torch.empty(0, dtype=torch.uint8)
    return t.as_strided((_span(t.shape, t.stride()),), (1,)).view(torch.uint8)


def rebuilt(layout: Layout, memory: Tensor) -> Tensor | np.ndarray:
    "The tensor or array of this layout over `memory`, flat bytes on the CPU."
    dtype = getattr(torch, layout.dtype)
    flat = memory.view(dtype) if len(memory) else torch.empty(0, dtype=dtype)
    t = flat.as_strided(layout.shape, layout.stride)
    return t.numpy() if layout.numpy else t
