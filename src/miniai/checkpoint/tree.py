"""A nest of plain values and tensors as JSON beside named tensors, and back. Knows no file.

What JSON has stands as it is. What it has not is an object of one key that starts with `$`: `$tuple`, `$dict`
(pairs; for keys that are ints or start with `$`), `$ordered`, `$int` (beyond 64 bits, in hex), `$float` (nan and
inf, by their bits), `$bytes` (base64), `$scalar` (numpy's: dtype and bytes), `$tensor` (the tensor's name), `$floats`
and `$ints` (a long list of nothing else, as a tensor by its name). No tag names code."""
import base64
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import count
from math import isfinite
from typing import Any

import numpy as np
from torch import from_numpy

from miniai.checkpoint.errors import Malformed
from miniai.checkpoint.geometry import Geometry, Leaf, is_array, leaf_of

__all__ = ['flatten', 'unflatten', 'top_scalars']

_DEEPEST = 50
_LONG = 64  # numbers; from here on a list of them is shorter, and quicker, as a tensor than as text
_NUMBERS = {'$floats': np.float64, '$ints': np.int64}
_SCALARS = ('bool', 'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64', 'float16', 'float32',
            'float64', 'complex64', 'complex128')


def flatten(state: Any) -> tuple[Any, dict[str, Leaf]]:
    """What JSON can hold of `state`, and its tensors by name: the path where each was met first. Memory met again
    with the same geometry is the same tensor. TypeError, naming the path, for anything else than plain values."""
    flat = _Flat()
    return flat.encode(state, ()), flat.leaves


class _Flat:
    def __init__(self) -> None: self.leaves, self.known = {}, {}

    def encode(self, x: Any, path: tuple) -> Any:
        if len(path) > _DEEPEST:
            raise TypeError(f'{_spelt(path[:4])}… is nested deeper than {_DEEPEST} levels, or contains itself')
        if type(x) in _ENCODERS: return _ENCODERS[type(x)](self, x, path)
        if is_array(x): return {'$tensor': self.name_of(x, path)}
        if isinstance(x, np.generic) and x.dtype.name in _SCALARS: return {'$scalar': [x.dtype.name, x.tobytes().hex()]}
        raise TypeError(f'{_spelt(path)} is a {type(x).__module__}.{type(x).__qualname__}, which a checkpoint cannot '
                        f'hold: give dict, list, tuple, None, numbers, text, bytes, tensors and numpy arrays')

    def items(self, xs: list | tuple, path: tuple) -> list:
        return [self.encode(x, (*path, i)) for i, x in enumerate(xs)]

    def listed(self, xs: list, path: tuple) -> Any:
        tag = _tag_of_numbers(xs) if len(xs) >= _LONG else None
        return {tag: self.name_of(from_numpy(np.array(xs, _NUMBERS[tag])), path)} if tag else self.items(xs, path)

    def mapping(self, d: dict, path: tuple) -> dict:
        for k in d: _check_key(k, path)
        if all(type(k) is str and not k.startswith('$') for k in d):
            return {k: self.encode(x, (*path, k)) for k, x in d.items()}
        return {'$dict': self.pairs(d, path)}

    def pairs(self, d: dict, path: tuple) -> list:
        for k in d: _check_key(k, path)
        return [[self.encode(k, path), self.encode(x, (*path, k))] for k, x in d.items()]

    def name_of(self, x: Any, path: tuple) -> str:
        try: leaf = leaf_of(x)
        except TypeError as e: raise TypeError(f'{_spelt(path)} is {e}, which a checkpoint cannot hold') from None
        key = _identity(x)
        if key not in self.known:
            self.known[key] = name = _free_name(path, self.leaves)
            self.leaves[name] = leaf
        return self.known[key]


def _tag_of_numbers(xs: list) -> str | None:
    kinds = set(map(type, xs))
    if kinds == {float}: return '$floats'
    return '$ints' if kinds == {int} and min(xs) >= -2**63 and max(xs) < 2**63 else None


def _check_key(k: Any, path: tuple) -> None:
    if type(k) not in (str, int): raise TypeError(f'{_spelt(path)} has the key {k!r}; keys must be str or int')


def _identity(x: Any) -> tuple:
    """Equal for two that are the same memory, seen alike: by whoever gave them, not as a copy for the file may lie;
    empty ones and lazily conjugated ones only for the same object."""
    if 0 in x.shape: return (id(x),)
    if isinstance(x, np.ndarray): return x.ctypes.data, x.dtype.str, x.shape, x.strides
    return (id(x),) if x.is_conj() or x.is_neg() else (x.data_ptr(), x.dtype, x.shape, x.stride(), x.device)


def _spelt(path: tuple) -> str: return 'state' + ''.join(f'[{p!r}]' for p in path)


def _free_name(path: tuple, taken: Mapping) -> str:
    "The path with slashes, as plain text that no other tensor has as its name."
    text = '/'.join(str(p) for p in path) or 'state'
    text = ''.join(c if c.isprintable() else '�' for c in text)
    names = (text if n == 1 else f'{text}~{n}' for n in count(1))
    return next(nm for nm in names if nm not in taken and nm != '__metadata__')


def _int(_: _Flat, x: int, path: tuple) -> Any: return x if abs(x) < 2**63 else {'$int': hex(x)}
def _float(_: _Flat, x: float, path: tuple) -> Any: return x if isfinite(x) else {'$float': struct.pack('>d', x).hex()}
def _bytes(_: _Flat, x: bytes, path: tuple) -> Any: return {'$bytes': base64.b64encode(x).decode('ascii')}
def _same(_: _Flat, x: Any, path: tuple) -> Any: return x


_ENCODERS: dict[type, Callable] = {
    type(None): _same, bool: _same, str: _same, int: _int, float: _float, bytes: _bytes, list: _Flat.listed,
    dict: _Flat.mapping, tuple: lambda flat, x, path: {'$tuple': flat.items(x, path)},
    OrderedDict: lambda flat, x, path: {'$ordered': flat.pairs(x, path)}}


def unflatten(json: Any, tensors: Mapping[str, Any]) -> Any:
    """The state again, from its JSON and its tensors by name: two places with one name get one object. Malformed if
    it lies."""
    seen = {}
    state = _decode(json, tensors, seen, 0)
    if unused := tensors.keys() - seen.keys(): raise Malformed(f'the tensor {min(unused)!r} has no place in the state')
    return state


def _decode(x: Any, tensors: Mapping, seen: dict, depth: int) -> Any:
    if depth > _DEEPEST: raise Malformed('the state is nested too deeply')
    def inner(y: Any) -> Any: return _decode(y, tensors, seen, depth + 1)
    if isinstance(x, list): return [inner(y) for y in x]
    if not isinstance(x, dict): return x
    tag, value = next(iter(x.items()), ('', None))
    if not tag.startswith('$'): return {k: inner(y) for k, y in x.items()}
    if len(x) > 1 or tag not in (*_DECODERS, *_NUMBERS, '$tensor'):
        raise Malformed(f'the state holds {tag!r}, which means nothing')
    if tag in _DECODERS: return _DECODERS[tag](value, inner)
    x = _tensor(value, tag, tensors, seen)
    return x if tag == '$tensor' else _numbers(value, x, _NUMBERS[tag].__name__)


def _tensor(name: Any, tag: str, tensors: Mapping, seen: dict) -> Any:
    "The tensor of that name: in many places if it is one in all of them, in one if it is a list there."
    if not isinstance(name, str) or name not in tensors:
        raise Malformed(f'the state refers to {name!r}, a tensor that is not there')
    if name in seen and (tag, seen[name]) != ('$tensor', '$tensor'):
        raise Malformed(f'the state takes {name!r} for a list, and has it twice')
    seen[name] = tag
    return tensors[name]


def _numbers(name: str, x: Any, dtype: str) -> Any:
    "A tensor as the list that it was: without strides, so that a small file makes no long lists."
    if isinstance(x, np.ndarray) or not _is_row(x if isinstance(x, Geometry) else leaf_of(x).geometry, dtype):
        raise Malformed(f'the state takes {name!r} for a list of {dtype}, which it is not')
    return x if isinstance(x, Geometry) else x.tolist()


def _is_row(g: Geometry, dtype: str) -> bool:
    return g.dtype == dtype and not g.numpy and len(g.shape) == 1 and g.is_contiguous


def _list_of(x: Any) -> list:
    if not isinstance(x, list): raise Malformed('the state has something else where a list should be')
    return x


def _pairs(x: Any, inner: Callable) -> list:
    pairs = [(inner(k), inner(v)) for k, v in (_pair(p) for p in _list_of(x))]
    for k, _ in pairs:
        if type(k) not in (str, int): raise Malformed('the state has a key that is neither text nor an int')
    if len({k for k, _ in pairs}) < len(pairs): raise Malformed('the state has a key twice')
    return pairs


def _pair(x: Any) -> list:
    if not isinstance(x, list) or len(x) != 2: raise Malformed('the state has something else where a pair should be')
    return x


def _text(x: Any) -> str:
    if not isinstance(x, str): raise Malformed('the state has something else where text should be')
    return x


def _scalar(x: Any) -> np.generic:
    name, data = _pair(x)
    if name not in _SCALARS: raise Malformed(f'the state has a numpy scalar of unknown type {name!r}')
    raw, dtype = bytes.fromhex(_text(data)), np.dtype(name)
    if len(raw) != dtype.itemsize: raise Malformed(f'the state has a {name} of {len(raw)} bytes')
    return np.frombuffer(raw, dtype)[0]


def _from_hex(x: Any) -> int:
    if not re.fullmatch('-?0x[0-9a-f]+', _text(x)): raise Malformed('the state has an int that is no number')
    return int(x, 16)


def _from_bits(x: Any) -> float:
    raw = bytes.fromhex(_text(x))
    if len(raw) != 8: raise Malformed(f'the state has a float of {len(raw)} bytes')
    return struct.unpack('>d', raw)[0]


_DECODERS: dict[str, Callable] = {
    '$tuple': lambda x, inner: tuple(inner(y) for y in _list_of(x)), '$dict': lambda x, inner: dict(_pairs(x, inner)),
    '$ordered': lambda x, inner: OrderedDict(_pairs(x, inner)), '$int': lambda x, _: _from_hex(x),
    '$float': lambda x, _: _from_bits(x), '$scalar': lambda x, _: _scalar(x),
    '$bytes': lambda x, _: base64.b64decode(_text(x).encode('ascii'), validate=True)}


def top_scalars(state: Any) -> dict[str, Any]:
    "The numbers and texts, None and bools of the state's top two levels, by path."
    out = {}
    for k, x in _children(state):
        for path, v in [(k, x), *((f'{k}/{j}', y) for j, y in _children(x))]:
            if v is None or isinstance(v, bool | int | float | str | np.generic): out[path] = v
    return out


def _children(x: Any) -> list[tuple[str, Any]]:
    return [(str(k), v) for k, v in x.items()] if isinstance(x, dict) else []
