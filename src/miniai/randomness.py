"Random seeds, and the states of the global random generators as plain values."
import random
from typing import Any

import numpy as np
import torch

__all__ = ['set_seed', 'random_states', 'set_random_states', 'host_states', 'set_host_states', 'describe_states',
           'same_states', 'python_state', 'set_python_state']


def set_seed(seed: int, deterministic: bool = False) -> None:
    "Seed torch, numpy and random. `deterministic` switches torch's deterministic algorithms on or off."
    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def random_states() -> dict[str, Any]:
    "The states of all global generators (torch, its devices, numpy, Python) as tensors, arrays and plain values."
    return host_states() | dict(cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                                mps=torch.mps.get_rng_state() if torch.backends.mps.is_available() else None)


def set_random_states(states: dict[str, Any]) -> None:
    "Restore what `random_states` returned. ValueError if this process has other kinds of generators."
    here = describe_states(random_states())
    for name, kind in describe_states(states).items():
        if kind != here[name]:
            raise ValueError(f"cannot restore random states: {name} was {kind!r} and is {here[name]!r} here")
    set_host_states(states)
    if states['cuda']: torch.cuda.set_rng_state_all(states['cuda'])
    if states['mps'] is not None: torch.mps.set_rng_state(states['mps'])


def host_states() -> dict[str, Any]:
    "Like `random_states`, without the devices: a loader's workers cannot use them."
    return dict(torch=torch.get_rng_state(), numpy=np.random.get_state(legacy=False), python=python_state(random))


def set_host_states(states: dict[str, Any]) -> None:
    "Restore what `host_states` returned."
    torch.set_rng_state(states['torch'])
    np.random.set_state(states['numpy'])
    set_python_state(random, *states['python'])


def python_state(r: Any) -> list:
    "The state of a `random.Random`, or of the module `random`: version, numbers as a tensor, next gauss."
    version, numbers, gauss = r.getstate()
    return [version, torch.from_numpy(np.array(numbers)), gauss]


def set_python_state(r: Any, version: int, numbers: torch.Tensor, gauss: float | None) -> None:
    "Restore what `python_state` returned."
    r.setstate((version, tuple(numbers.tolist()), gauss))


def describe_states(states: dict[str, Any]) -> dict[str, Any]:
    "What must be the same in a process that restores `random_states()`, by name."
    return {'CUDA generators': len(states['cuda']), 'MPS generators': int(states['mps'] is not None),
            "numpy's generator": states['numpy']['bit_generator'], "version of Python's generator": states['python'][0]}


def same_states(a: Any, b: Any) -> bool:
    "Whether two nests of states are identical."
    if isinstance(a, dict): return a.keys() == b.keys() and all(same_states(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple): return len(a) == len(b) and all(map(same_states, a, b))
    return np.array_equal(a, b)
