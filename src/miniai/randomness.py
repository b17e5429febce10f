"Random states as plain values: those of the global generators, of torch, its devices, numpy and Python, and of others."
import random
from typing import Any

import numpy as np
import torch

__all__ = ['set_seed', 'random_states', 'set_random_states', 'host_states', 'set_host_states', 'describe_states',
           'same_states', 'python_state', 'set_python_state']


def set_seed(seed: int, deterministic: bool = False) -> None:
    "Seed torch, numpy and random; `deterministic` also asks torch for deterministic algorithms."
    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_states() -> dict[str, Any]:
    "The states of every global generator: tensors, numbers and strings."
    return host_states() | dict(cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                                mps=torch.mps.get_rng_state() if torch.backends.mps.is_available() else None)


def host_states() -> dict[str, Any]:
    "`random_states` of torch on the CPU, numpy and Python alone: worker processes cannot ask a GPU."
    return dict(torch=torch.get_rng_state(), numpy=_numpy_state(), python=python_state(random))


def _numpy_state() -> list:
    state = np.random.get_state(legacy=False)
    if state['bit_generator'] != 'MT19937': return [state['bit_generator'], state]
    keys, pos = state['state']['key'], state['state']['pos']
    return ['MT19937', torch.from_numpy(keys.astype(np.int64)), pos, state['has_gauss'], state['gauss']]


def python_state(r: Any) -> list:
    "The state of one of Python's generators, as plain values and a tensor."
    version, numbers, gauss = r.getstate()
    return [version, torch.from_numpy(np.array(numbers)), gauss]


def set_random_states(states: dict[str, Any]) -> None:
    "Put back what `random_states` gave. ValueError, naming both, where the generators here are others."
    here = _kinds_here()
    for what, kind in describe_states(states).items():
        if kind != here[what]: raise ValueError(f"random states: {what} was {kind!r} and is {here[what]!r} here")
    set_host_states(states)
    if states['cuda']: torch.cuda.set_rng_state_all(states['cuda'])
    if states.get('mps') is not None: torch.mps.set_rng_state(states['mps'])


def set_host_states(states: dict[str, Any]) -> None:
    "Put back what `host_states` gave."
    torch.set_rng_state(states['torch'])
    _set_numpy_state(*states['numpy'])
    set_python_state(random, *states['python'])


def _set_numpy_state(kind: str, *rest: Any) -> None:
    if kind != 'MT19937': return np.random.set_state(rest[0])
    keys, *others = rest
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *others))


def set_python_state(r: Any, version: int, numbers: torch.Tensor, gauss: float | None) -> None:
    "Put back what `python_state` gave."
    r.setstate((version, tuple(numbers.tolist()), gauss))


def describe_states(states: dict[str, Any]) -> dict[str, Any]:
    "What must be the same for `random_states()` to be put back, by name. Older states know no MPS."
    return _named(len(states['cuda']), int(states.get('mps') is not None), states['numpy'][0], states['python'][0])


def _kinds_here() -> dict[str, Any]:
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return _named(devices, int(torch.backends.mps.is_available()), type(np.random.get_bit_generator()).__name__,
                  random.Random.VERSION)


def _named(cuda: int, mps: int, numpy: str, python: int) -> dict[str, Any]:
    return {'CUDA generators': cuda, 'MPS generators': mps, "numpy's generator": numpy,
            "version of Python's generator": python}


def same_states(a: Any, b: Any) -> bool:
    "Are two nests of states the same to the bit?"
    if isinstance(a, dict): return a.keys() == b.keys() and all(same_states(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple): return len(a) == len(b) and all(map(same_states, a, b))
    return np.array_equal(a, b)
