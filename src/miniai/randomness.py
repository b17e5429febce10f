"Random states as plain values: torch's, CUDA's, numpy's and Python's, and those of generators that objects hold."
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, nn

__all__ = ['random_states', 'set_random_states', 'describe_states', 'same_states', 'generators_of']


def random_states() -> dict[str, Any]:
    "The states of every global generator: tensors, numbers and strings."
    version, numbers, gauss = random.getstate()
    return dict(torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                numpy=_numpy_state(), python=[version, torch.from_numpy(np.array(numbers)), gauss])


def _numpy_state() -> list:
    state = np.random.get_state(legacy=False)
    if state['bit_generator'] != 'MT19937': return [state['bit_generator'], state]
    keys, pos = state['state']['key'], state['state']['pos']
    return ['MT19937', torch.from_numpy(keys.astype(np.int64)), pos, state['has_gauss'], state['gauss']]


def set_random_states(states: dict[str, Any]) -> None:
    "Put back what `random_states` gave. ValueError, naming both, where the generators here are others."
    here = _kinds_here()
    for what, kind in describe_states(states).items():
        if kind != here[what]: raise ValueError(f"random states: {what} was {kind!r} and is {here[what]!r} here")
    torch.set_rng_state(states['torch'])
    if states['cuda']: torch.cuda.set_rng_state_all(states['cuda'])
    _set_numpy_state(*states['numpy'])
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers.tolist()), gauss))


def _set_numpy_state(kind: str, *rest: Any) -> None:
    if kind != 'MT19937': return np.random.set_state(rest[0])
    keys, *others = rest
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *others))


def describe_states(states: dict[str, Any]) -> dict[str, Any]:
    "What must be the same for `random_states()` to be put back, by name."
    return _named(len(states['cuda']), states['numpy'][0], states['python'][0])


def _kinds_here() -> dict[str, Any]:
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return _named(devices, type(np.random.get_bit_generator()).__name__, random.Random.VERSION)


def _named(cuda: int, numpy: str, python: int) -> dict[str, Any]:
    return {'CUDA generators': cuda, "numpy's generator": numpy, "version of Python's generator": python}


def same_states(a: Any, b: Any) -> bool:
    "Are two nests of states the same to the bit?"
    if isinstance(a, dict): return a.keys() == b.keys() and all(same_states(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple): return len(a) == len(b) and all(map(same_states, a, b))
    return np.array_equal(a, b)


def generators_of(o: Any) -> Iterator[tuple[str, Generator]]:
    "Torch's generators that `o` holds, itself or in modules and lists of its own, with where they are."
    for nm, x in vars(o).items() if hasattr(o, '__dict__') else ():
        if isinstance(x, Generator): yield nm, x
        elif isinstance(x, nn.Module): yield from _in_module(nm, x)
        elif isinstance(x, list | tuple):
            for i, y in enumerate(x):
                if isinstance(y, nn.Module): yield from _in_module(f'{nm}.{i}', y)


def _in_module(name: str, module: nn.Module) -> Iterator[tuple[str, Generator]]:
    for path, m in module.named_modules():
        for nm, x in vars(m).items():
            if isinstance(x, Generator): yield '.'.join(filter(None, (name, path, nm))), x
