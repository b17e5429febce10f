"Random transforms in a dataset that give the same results with any number of worker processes."
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
    """Wraps a dataset so that what its random transforms draw depends only on the epoch and the sample, not on the
    worker: the global generators of torch, numpy and Python are seeded for each sample with the epoch's seed and the
    sample's index, then restored. Without workers the dataset draws as usual.

    An index is an int, or anything with the same repr in every process: text, tuples of such; else TypeError, in
    workers. Generators that the dataset itself holds are not seeded: each worker has copies. Leave
    persistent_workers at False: with True, every epoch has the same seed."""
    def __init__(self, dataset: Any) -> None: self.dataset = dataset
    def __len__(self) -> int: return len(self.dataset)

    @property
    def features(self) -> Any:
        "The features of the dataset, if it names them, as Hugging Face datasets do."
        return self.dataset.features

    def __getitem__(self, i: Any) -> Any:
        worker = get_worker_info()
        if worker is None: return self.dataset[i]
        before = host_states()
        try:
            seed = (worker.seed - worker.id)*1_000_003 + _number_of(i)  # without its id: the same in every worker
            torch.random.default_generator.manual_seed(seed % 2**63)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            return self.dataset[i]
        finally: set_host_states(before)


def _number_of(i: Any) -> int:
    "A number for an index, the same in every process."
    try: return index(i)
    except TypeError: pass
    if any(type(x).__repr__ is object.__repr__ for x in (i if isinstance(i, tuple) else [i])):
        raise TypeError(f"SeededSamples needs an index that is the same in every process, got {i!r}: let the sampler "
                        f"yield numbers, text or tuples of them, or define __repr__ on the index's class")
    return int.from_bytes(sha256(repr(i).encode()).digest()[:8])
