"""A nested state as JSON plus named tensors, and back.

What JSON can hold is written as it is. Anything else is an object with one key that starts with `$`: `$tuple`,
`$dict` (pairs, for keys that are ints or start with `$`), `$ordered` (an OrderedDict), `$int` (beyond 64 bits, in hex),
`$float` (nan and inf, by their bits), `$bytes` (base64), `$scalar` (a numpy scalar: dtype and bytes), `$tensor` (its
name), `$floats` and `$ints` (a long list of only those, stored as a tensor), `$sharded` (a tensor in other files:
its name there, shape and dtype). No tag names code."""
import base64
import struct
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from math import isfinite
from typing import Any

import numpy as np
from torch import Tensor, from_numpy

from miniai.checkpoint.layout import Layout, layout_of

__all__ = ['Sharded', 'flatten', 'unflatten']

_DEEPEST = 50
_LONG = 64  # numbers; a list of at least this many is smaller, and faster to read, as a tensor
_SCALARS = ('bool', 'int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'int64', 'uint64', 'float16', 'float32',
            'float64', 'complex64', 'complex128')


@dataclass(frozen=True)
class Sharded:
    "Stands for a tensor whose parts are in other files, under `name`; `dtype` is torch's name of it."
    name: str
    shape: tuple[int, ...]
    dtype: str


def flatten(state: Any) -> tuple[Any, dict[str, tuple[Layout, Tensor]]]:
    """The state as JSON values, and its tensors by name: the path where each comes first. Memory that comes again with
    the same layout is the same tensor. TypeError with the path for a value that a checkpoint cannot hold."""
    leaves, names = {}, {}

    def encode(x: Any, path: tuple) -> Any:
        if len(path) > _DEEPEST:
            raise TypeError(f'{_shown(path[:4])}… is nested more than {_DEEPEST} levels deep, or contains itself')
        kind = type(x)
        if x is None or kind is str or kind is bool: return x
        if kind is int: return x if abs(x) < 2**63 else {'$int': hex(x)}
        if kind is float: return x if isfinite(x) else {'$float': struct.pack('>d', x).hex()}
        if kind is bytes: return {'$bytes': base64.b64encode(x).decode('ascii')}
        if kind is list: return numbers(x, path) or items(x, path)
        if kind is tuple: return {'$tuple': items(x, path)}
        if kind is dict and all(type(k) is str and not k.startswith('$') for k in x):
            return {k: encode(y, (*path, k)) for k, y in x.items()}
        if kind is dict: return {'$dict': pairs(x, path)}
        if kind is OrderedDict: return {'$ordered': pairs(x, path)}
        if isinstance(x, Tensor | np.ndarray): return {'$tensor': name(x, path)}
        if kind is Sharded: return {'$sharded': [x.name, list(x.shape), x.dtype]}
        if isinstance(x, np.generic) and x.dtype.name in _SCALARS: return {'$scalar': [x.dtype.name, x.tobytes().hex()]}
        raise TypeError(f'{_shown(path)} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold: '
                        f'use dict, list, tuple, None, numbers, text, bytes, tensors and numpy arrays')

    def items(xs: list | tuple, path: tuple) -> list: return [encode(x, (*path, i)) for i, x in enumerate(xs)]

    def pairs(d: dict, path: tuple) -> list:
        for k in d:
            if type(k) not in (str, int): raise TypeError(f'{_shown(path)} has the key {k!r}; keys must be str or int')
        return [[encode(k, path), encode(x, (*path, k))] for k, x in d.items()]

    def numbers(xs: list, path: tuple) -> dict | None:
        kinds = set(map(type, xs)) if len(xs) >= _LONG else ()
        if kinds != {float} and not (kinds == {int} and min(xs) >= -2**63 and max(xs) < 2**63): return None
        return {'$floats' if kinds == {float} else '$ints': name(from_numpy(np.array(xs)), path)}

    def name(x: Tensor | np.ndarray, path: tuple) -> str:
        "The name of a tensor: the one it got before, or its path with slashes, made printable and unique."
        try: leaf = layout_of(x)
        except TypeError as e: raise TypeError(f'{_shown(path)} is {e}, which a checkpoint cannot hold') from None
        key = _identity(x)
        if key not in names:
            text = ''.join(c if c.isprintable() else '�' for c in '/'.join(map(str, path)) or 'state')
            tries = (text if n == 1 else f'{text}~{n}' for n in count(1))
            names[key] = next(nm for nm in tries if nm not in leaves and nm != '__metadata__')
            leaves[names[key]] = leaf
        return names[key]

    return encode(state, ()), leaves


def _identity(x: Tensor | np.ndarray) -> tuple:
    """Equal for two tensors or arrays that share memory, dtype, shape and strides. Computed before any copy for the
    file is made; empty and lazily conjugated ones are equal only to themselves."""
    if 0 in x.shape: return (id(x),)
    if isinstance(x, np.ndarray): return x.ctypes.data, x.dtype.str, x.shape, x.strides
    return (id(x),) if x.is_conj() or x.is_neg() else (x.data_ptr(), x.dtype, x.shape, x.stride(), x.device)


def _shown(path: tuple) -> str: return 'state' + ''.join(f'[{p!r}]' for p in path)


def unflatten(json: Any, layouts: Mapping[str, Layout], tensors: Mapping[str, Any] | None = None) -> Any:
    """The state from its JSON values and its tensors by name; without `tensors`, to check them, their layouts stand in
    for them. Two places with the same name get the same object. An error (of any type, from Python's own operations)
    if the JSON does not describe a state."""
    lists = {}  # by name: a list in a thousand places is read once

    def numbers(name: str) -> list | None:
        if layouts[name].stride != (1,): raise ValueError(f'the list {name!r} is not dense')  # it could be huge
        if name not in lists: lists[name] = None if tensors is None else tensors[name].tolist()
        return lists[name]

    def decode(x: Any) -> Any:
        if isinstance(x, list): return [decode(y) for y in x]
        if not isinstance(x, dict): return x
        tag, value = next(iter(x.items())) if len(x) == 1 else ('', None)
        match tag:
            case '$tensor': return (layouts if tensors is None else tensors)[value]
            case '$floats' | '$ints': return numbers(value)
            case '$tuple': return tuple(decode(y) for y in value)
            case '$dict' | '$ordered':
                return (dict if tag == '$dict' else OrderedDict)((decode(k), decode(v)) for k, v in value)
            case '$int': return int(value, 16)
            case '$float': return struct.unpack('>d', bytes.fromhex(value))[0]
            case '$sharded': return Sharded(value[0], tuple(map(int, value[1])), str(value[2]))
            case '$bytes': return base64.b64decode(value, validate=True)
            case '$scalar' if value[0] in _SCALARS: return np.frombuffer(bytes.fromhex(value[1]), value[0])[0]
        if tag.startswith('$'): raise ValueError(f'the state has the unknown tag {tag!r}')
        return {k: decode(y) for k, y in x.items()}

    return decode(json)
