"""A nested state as JSON plus named tensors, and back.

What JSON can hold is written as it is. Anything else is an object with one key that starts with `$`: `$tuple`,
`$dict` (pairs, for keys that are ints or start with `$`), `$ordered` (an OrderedDict), `$int` (beyond 64 bits, in hex),
`$float` (nan and inf, by their bits), `$bytes` (base64), `$scalar` (a numpy scalar: dtype and bytes), `$tensor` (its
name), `$floats` and `$ints` (a long list of only those, stored as a tensor). No tag names code."""
import base64
import re
import struct
from collections import OrderedDict
from collections.abc import Mapping
from itertools import count
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from miniai.checkpoint.errors import Malformed
from miniai.checkpoint.geometry import Geometry, Leaf, is_dense, leaf_of

__all__ = ['flatten', 'unflatten', 'top_scalars']

_DEEPEST = 50
_LONG = 64  # numbers; a list of at least this many is smaller, and faster to read, as a tensor
_NUMBERS = {'$floats': np.float64, '$ints': np.int64}
_SCALARS = ('bool', 'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64', 'float16', 'float32',
            'float64', 'complex64', 'complex128')


def flatten(state: Any) -> tuple[Any, dict[str, Leaf]]:
    """The state as JSON values, and its tensors by name: the path where each comes first. Memory that comes again
    with the same geometry is the same tensor. TypeError with the path for a value that a checkpoint cannot hold."""
    flat = _Flattener()
    return flat.encode(state, ()), flat.leaves


class _Flattener:
    def __init__(self) -> None: self.leaves, self.names = {}, {}

    def encode(self, x: Any, path: tuple) -> Any:
        if len(path) > _DEEPEST:
            raise TypeError(f'{_shown(path[:4])}… is nested more than {_DEEPEST} levels deep, or contains itself')
        kind = type(x)
        if x is None or kind is str or kind is bool: return x
        if kind is int: return x if abs(x) < 2**63 else {'$int': hex(x)}
        if kind is float: return x if isfinite(x) else {'$float': struct.pack('>d', x).hex()}
        if kind is bytes: return {'$bytes': base64.b64encode(x).decode('ascii')}
        if kind is list: return self._list(x, path)
        if kind is tuple: return {'$tuple': self._items(x, path)}
        if kind is dict: return self._dict(x, path)
        if kind is OrderedDict: return {'$ordered': self._pairs(x, path)}
        if isinstance(x, Tensor | np.ndarray): return {'$tensor': self._name(x, path)}
        if isinstance(x, np.generic) and x.dtype.name in _SCALARS: return {'$scalar': [x.dtype.name, x.tobytes().hex()]}
        raise TypeError(f'{_shown(path)} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold: '
                        f'use dict, list, tuple, None, numbers, text, bytes, tensors and numpy arrays')

    def _items(self, xs: list | tuple, path: tuple) -> list:
        return [self.encode(x, (*path, i)) for i, x in enumerate(xs)]

    def _list(self, xs: list, path: tuple) -> Any:
        kinds, tag = set(map(type, xs)) if len(xs) >= _LONG else set(), None
        if kinds == {float}: tag = '$floats'
        if kinds == {int} and min(xs) >= -2**63 and max(xs) < 2**63: tag = '$ints'
        return {tag: self._name(from_numpy(np.array(xs, _NUMBERS[tag])), path)} if tag else self._items(xs, path)

    def _dict(self, d: dict, path: tuple) -> dict:
        if not all(type(k) is str and not k.startswith('$') for k in d): return {'$dict': self._pairs(d, path)}
        return {k: self.encode(x, (*path, k)) for k, x in d.items()}

    def _pairs(self, d: dict, path: tuple) -> list:
        for k in d:
            if type(k) not in (str, int): raise TypeError(f'{_shown(path)} has the key {k!r}; keys must be str or int')
        return [[self.encode(k, path), self.encode(x, (*path, k))] for k, x in d.items()]

    def _name(self, x: Tensor | np.ndarray, path: tuple) -> str:
        "The name of a tensor: the one it got before, or its path with slashes, made printable and unique."
        try: leaf = leaf_of(x)
        except TypeError as e: raise TypeError(f'{_shown(path)} is {e}, which a checkpoint cannot hold') from None
        key = _identity(x)
        if key not in self.names:
            text = ''.join(c if c.isprintable() else '�' for c in '/'.join(map(str, path)) or 'state')
            names = (text if n == 1 else f'{text}~{n}' for n in count(1))
            self.names[key] = name = next(nm for nm in names if nm not in self.leaves and nm != '__metadata__')
            self.leaves[name] = leaf
        return self.names[key]


def _identity(x: Tensor | np.ndarray) -> tuple:
    """Equal for two tensors or arrays that share memory, dtype, shape and strides. Computed before any copy for the
    file is made; empty and lazily conjugated ones are equal only to themselves."""
    if 0 in x.shape: return (id(x),)
    if isinstance(x, np.ndarray): return x.ctypes.data, x.dtype.str, x.shape, x.strides
    return (id(x),) if x.is_conj() or x.is_neg() else (x.data_ptr(), x.dtype, x.shape, x.stride(), x.device)


def _shown(path: tuple) -> str: return 'state' + ''.join(f'[{p!r}]' for p in path)


def unflatten(json: Any, tensors: Mapping[str, Any]) -> Any:
    """The state from its JSON values and its tensors (or their geometries) by name. Two places with the same name get
    the same object. Malformed if the JSON does not describe a state, or leaves a tensor unused."""
    flat = _Unflattener(tensors)
    state = flat.decode(json, 0)
    if unused := tensors.keys() - flat.seen.keys(): raise Malformed(f'the tensor {min(unused)!r} is not in the state')
    return state


class _Unflattener:
    def __init__(self, tensors: Mapping[str, Any]) -> None: self.tensors, self.seen = tensors, {}

    def decode(self, x: Any, depth: int) -> Any:
        if depth > _DEEPEST: raise Malformed('the state is nested too deeply')
        if isinstance(x, list): return [self.decode(y, depth + 1) for y in x]
        if not isinstance(x, dict): return x
        tag, value = next(iter(x.items()), ('', None))
        if not tag.startswith('$'): return {k: self.decode(y, depth + 1) for k, y in x.items()}
        if len(x) > 1: raise Malformed(f'the state has other keys next to {tag!r}')
        match tag:
            case '$tensor': return self._tensor(value, tag)
            case '$floats' | '$ints': return self._numbers(value, tag)
            case '$tuple': return tuple(self.decode(y, depth + 1) for y in _checked(value, list))
            case '$dict': return dict(self._pairs(value, depth))
            case '$ordered': return OrderedDict(self._pairs(value, depth))
            case '$scalar': return _scalar(value)
            case '$bytes': return base64.b64decode(_checked(value, str).encode('ascii'), validate=True)
            case '$float': return struct.unpack('>d', _raw(value, 8))[0]
            case '$int':
                if not re.fullmatch('-?0x[0-9a-f]+', _checked(value, str)): raise Malformed('an int is not in hex')
                return int(value, 16)
        raise Malformed(f'the state has the unknown tag {tag!r}')

    def _pairs(self, x: Any, depth: int) -> list:
        pairs = [[self.decode(y, depth + 1) for y in _checked(pair, list, 2)] for pair in _checked(x, list)]
        keys = [k for k, _ in pairs]
        if not all(type(k) in (str, int) for k in keys): raise Malformed('a key in the state is not text or an int')
        if len(set(keys)) < len(keys): raise Malformed('the state has a key twice')
        return pairs

    def _tensor(self, name: Any, tag: str) -> Any:
        "The tensor `name`: it may be in many places, but a list only in one."
        if not isinstance(name, str) or name not in self.tensors:
            raise Malformed(f'the state refers to {name!r}, a tensor that is not in the file')
        if name in self.seen and (tag, self.seen[name]) != ('$tensor', '$tensor'):
            raise Malformed(f'the state uses {name!r} as a list and has it twice')
        self.seen[name] = tag
        return self.tensors[name]

    def _numbers(self, name: Any, tag: str) -> Any:
        "The list that was saved as a tensor. It must be dense: with stride 0, a small file could make a huge list."
        x, dtype = self._tensor(name, tag), _NUMBERS[tag].__name__
        g = x if isinstance(x, Geometry) else None if isinstance(x, np.ndarray) else leaf_of(x).geometry
        if not g or g.numpy or g.dtype != dtype or len(g.shape) != 1 or not is_dense(g.shape, g.stride):
            raise Malformed(f'the state uses {name!r} as a list of {dtype}, which it is not')
        return x if isinstance(x, Geometry) else x.tolist()


def _checked(x: Any, kind: type, length: int | None = None) -> Any:
    "`x`, if it is of this kind and length; else Malformed."
    if isinstance(x, kind) and length in (None, len(x)): return x
    size = '' if length is None else f' of {length}'
    raise Malformed(f'the state has a {type(x).__name__} where it needs a {kind.__name__}{size}')


def _raw(x: Any, n: int) -> bytes:
    raw = bytes.fromhex(_checked(x, str))
    if len(raw) != n: raise Malformed(f'a number in the state has {len(raw)} bytes instead of {n}')
    return raw


def _scalar(x: Any) -> np.generic:
    name, data = _checked(x, list, 2)
    if name not in _SCALARS: raise Malformed(f'the state has a numpy scalar of unknown type {name!r}')
    return np.frombuffer(_raw(data, np.dtype(name).itemsize), name)[0]


def top_scalars(state: Any) -> dict[str, Any]:
    "Numbers, text, None and bools in the top two levels of the state, by path."
    out = {}
    for k, x in _children(state):
        for path, v in [(k, x), *((f'{k}/{j}', y) for j, y in _children(x))]:
            if v is None or isinstance(v, bool | int | float | str | np.generic): out[path] = v
    return out


def _children(x: Any) -> list[tuple[str, Any]]:
    return [(str(k), v) for k, v in x.items()] if isinstance(x, dict) else []
