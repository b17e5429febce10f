"A dataset whose random draws in workers are a matter of pass and sample alone. Knows random states, no loaders."
import random
from hashlib import sha256
from operator import index
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info

from miniai.randomness import host_states, set_host_states

__all__ = ['SeededSamples']


class SeededSamples:
    """A dataset whose random transforms draw, in workers, the same for the same sample of the same pass, whichever
    worker takes it and whatever it did before: torch's, numpy's and Python's global generators are seeded for each
    sample by the pass's own seed and the sample's index, and put back. An index is a whole number, or anything whose
    repr is the same each time: text, tuples of such. TypeError, in workers, for an object without a repr of its own.
    Generators that the dataset holds are left alone: each worker has copies. Without workers the dataset draws as it
    is. With persistent_workers=True every pass has the same seed, and each sample its same draws: leave that at False.
    """
    def __init__(self, dataset: Any) -> None: self.dataset = dataset
    def __len__(self) -> int: return len(self.dataset)

    @property
    def features(self) -> Any:
        "The features of the dataset, where it names them, as those of Hugging Face do."
        return self.dataset.features

    def __getitem__(self, i: Any) -> Any:
        worker = get_worker_info()
        if worker is None: return self.dataset[i]
        before = host_states()
        try:
            _seed_all((worker.seed - worker.id)*1_000_003 + _number_of(i))
            return self.dataset[i]
        finally: set_host_states(before)


def _number_of(i: Any) -> int:
    "A number for an index, the same in every process."
    try: return index(i)
    except TypeError: pass
    if any(type(x).__repr__ is object.__repr__ for x in (i if isinstance(i, tuple) else [i])):
        raise TypeError(f"SeededSamples draws by a sample's index, and {i!r} is another in each process: let "
                        f"the sampler give numbers, text or tuples of them, or give its class a __repr__")
    return int.from_bytes(sha256(repr(i).encode()).digest()[:8])


def _seed_all(seed: int) -> None:
    torch.random.default_generator.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)
