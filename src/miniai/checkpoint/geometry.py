"""Tensors and arrays as the memory that they span, and back: dtypes by name, strides to the letter. Knows no file.

The memory from a tensor's first element to its last is kept as it lies, so that a layout is neither changed nor
copied: contiguous and densely permuted tensors (channels_last) take their own size, a view with gaps its gaps too."""
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniai.checkpoint.errors import Malformed

__all__ = ['Geometry', 'Leaf', 'DTYPES', 'leaf_of', 'memory_of', 'rebuilt', 'span', 'dense_strides', 'is_array']

DTYPES = dict(bool='BOOL', uint8='U8', int8='I8', float8_e4m3fn='F8_E4M3', float8_e5m2='F8_E5M2', uint16='U16',
              int16='I16', float16='F16', bfloat16='BF16', uint32='U32', int32='I32', float32='F32', uint64='U64',
              int64='I64', float64='F64', complex64='F32', complex128='F64')  # torch's name: the file's


@dataclass(frozen=True)
class Geometry:
    "How a tensor, or numpy array, of `dtype` lies over memory on `device`."
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    device: str = 'cpu'
    numpy: bool = False

    @property
    def itemsize(self) -> int: return getattr(torch, self.dtype).itemsize
    @property
    def nbytes(self) -> int: return self.itemsize * span(self.shape, self.stride)

    @property
    def file_shape(self) -> tuple[int, ...]:
        "The shape that other readers see: of the memory in its own order, with real and imaginary part as last axis."
        order = sorted(range(len(self.shape)), key=lambda d: -self.stride[d])
        shape, stride = (tuple(x[d] for d in order) for x in (self.shape, self.stride))
        dense = all(n == 1 or s == e for n, s, e in zip(shape, stride, dense_strides(shape), strict=True))
        if self.is_contiguous or not prod(shape): shape = self.shape
        elif not dense: shape = (span(shape, stride),)
        return (*shape, 2) if self.dtype.startswith('complex') else shape

    @property
    def is_contiguous(self) -> bool:
        "Whether the elements lie in the order of their indices, without gaps."
        rows = zip(self.shape, self.stride, dense_strides(self.shape), strict=True)
        return all(n == 1 or s == e for n, s, e in rows)


@dataclass(frozen=True)
class Leaf:
    "A tensor of the state: its geometry and the tensor itself, on its own device."
    geometry: Geometry
    tensor: Tensor


def span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    "How many elements lie from the first to the last."
    return 0 if 0 in shape else 1 + sum((n - 1)*s for n, s in zip(shape, stride, strict=True))


def dense_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    "The strides that torch gives a contiguous tensor."
    out = [1]
    for n in reversed(shape[1:]): out.append(out[-1] * max(n, 1))
    return tuple(reversed(out[:len(shape)]))


def is_array(x: Any) -> bool:
    "Whether `x` is a tensor or numpy array, of whatever kind."
    return isinstance(x, Tensor | np.ndarray)


def leaf_of(x: Any) -> Leaf:
    "A tensor or array with its geometry; TypeError, without the path, for a kind that has no plain memory."
    return _array_leaf(x) if isinstance(x, np.ndarray) else _tensor_leaf(x)


def _array_leaf(a: np.ndarray) -> Leaf:
    if type(a) is not np.ndarray or a.dtype.name not in DTYPES or not a.dtype.isnative:
        raise TypeError(f'a {type(a).__name__} of {a.dtype.str}, not a plain array of native numbers or bools')
    # Read-only ones may overlap themselves (broadcast, windows) and come back writable: by value, as those backwards
    plain = a.flags.writeable and all(s >= 0 and s % a.itemsize == 0 for s in a.strides)
    t = torch.from_numpy(a if plain else a.copy(order='K'))
    return Leaf(_geometry(t, True), t)


def _tensor_leaf(t: Tensor) -> Leaf:
    why = _without_plain_memory(t)
    if why: raise TypeError(why)
    t = t.detach().resolve_conj().resolve_neg()
    return Leaf(_geometry(t, False), t)


def _without_plain_memory(t: Tensor) -> str | None:
    if type(t) not in (Tensor, nn.Parameter): return f'a {type(t).__name__}, not a plain tensor'
    if t.layout is not torch.strided or t.is_quantized or t.is_nested:
        return 'a tensor that is sparse, quantised or nested'
    if t.device.type == 'meta': return 'a tensor on the meta device, which has no data'
    return None if _name(t.dtype) in DTYPES else f'a tensor of {t.dtype}'


def _name(dtype: torch.dtype) -> str: return str(dtype).removeprefix('torch.')
def _geometry(t: Tensor, numpy: bool) -> Geometry:
    return Geometry(_name(t.dtype), tuple(t.shape), t.stride(), str(t.device), numpy)


def memory_of(leaf: Leaf) -> memoryview | Tensor:
    """The bytes from the first element to the last, not copied: on the CPU as plain memory, elsewhere as a flat tensor
    of uint8. A thread may read plain memory while the interpreter ends; within a call of torch's it would abort it."""
    shape, stride = leaf.geometry.shape, leaf.geometry.stride
    if 0 in shape: return memoryview(b'')
    flat = leaf.tensor.as_strided((span(shape, stride),), (1,)).view(torch.uint8)
    return memoryview(flat.numpy()) if flat.is_cpu else flat


def rebuilt(g: Geometry, memory: Tensor) -> Tensor | np.ndarray:
    "The tensor, or array, of geometry `g` over `memory`, flat bytes on the CPU that nobody else holds."
    if memory.numel() != g.nbytes: raise Malformed(f'a tensor of {memory.numel()} bytes is said to span {g.nbytes}')
    dtype = getattr(torch, g.dtype)
    flat = memory.view(dtype) if memory.numel() else torch.empty(0, dtype=dtype)
    t = flat.as_strided(g.shape, g.stride)
    return t.numpy() if g.numpy else t
