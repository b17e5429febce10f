"Values packed as plain data that a checkpoint can hold, and put back in place."
from collections import deque
from collections.abc import Collection
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniai.distributed.dtensor import is_dtensor
from miniai.resume.values import (
    ATOMS,
    CONSTANTS,
    CONTAINERS,
    DICTS,
    SEQUENCES,
    SETS,
    WEAK,
    is_container,
    is_dense,
    key_text,
    name_of,
)

__all__ = ['Packer', 'Unpacker', 'memory_of', 'pack_dense', 'unpack_dense']

_NUMBERS = frozenset((  # of numpy, which a checkpoint can hold
    'bool', *(f'{s}int{n}' for s in ('', 'u') for n in (8, 16, 32, 64)), 'float16', 'float32', 'float64', 'complex64',
    'complex128'))


class Packer:
    """Packs values as plain data that a checkpoint can hold. `names` are the paths of objects and of the tensors of
    modules, by id: they are packed as references, and so is what comes a second time. `memory` are the paths of those
    tensors by the memory they occupy. `lost` are the paths of what cannot be packed, with its kind."""
    def __init__(self, names: dict[int, str], memory: dict[tuple, tuple[str, Tensor]]) -> None:
        self.names, self.memory, self.lost, self._kept = dict(names), memory, {}, []

    def pack(self, x: Any, path: str) -> Any:
        if type(x) in ATOMS: return x
        if type(x) in WEAK: return ('constant', 'a weak reference')
        if id(x) in self.names: return ('ref', self.names[id(x)])
        if isinstance(x, Enum):
            return ('enum', self.names.get(id(type(x))), x.name, x.value if type(x.value) in ATOMS else None)
        if isinstance(x, PurePath): return ('path', str(x))
        if isinstance(x, complex): return ('complex', x.real, x.imag)
        if isinstance(x, np.generic) and x.dtype.name in _NUMBERS: return x
        if isinstance(x, Tensor): return self._pack_tensor(x, path)
        if type(x) is np.ndarray and x.dtype.isnative and x.dtype.name in _NUMBERS: return self._pack_array(x, path)
        if is_container(x): return self._pack_container(x, path)
        if isinstance(x, (*CONSTANTS, BuiltinFunctionType)): return ('constant', name_of(x))
        return self._lose(x, path)

    def _noted(self, x: Any, path: str, packed: Any) -> Any:
        self.names[id(x)] = path
        self._kept.append(x)  # an id is unique only while its object lives
        return packed

    def _lose(self, x: Any, path: str) -> tuple:
        self.lost[path] = type(x).__name__
        return ('lost', type(x).__name__)

    def _pack_array(self, x: np.ndarray, path: str) -> Any:
        plain = x.flags.writeable and all(s >= 0 and s % x.itemsize == 0 for s in x.strides)
        view = self.view_of(torch.from_numpy(x)) if plain and x.size else None
        return self._noted(x, path, ('view', True, *view) if view else x)

    def view_of(self, x: Tensor) -> tuple | None:
        "Where in a module's tensor this one lies: its path, shape, strides and offset; None if it does not."
        owner, base = self.memory.get(_storage_of(x), (None, None))
        if base is None or base.dtype != x.dtype: return None
        offset = (x.data_ptr() - base.data_ptr())//x.element_size()
        return (owner, list(x.shape), list(x.stride()), offset) if offset >= 0 else None

    def _pack_container(self, x: Any, path: str) -> Any:
        self._noted(x, path, None)
        if type(x) is list and set(map(type, x)) <= set(ATOMS): return list(x)
        if type(x) is dict and all(type(k) is str for k in x):
            return {k: self.pack(v, f'{path}[{k!r}]') for k, v in list(x.items())}
        name = type(x).__name__
        if isinstance(x, dict):
            return ('dict', name, [[self.pack(k, f'{path}.key {i}'), self.pack(v, f'{path}{key_text(k, i)}')]
                                   for i, (k, v) in enumerate(list(x.items()))])
        items = sorted(x, key=repr) if isinstance(x, SETS) else x
        kind = name if type(x) in CONTAINERS else 'tuple'
        packed = [self.pack(v, f'{path}[{i}]') for i, v in enumerate(items)]
        return (kind, name, x.maxlen if type(x) is deque else None, packed)

    def _pack_tensor(self, x: Tensor, path: str) -> Any:
        if is_dtensor(x): return self._noted(x, path, x.detach())
        view = self.view_of(x) if type(x) is Tensor and is_dense(x) else None
        if view: return ('view', False, *view)
        if type(x) not in (Tensor, nn.Parameter) or not (is_dense(x) or x.is_sparse): return self._lose(x, path)
        data = self._noted(x, path, x.detach())
        if type(x) is Tensor and x.is_cpu and x.layout is torch.strided and not (x.is_leaf and x.requires_grad):
            return data
        return ('tensor', dict(data=pack_dense(data), device=str(x.device), parameter=isinstance(x, nn.Parameter),
                               requires_grad=x.is_leaf and x.requires_grad,
                               grad=pack_dense(x.grad) if x.is_leaf else None))


def memory_of(tensors: dict[str, Tensor]) -> dict[tuple, tuple[str, Tensor]]:
    "The path and the tensor, by the memory it occupies. Of several in one memory, the one that begins first."
    dense = [(path, x) for path, x in tensors.items() if is_dense(x) and x.numel()]
    return {_storage_of(x): (path, x) for path, x in sorted(dense, key=lambda item: -item[1].data_ptr())}


def _storage_of(x: Tensor) -> tuple: return (x.device, x.untyped_storage().data_ptr())


def pack_dense(x: Tensor | None) -> Any:
    "A dense tensor as it is; a sparse one as a dict of its parts."
    if x is None or x.layout is torch.strided: return x
    return dict(indices=x._indices(), values=x._values(), shape=list(x.shape), coalesced=x.is_coalesced())


def unpack_dense(x: Any) -> Any:
    "What `pack_dense` packed."
    if x is None or isinstance(x, Tensor): return x
    return torch.sparse_coo_tensor(x['indices'], x['values'], x['shape'], is_coalesced=x['coalesced'],
                                   check_invariants=True)


# Put back

class Unpacker:
    """Puts packed values back, into the tensors and containers that are there already wherever they fit, since others
    may refer to them. `objects` are those of the run, by path, and `device` is for new tensors that were not on the
    CPU. Memory in `taken`, by address, belongs to modules and is not written to. `lost` collects the paths of what
    could not be restored."""
    def __init__(self, objects: dict[str, Any], taken: set[int], device: Any) -> None:
        self.objects, self.taken, self.device, self.lost, self._filled = objects, taken, device, [], {}

    def unpack(self, packed: Any, live: Any, path: str) -> Any:
        "The value packed as `packed`, in place of `live`."
        if type(live) in WEAK or id(live) in self._filled: live = None  # one object that was two when saved
        if isinstance(packed, Tensor): return self._note(path, self._tensor(packed, live, False))
        if isinstance(packed, np.ndarray): return self._note(path, self._array(packed, live))
        if type(packed) is list: return self._fill(live, list, packed, path)
        if type(packed) is dict: return self._dict(live, 'dict', list(packed.items()), path)
        if type(packed) is not tuple: return packed
        kind, *rest = packed
        if kind == 'ref' and rest[0] in self.objects: return self.objects[rest[0]]
        if kind == 'view' and rest[1] in self.objects: return self._view(*rest)
        if kind == 'enum' and (cls := self.objects.get(rest[0], type(live) if isinstance(live, Enum) else None)):
            return cls[rest[1]] if rest[1] in cls.__members__ else cls(rest[2])
        if kind == 'path': return (type(live) if isinstance(live, PurePath) else Path)(rest[0])
        if kind == 'complex': return complex(*rest)
        if kind == 'tensor': return self._note(path, self._whole_tensor(rest[0], live))
        if kind == 'dict': return self._dict(live, *rest, path)
        if kind in _MAKERS: return self._sequence(kind, live, *rest, path)
        if not (kind == 'constant' and rest[0] == name_of(live)): self.lost.append(path)
        return live

    def _view(self, numpy: bool, owner: str, shape: list, stride: list, offset: int) -> Any:
        base = self.objects[owner].detach()
        x = base.as_strided(shape, stride, base.storage_offset() + offset)
        return x.numpy() if numpy else x

    def _note(self, path: str, x: Any) -> Any:
        self.objects[path] = self._filled[id(x)] = x
        return x

    def _tensor(self, saved: Tensor, live: Any, trained: bool) -> Tensor:
        if is_dtensor(saved): return saved.clone()
        fits = isinstance(live, Tensor) and (live.shape, live.dtype) == (saved.shape, saved.dtype)
        mine = fits and is_dense(live) and live.untyped_storage().data_ptr() not in self.taken
        if mine and (trained or not (live.is_leaf and live.requires_grad)):
            try:
                with torch.no_grad(): live.detach().copy_(saved)
                return live
            except RuntimeError: pass  # an expanded tensor, whose elements share memory
        return saved.clone()

    def _whole_tensor(self, saved: dict[str, Any], live: Any) -> Tensor:
        x = self._tensor(unpack_dense(saved['data']), live, saved['requires_grad'])
        if x is not live:
            if saved['device'] != 'cpu': x = x.to(self.device)
            if saved['parameter']: x = nn.Parameter(x, saved['requires_grad'])
        if x.is_leaf and x.is_floating_point(): x.requires_grad_(saved['requires_grad'])
        grad = unpack_dense(saved['grad'])
        if x.is_leaf: x.grad = None if grad is None else grad.to(x.device, copy=True)
        return x

    def _array(self, saved: np.ndarray, live: Any) -> np.ndarray:
        fits = isinstance(live, np.ndarray) and (live.shape, live.dtype) == (saved.shape, saved.dtype)
        root = live
        while fits and isinstance(root.base, np.ndarray): root = root.base
        if not (fits and live.flags.writeable and root.ctypes.data not in self.taken): return saved.copy()
        live[...] = saved
        return live

    def _sequence(self, kind: str, live: Any, name: str, maxlen: int | None, items: list, path: str) -> Any:
        there = list(live) if isinstance(live, SEQUENCES) else []
        if type(live).__name__ != name:
            if name != kind: self.lost.append(path)  # a class of the user's, which cannot be made again
            live = None
        if kind == 'deque' and (live is None or live.maxlen != maxlen): live = deque(maxlen=maxlen)
        if kind in ('list', 'deque', 'set', 'bytearray'):  # noted first: the items may refer to it
            live = self._note(path, _MAKERS[kind]() if live is None else live)
        olds = [_constant_in(live or (), v) for v in items] if kind in ('set', 'frozenset') else there
        new = [self.unpack(v, olds[i] if i < len(olds) else None, f'{path}[{i}]') for i, v in enumerate(items)]
        if hasattr(type(live), '_make'): return self._note(path, type(live)._make(new))
        return self._fill(live, _MAKERS[kind], new, path)

    def _fill(self, live: Any, make: type, items: list, path: str) -> Any:
        "Make `live` hold these items, if it is of the right kind; else a new container."
        if make in (tuple, frozenset): return self._note(path, make(items))
        live = self._note(path, live if isinstance(live, make) else make())
        if make in (list, bytearray): live[:] = items
        elif make is set: live.clear(), live.update(items)
        else: live.clear(), live.extend(items)
        return live

    def _dict(self, live: Any, name: str, pairs: list, path: str) -> Any:
        kinds = {c.__name__: c for c in DICTS}
        if not isinstance(live, dict) or type(live).__name__ != name:
            if name not in kinds or name == 'defaultdict': self.lost.append(path)
            live = kinds.get(name, dict)()
        self._note(path, live)
        there = dict(live)
        keys = [self.unpack(k, _constant_in(there, k), f'{path}.key {i}') for i, (k, _) in enumerate(pairs)]
        new = {k: self.unpack(v, there.get(k), f'{path}{key_text(k, i)}')
               for i, (k, (_, v)) in enumerate(zip(keys, pairs, strict=True))}
        live.clear()
        live.update(new)
        return live


def _constant_in(live: Collection, packed: Any) -> Any:
    "The constant that was packed as `packed`, if it is among the live values."
    if type(packed) is not tuple or packed[0] not in ('constant', 'enum'): return None
    wanted = packed[2] if packed[0] == 'enum' else packed[1]
    def name(x: Any) -> str: return x.name if isinstance(x, Enum) else name_of(x)
    return next((x for x in live if isinstance(x, CONSTANTS) and name(x) == wanted), None)


_MAKERS = dict(list=list, tuple=tuple, deque=deque, bytearray=bytearray, set=set, frozenset=frozenset)
