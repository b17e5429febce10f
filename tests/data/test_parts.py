"Parts of batches: disjoint, complete, in order, whatever the loader."
from itertools import chain

import torch
from torch.utils.data import DataLoader, TensorDataset

from miniai.data.memory import MemoryLoader
from miniai.data.parts import in_parts, last_part_is_empty
from ranks import run_ranks


def loaders(n):
    x = torch.arange(n)
    return [MemoryLoader(x, x, bs=8), MemoryLoader(x, x, bs=8, shuffle=True, seed=3),
            DataLoader(TensorDataset(x, x), 8), [(x[i:i + 8], x[i:i + 8]) for i in range(0, n, 8)]]


def parts(sizes): return [[([batch[0].tolist() for batch in in_parts(dl)], last_part_is_empty(dl)) for dl in loaders(n)]
                           for n in sizes]


def test_the_parts_of_all_processes_are_the_batches_of_one():
    sizes = 29, 32, 33, 50
    for n, *of_ranks in zip(sizes, *run_ranks(parts, 4, sizes), strict=True):
        for dl, *found in zip(loaders(n), *of_ranks, strict=True):
            for i, batch in enumerate(dl):
                mine = [part[i] for part, empty in found if not (empty and i + 1 == len(part))]
                assert list(chain(*mine)) == batch[0].tolist()
