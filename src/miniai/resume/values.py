"Values: what an attribute holds, as text to compare, as plain data to save, and put back in place."
import hashlib
import math
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterator
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType
from typing import Any
from weakref import ProxyTypes, ReferenceType

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ['CONTAINERS', 'WEAK', 'ALL', 'SOME', 'is_plain', 'parts_of', 'brief', 'Packer', 'Unpacker', 'memory_of',
           'pack_dense', 'unpack_dense']

_ATOMS = type(None), bool, int, float, str, bytes
WEAK = *ProxyTypes, ReferenceType
_CONSTANTS = (*_ATOMS, complex, np.generic, np.dtype, Enum, PurePath, torch.dtype, torch.device, range, slice, type)
_SEQUENCES, _SETS, _DICTS = (list, tuple, deque, bytearray), (set, frozenset), (dict, OrderedDict, defaultdict, Counter)
CONTAINERS = (*_SEQUENCES, *_SETS, dict)
_NUMBERS = frozenset((  # of numpy, which a checkpoint can hold
    'bool', *(f'{s}int{n}' for s in ('', 'u') for n in (8, 16, 32, 64)), 'float16', 'float32', 'float64', 'complex64',
    'complex128'))
_MANY, _LONGEST = 1000, 200  # items that are read of a container, characters of a text


def is_plain(x: Any) -> bool:
    "Is `x` a number, text, tensor, array or constant, with no objects inside?"
    return isinstance(x, (*_CONSTANTS, Tensor, np.ndarray))


def parts_of(x: Any) -> Iterator[tuple[str, Any]]:
    "The items of a container that are not plain, each with what follows the container's name in its path."
    if isinstance(x, dict): items = _spread(x.items(), _MANY)
    else:
        xs = x if isinstance(x, list | tuple) else list(x)
        items = [(i, xs[i]) for i in _spread(range(len(xs)), _MANY)]
    return ((f'[{k!r}]', v) for k, v in items if type(v) not in _ATOMS)


def _spread(x: Any, most: int) -> list:
    "All items, or `most` of them, from the first to the last."
    x = x if isinstance(x, list | tuple | range) else list(x)
    return [x[i*(len(x) - 1)//(most - 1)] for i in range(most)] if len(x) > most else list(x)


# As text

ALL, SOME, NONE = 2, 1, 0  # how much of a value its text tells


def brief(x: Any, name: Callable[[Any], str | None], budget: int = 1 << 20, inside: tuple = ()) -> tuple[str, int]:
    """Short text that differs where values differ, and how much it tells: of long containers and of arrays of more than
    `budget` bytes only some items are read, of trained tensors none. `name` names objects and tensors of modules."""
    if type(x) in _ATOMS: return _cut(repr(x)), ALL
    if type(x) in WEAK: return 'a weak reference', ALL
    if isinstance(x, Tensor) and (known := name(x)): return known, ALL
    if isinstance(x, Tensor | np.ndarray): return _brief_array(x, budget)
    if isinstance(x, type) or not isinstance(x, (*_CONSTANTS, *CONTAINERS)): return str(name(x)), ALL
    if not isinstance(x, CONTAINERS): return _cut(repr(x)), ALL
    if id(x) in inside: return '…', ALL
    items = _spread(x.items() if isinstance(x, dict) else sorted(x, key=repr) if isinstance(x, _SETS) else x, _MANY)
    parts = [brief(item, name, budget//max(len(items), 1), (*inside, id(x))) for item in items]
    texts = [text for text, _ in parts]
    if isinstance(x, _SETS): texts.sort()
    many = f'{len(x):,} items: ' if len(x) > _MANY else ''
    opened, closed = '()' if isinstance(x, tuple) else '[]'
    kind = '' if type(x) in (list, tuple) else f"{type(x).__name__}{getattr(x, 'maxlen', '')}"
    text = f"{kind}{opened}{many}{', '.join(texts)}{closed}"
    return _cut(text), min([SOME if many else ALL, *(told for _, told in parts)])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f'{text[:60]}… #{_digest(text.encode())}'


def _digest(data: Any) -> str: return hashlib.sha256(data).hexdigest()[:8]


def _brief_array(x: Tensor | np.ndarray, budget: int) -> tuple[str, int]:
    kind, itemsize = f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}", x.dtype.itemsize
    if isinstance(x, Tensor):
        if x.is_leaf and x.requires_grad: return f'parameter {kind}', NONE
        if not _is_dense(x): return f'tensor {kind}', SOME
        x = x.detach().resolve_conj().resolve_neg()
    elif x.dtype.kind not in 'biufc': return f'array {kind}', SOME
    n = math.prod(x.shape)
    if n <= 6: return f'{kind} {x.tolist()}', ALL
    full = n*itemsize <= budget
    if not full:
        x = x[_spread(range(len(x)), 64)].reshape(min(len(x), 64), -1)
        x = x[:, _spread(range(x.shape[1]), max(2, min(1024, budget//(64*itemsize))))]
    if isinstance(x, Tensor): x = x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f'{kind} #{_digest(np.ascontiguousarray(x))}', ALL if full else SOME


def _is_dense(x: Tensor) -> bool:
    "Is this a tensor whose numbers can be read?"
    return x.layout is torch.strided and not (x.is_meta or x.is_quantized or x.is_nested)


# As plain data

class Packer:
    """Packs values as plain data that a checkpoint can hold. `names` are the paths of objects and of the tensors of
    modules, by id: they are packed as references, and so is what comes a second time. `memory` are the paths of those
    tensors by the memory they occupy. `lost` are the paths of what cannot be packed, with its kind."""
    def __init__(self, names: dict[int, str], memory: dict[tuple, str]) -> None:
        self.names, self.memory, self.lost, self._kept = dict(names), memory, {}, []

    def pack(self, x: Any, path: str) -> Any:
        if type(x) in _ATOMS: return x
        if type(x) in WEAK: return ('constant', 'a weak reference')
        if id(x) in self.names: return ('ref', self.names[id(x)])
        if isinstance(x, Enum): return ('enum', self.names.get(id(type(x))), x.name)
        if isinstance(x, PurePath): return ('path', str(x))
        if isinstance(x, complex): return ('complex', x.real, x.imag)
        if isinstance(x, np.generic) and x.dtype.name in _NUMBERS: return x
        if isinstance(x, Tensor): return self._pack_tensor(x, path)
        if type(x) is np.ndarray and x.dtype.isnative and x.dtype.name in _NUMBERS: return self._noted(x, path, x)
        if isinstance(x, CONTAINERS): return self._pack_container(x, path)
        if isinstance(x, (*_CONSTANTS, BuiltinFunctionType)): return ('constant', _name_of(x))
        return self._lose(x, path)

    def _noted(self, x: Any, path: str, packed: Any) -> Any:
        self.names[id(x)] = path
        self._kept.append(x)  # an id is unique only while its object lives
        return packed

    def _lose(self, x: Any, path: str) -> tuple:
        self.lost[path] = type(x).__name__
        return ('lost', type(x).__name__)

    def _pack_container(self, x: Any, path: str) -> Any:
        self._noted(x, path, None)
        if type(x) is list and set(map(type, x)) <= set(_ATOMS): return list(x)
        if type(x) is dict and all(type(k) is str for k in x):
            return {k: self.pack(v, f'{path}[{k!r}]') for k, v in x.items()}
        name = type(x).__name__
        if isinstance(x, dict):
            return ('dict', name, [[self.pack(k, f'{path}.key {i}'), self.pack(v, f'{path}[{k!r}]')]
                                   for i, (k, v) in enumerate(x.items())])
        items = sorted(x, key=repr) if isinstance(x, _SETS) else x
        kind = next(c.__name__ for c in CONTAINERS if isinstance(x, c))
        return (kind, name, getattr(x, 'maxlen', None), [self.pack(v, f'{path}[{i}]') for i, v in enumerate(items)])

    def _pack_tensor(self, x: Tensor, path: str) -> Any:
        if memory_of(x) in self.memory: return ('alias', self.memory[memory_of(x)])
        if type(x) not in (Tensor, nn.Parameter) or not (_is_dense(x) or x.is_sparse): return self._lose(x, path)
        data = self._noted(x, path, x.detach())
        if type(x) is Tensor and x.is_cpu and x.layout is torch.strided and not (x.is_leaf and x.requires_grad):
            return data
        return ('tensor', dict(data=pack_dense(data), device=str(x.device), parameter=isinstance(x, nn.Parameter),
                               requires_grad=x.is_leaf and x.requires_grad,
                               grad=pack_dense(x.grad) if x.is_leaf else None))


def _name_of(x: Any) -> str: return getattr(x, '__qualname__', None) or repr(x)


def memory_of(x: Tensor) -> tuple:
    "Equal for two tensors that are the same memory, seen in the same way."
    if x.layout is not torch.strided or x.is_meta or not x.numel(): return (id(x),)
    return x.device, x.data_ptr(), x.dtype, tuple(x.shape), x.stride()


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
        if kind == 'alias' and rest[0] in self.objects: return self.objects[rest[0]].detach()
        if kind == 'enum' and rest[1] in getattr(self.objects.get(rest[0], type(live)), '__members__', ()):
            return self.objects.get(rest[0], type(live))[rest[1]]
        if kind == 'path': return (type(live) if isinstance(live, PurePath) else Path)(rest[0])
        if kind == 'complex': return complex(*rest)
        if kind == 'tensor': return self._note(path, self._whole_tensor(rest[0], live))
        if kind == 'dict': return self._dict(live, *rest, path)
        if kind in _MAKERS: return self._sequence(kind, live, *rest, path)
        if not (kind == 'constant' and rest[0] == _name_of(live)): self.lost.append(path)
        return live

    def _note(self, path: str, x: Any) -> Any:
        self.objects[path] = self._filled[id(x)] = x
        return x

    def _tensor(self, saved: Tensor, live: Any, trained: bool) -> Tensor:
        fits = isinstance(live, Tensor) and (live.shape, live.dtype) == (saved.shape, saved.dtype)
        mine = fits and live.layout is torch.strided and live.untyped_storage().data_ptr() not in self.taken
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
        there = list(live) if isinstance(live, _SEQUENCES) else []
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
        kinds = {c.__name__: c for c in _DICTS}
        if not isinstance(live, dict) or type(live).__name__ != name:
            if name not in kinds or name == 'defaultdict': self.lost.append(path)
            live = kinds.get(name, dict)()
        self._note(path, live)
        there = dict(live)
        keys = [self.unpack(k, _constant_in(there, k), f'{path}.key {i}') for i, (k, _) in enumerate(pairs)]
        new = {k: self.unpack(v, there.get(k), f'{path}[{k!r}]') for k, (_, v) in zip(keys, pairs, strict=True)}
        live.clear()
        live.update(new)
        return live


def _constant_in(live: Collection, packed: Any) -> Any:
    "The constant that was packed as `packed`, if it is among the live values."
    if type(packed) is not tuple or packed[0] not in ('constant', 'enum'): return None
    names = {getattr(x, 'name', _name_of(x)): x for x in live if isinstance(x, _CONSTANTS)}
    return names.get(packed[-1])


_MAKERS = dict(list=list, tuple=tuple, deque=deque, bytearray=bytearray, set=set, frozenset=frozenset)
