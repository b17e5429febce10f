"Random generators inside objects: finding them, saving and restoring their states."
import random
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ProxyTypes

import numpy as np
import torch
from torch import Generator, nn

from miniai.randomness import python_state, set_python_state

__all__ = ['is_generator', 'generators_of', 'kind_of', 'state_of', 'set_state_of']

_GLOBAL = torch.default_generator, np.random.get_state.__self__, random.getstate.__self__
_LEAVES = torch.Tensor, np.ndarray, ModuleType, type, str, bytes, int, float, complex, type(None)
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_EMPTY_CELL = CellType()  # a closure's variable that has no value yet
_MAX_ITEMS, _MAX_OBJECTS = 100, 10_000  # per container, in all


def is_generator(x: Any) -> bool:
    """Is `x` a generator with a state: torch's Generator, numpy's Generator or RandomState, or Python's Random?
    SystemRandom has no state."""
    if isinstance(x, random.Random): return type(x).getstate is random.Random.getstate
    return isinstance(x, Generator | np.random.Generator | np.random.RandomState)


def generators_of(o: Any, objects: bool = False, without: Iterable[Any] = ()) -> Iterator[tuple[str, Any]]:
    """Every generator inside `o`, once, with its path. Looks into the attributes of `o`, and from there into modules,
    lists, tuples, dicts (their first 100 items) and callables; with `objects` into all other objects too, such as a
    dataset's transforms. Stops after some 10,000 objects, nearest first. The global generators, and everything in
    `without`, are left out."""
    seen, queue = {id(g): g for g in (*_GLOBAL, *without)}, deque([('', o)])
    while queue:
        name, x = queue.popleft()
        if id(x) in seen: continue
        seen[id(x)] = x
        if is_generator(x): yield name, x
        elif len(seen) + len(queue) < _MAX_OBJECTS:
            queue.extend((f'{name}.{nm}'.strip('.'), y) for nm, y in _parts(x, objects or not name or callable(x))
                         if type(y) not in ProxyTypes and not isinstance(y, _LEAVES))


def _parts(x: Any, attributes: bool) -> Iterable[tuple[Any, Any]]:
    "What is inside `x`, by name; an object's attributes only if asked for."
    if isinstance(x, list | tuple): return enumerate(islice(x, _MAX_ITEMS))
    if isinstance(x, dict): return list(islice(x.items(), _MAX_ITEMS))
    if isinstance(x, partial): return [('func', x.func), *enumerate(x.args), *x.keywords.items()]
    if isinstance(x, MethodType): return _parts(x.__self__, True)
    if isinstance(x, FunctionType): return _parts_of_function(x)
    own = list(vars(x).items()) if attributes and hasattr(x, '__dict__') else []
    if isinstance(x, nn.Module): return [*x.named_children(), *((k, v) for k, v in own if k not in _MODULE_ATTRIBUTES)]
    return own


def _parts_of_function(f: FunctionType) -> Iterable[tuple[str, Any]]:
    "A function's defaults, the variables of its closure, and the generators and modules among its globals."
    def names(code: CodeType) -> set[str]:
        return set(code.co_names).union(*(names(c) for c in code.co_consts if isinstance(c, CodeType)))
    cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
    found = ((nm, f.__globals__[nm]) for nm in sorted(f.__globals__.keys() & names(f.__code__)))
    return [*enumerate(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).items(),
            *((nm, cell.cell_contents) for nm, cell in cells if cell != _EMPTY_CELL),
            *((nm, x) for nm, x in found if is_generator(x) or isinstance(x, nn.Module))]


def kind_of(g: Any) -> str:
    "What a generator must be for a state to fit: its class, and its device or bit generator."
    if isinstance(g, Generator): return f'torch.Generator on {g.device.type}'
    if isinstance(g, random.Random): return f'random.Random of version {g.VERSION}'
    name = 'Generator' if isinstance(g, np.random.Generator) else 'RandomState'
    return f"numpy's {name} of {_numpy_state(g)['bit_generator']}"


def _numpy_state(g: np.random.Generator | np.random.RandomState) -> dict[str, Any]:
    return g.bit_generator.state if isinstance(g, np.random.Generator) else g.get_state(legacy=False)


def state_of(g: Any) -> dict[str, Any]:
    "The kind and the state of a generator: plain values, tensors and arrays."
    if isinstance(g, Generator): state = g.get_state()
    else: state = python_state(g) if isinstance(g, random.Random) else _numpy_state(g)
    return dict(kind=kind_of(g), state=state)


def set_state_of(g: Any, state: dict[str, Any]) -> None:
    "Restore what `state_of` returned. ValueError if `g` is of another kind."
    if state['kind'] != kind_of(g): raise ValueError(f"the state of a {state['kind']} does not fit a {kind_of(g)}")
    if isinstance(g, Generator): g.set_state(state['state'])
    elif isinstance(g, random.Random): set_python_state(g, *state['state'])
    elif isinstance(g, np.random.Generator): g.bit_generator.state = state['state']
    else: g.set_state(state['state'])
