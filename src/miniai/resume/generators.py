"Random generators that objects hold: found, and their states taken and put back."
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
_OF_MODULES = frozenset(vars(nn.Module()))
_EMPTY = CellType()  # of a closure whose variable has no value yet
_MOST, _MOST_IN_ALL = 100, 10_000  # items of one container; things


def is_generator(x: Any) -> bool:
    """Is `x` a generator whose state can be had: torch's, numpy's Generator or RandomState, Python's Random? Python's
    SystemRandom has none."""
    if isinstance(x, random.Random): return type(x).getstate is random.Random.getstate
    return isinstance(x, Generator | np.random.Generator | np.random.RandomState)


def generators_of(o: Any, objects: bool = False, without: Iterable[Any] = ()) -> Iterator[tuple[str, Any]]:
    """Each generator that `o` holds, once, with where it is: `o` itself, its attributes, and what these hold that are
    modules, lists, tuples, dicts (the first hundred items) or can be called. With `objects` all others count too: the
    dataset inside a dataset, its transforms. Some ten thousand things, the nearest, are looked into, and none of
    those `without`. The global generators are no one's."""
    seen, waiting = {id(g): g for g in (*_GLOBAL, *without)}, deque([('', o)])
    while waiting:
        name, x = waiting.popleft()
        if id(x) in seen: continue
        seen[id(x)] = x
        if is_generator(x): yield name, x
        elif len(seen) + len(waiting) < _MOST_IN_ALL:
            waiting.extend((f'{name}.{nm}'.strip('.'), y) for nm, y in _parts(x, objects or not name or callable(x))
                           if type(y) not in ProxyTypes and not isinstance(y, _LEAVES))


def _parts(x: Any, objects: bool) -> Iterable[tuple[Any, Any]]:
    "What `x` holds, by name."
    if isinstance(x, list | tuple): return enumerate(islice(x, _MOST))
    if isinstance(x, dict): return list(islice(x.items(), _MOST))
    if isinstance(x, partial): return [('func', x.func), *enumerate(x.args), *x.keywords.items()]
    if isinstance(x, MethodType): return _parts(x.__self__, True)
    if isinstance(x, FunctionType): return _given(x)
    own = vars(x).items() if objects and hasattr(x, '__dict__') else ()
    if isinstance(x, nn.Module): return [*x.named_children(), *(kv for kv in own if kv[0] not in _OF_MODULES)]
    return list(own)


def _given(f: FunctionType) -> Iterable[tuple[str, Any]]:
    "What a function draws on from outside: defaults, its closure, and generators and modules that it names."
    names = f.__globals__.keys() & _names(f.__code__)
    cells = zip(f.__code__.co_freevars, f.__closure__ or (), strict=True)
    return [*enumerate(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).items(),
            *((nm, cell.cell_contents) for nm, cell in cells if cell != _EMPTY),
            *((nm, f.__globals__[nm]) for nm in sorted(names) if _is_source(f.__globals__[nm]))]


def _names(code: CodeType) -> set[str]:
    return set(code.co_names).union(*(_names(c) for c in code.co_consts if isinstance(c, CodeType)))


def _is_source(x: Any) -> bool: return is_generator(x) or isinstance(x, nn.Module)


def kind_of(g: Any) -> str:
    "What must be the same for a generator to take a state: of whose it is, and where or of what bits."
    if isinstance(g, Generator): return f'torch.Generator on {g.device.type}'
    if isinstance(g, random.Random): return f'random.Random of version {g.VERSION}'
    numpys = 'Generator' if isinstance(g, np.random.Generator) else 'RandomState'
    return f"numpy's {numpys} of {_bits_of(g)['bit_generator']}"


def _bits_of(g: np.random.Generator | np.random.RandomState) -> dict[str, Any]:
    return g.bit_generator.state if isinstance(g, np.random.Generator) else g.get_state(legacy=False)


def state_of(g: Any) -> dict[str, Any]:
    "The kind and the state of a generator: plain values, tensors and arrays."
    if isinstance(g, Generator): state = g.get_state()
    else: state = python_state(g) if isinstance(g, random.Random) else _bits_of(g)
    return dict(kind=kind_of(g), state=state)


def set_state_of(g: Any, state: dict[str, Any]) -> None:
    "Put back what `state_of` gave. ValueError, naming both, where `g` is of another kind."
    if state['kind'] != kind_of(g): raise ValueError(f"the state of a {state['kind']} was given to a {kind_of(g)}")
    if isinstance(g, Generator): g.set_state(state['state'])
    elif isinstance(g, random.Random): set_python_state(g, *state['state'])
    elif isinstance(g, np.random.Generator): g.bit_generator.state = state['state']
    else: g.set_state(state['state'])
