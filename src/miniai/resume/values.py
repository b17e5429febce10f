"Values: what an attribute can hold, and short text of it to compare."
import hashlib
import math
import re
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import PurePath
from types import BuiltinFunctionType
from typing import Any
from weakref import ProxyTypes, ReferenceType

import numpy as np
import torch
from torch import Tensor

from miniai.distributed.dtensor import is_dtensor

__all__ = ['ATOMS', 'CONSTANTS', 'SEQUENCES', 'SETS', 'DICTS', 'CONTAINERS', 'WEAK', 'ALL', 'SOME', 'is_container',
           'is_plain', 'is_dense', 'parts_of', 'key_text', 'name_of', 'brief']

ATOMS = type(None), bool, int, float, str, bytes
WEAK = *ProxyTypes, ReferenceType
CONSTANTS = (*ATOMS, complex, np.generic, np.dtype, Enum, PurePath, torch.dtype, torch.device, range, slice, type)
SEQUENCES, SETS, DICTS = (list, tuple, deque, bytearray), (set, frozenset), (dict, OrderedDict, defaultdict, Counter)
CONTAINERS = frozenset((*SEQUENCES, *SETS, *DICTS))
_MANY, _LONGEST = 1000, 200  # items that are read of a container, characters of a text


def is_plain(x: Any) -> bool:
    "Is `x` a number, text, tensor, array or constant, with no objects inside?"
    return isinstance(x, (*CONSTANTS, Tensor, np.ndarray))


def is_container(x: Any) -> bool:
    "Is `x` a list, tuple, deque, set or dict of Python's own, or a namedtuple? Subclasses may do anything."
    return type(x) in CONTAINERS or (isinstance(x, tuple) and hasattr(type(x), '_fields'))


def parts_of(x: Any) -> Iterator[tuple[str, Any]]:
    "The items of a container that are not plain, each with what follows the container's name in its path."
    if isinstance(x, dict): items = [(key_text(k, i), v) for i, (k, v) in enumerate(_spread(list(x.items()), _MANY))]
    else:
        xs = x if isinstance(x, list | tuple) else list(x)
        items = [(f'[{i}]', xs[i]) for i in _spread(range(len(xs)), _MANY)]
    return ((text, v) for text, v in items if type(v) not in ATOMS)


def key_text(k: Any, i: int) -> str:
    "What follows a dict's name in the path of its `i`-th item: the key if it is short and plain."
    return f'[{k!r}]' if type(k) in (str, int, bool) else f'[item {i}]'


def _spread(x: Any, most: int) -> list:
    "All items, or `most` of them, from the first to the last."
    x = x if isinstance(x, list | tuple | range) else list(x)
    return [x[i*(len(x) - 1)//(most - 1)] for i in range(most)] if len(x) > most else list(x)


# As text

ALL, SOME, NONE = 2, 1, 0  # how much of a value its text tells


def brief(x: Any, name: Callable[[Any], str | None], budget: int = 1 << 20, inside: tuple = ()) -> tuple[str, int]:
    """Short text that differs where values differ, and how much was read: of long containers and of arrays of more than
    `budget` bytes only some items, of trained tensors none. `name` names objects and tensors of modules."""
    if type(x) in ATOMS: return _cut(repr(x)), ALL
    if type(x) in WEAK: return 'a weak reference', ALL
    if isinstance(x, Tensor) and (known := name(x)): return known, ALL
    if isinstance(x, Tensor | np.ndarray): return _brief_array(x, budget)
    if isinstance(x, type) or not (isinstance(x, CONSTANTS) or is_container(x)): return str(name(x)), ALL
    if not is_container(x): return _cut(name_of(x)), ALL
    if id(x) in inside or len(inside) > 50: return '…', ALL
    items = list(x.items()) if isinstance(x, dict) else sorted(x, key=repr) if isinstance(x, SETS) else x
    items = _spread(items, _MANY)
    parts = [brief(item, name, budget//max(len(items), 1), (*inside, id(x))) for item in items]
    texts = [text for text, _ in parts]
    if isinstance(x, SETS): texts.sort()
    many = f'{len(x):,} items: ' if len(x) > _MANY else ''
    opened, closed = '()' if isinstance(x, tuple) else '[]'
    kind = '' if type(x) in (list, tuple) else f"{type(x).__name__}{x.maxlen if type(x) is deque else ''}"
    text = f"{kind}{opened}{many}{', '.join(texts)}{closed}"
    return _cut(text), min([SOME if many else ALL, *(told for _, told in parts)])


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f'{text[:60]}… #{_digest(text.encode())}'


def _digest(data: Any) -> str: return hashlib.sha256(data).hexdigest()[:8]


def _brief_array(x: Tensor | np.ndarray, budget: int) -> tuple[str, int]:
    kind, itemsize = f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}", x.dtype.itemsize
    if isinstance(x, Tensor):
        if x.is_leaf and x.requires_grad: return f'parameter {kind}', NONE
        if not is_dense(x): return f'tensor {kind}', SOME
        x = x.detach().resolve_conj().resolve_neg()
    elif x.dtype.kind == 'O':
        items = _spread(x.reshape(-1).tolist(), _MANY)
        return f'{kind} {brief(items, lambda o: type(o).__name__)[0]}', SOME
    n = math.prod(x.shape)
    if n <= 6: return f'{kind} {x.tolist()}', ALL
    full = n*itemsize <= budget
    if not full:
        most = max(128, min(1 << 16, budget//itemsize))
        x = _sampled(_sampled(x, 64 if x.ndim > 1 else most).reshape(-1), most)
    if isinstance(x, Tensor): x = x.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return f'{kind} #{_digest(np.ascontiguousarray(x).tobytes())}', ALL if full else SOME


def _sampled(x: Tensor | np.ndarray, most: int) -> Tensor | np.ndarray:
    "Rows of an array, evenly spread from the first to the last."
    if len(x) <= most: return x
    rows = np.arange(most)*(len(x) - 1)//(most - 1)
    return x[torch.from_numpy(rows).to(x.device)] if isinstance(x, Tensor) else x[rows]


def is_dense(x: Tensor) -> bool:
    "Is this a tensor whose numbers can be read, all of them here?"
    return x.layout is torch.strided and not (x.is_meta or x.is_quantized or x.is_nested or is_dtensor(x))


def name_of(x: Any) -> str:
    "A constant as text that is the same in every process."
    if isinstance(x, Enum): return f'{type(x).__name__}.{x.name}'
    if isinstance(x, type | BuiltinFunctionType): return x.__qualname__
    return re.sub(' at 0x[0-9a-f]+', '', repr(x))
