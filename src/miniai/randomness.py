"Random states as plain values: torch's, CUDA's, numpy's and Python's, and those of generators that objects hold."
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, nn

__all__ = ['random_states', 'set_random_states', 'generators_of']


def random_states() -> dict[str, Any]:
    "The states of every global generator: tensors, numbers and strings."
    kind, keys, *rest = np.random.get_state()
    version, numbers, gauss = random.getstate()
    return dict(torch=torch.get_rng_state(), cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
                numpy=[kind, torch.from_numpy(keys.astype(np.int64)), *rest],
                python=[version, torch.tensor(numbers), gauss])


def set_random_states(states: dict[str, Any]) -> None:
    "Put back what `random_states` gave. ValueError where it is of another number of CUDA devices."
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if len(states['cuda']) != here:
        raise ValueError(f"random states of {len(states['cuda'])} CUDA device(s) were saved, and here are {here}")
    torch.set_rng_state(states['torch'])
    if here: torch.cuda.set_rng_state_all(states['cuda'])
    kind, keys, *rest = states['numpy']
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, numbers, gauss = states['python']
    random.setstate((version, tuple(numbers.tolist()), gauss))


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
