"Indices of a DataLoader are replaced for one pass, and drawn alike in all processes; samplers hear the epoch."
import random
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, TensorDataset

from miniai.data.indices import OwnIndices, as_first, is_indexed, iterating_over, samplers_of, tell_epoch
from miniai.distributed import rank
from ranks import run_ranks

X = torch.arange(12.)


@pytest.mark.parametrize('kwargs', [dict(batch_size=4), dict(batch_size=None), dict(batch_sampler=[[0], [1]])])
def test_a_pass_goes_over_other_indices_only_within_the_block(kwargs):
    dl = DataLoader(X, **kwargs)
    before = dl.batch_sampler, dl.sampler
    with iterating_over(dl, [2, 5] if dl.batch_sampler is None else [[2], [5]]): batches = iter(dl)
    assert [float(b) for b in batches] == [2, 5]
    assert (dl.batch_sampler, dl.sampler) == before
    with pytest.raises(ZeroDivisionError), iterating_over(dl, []): assert 1/0
    assert (dl.batch_sampler, dl.sampler) == before


def test_persistent_workers_go_over_other_indices_and_then_their_own():
    dl = DataLoader(TensorDataset(X), 4, num_workers=2, persistent_workers=True)
    def numbers(dl): return torch.cat([b[0] for b in dl]).tolist()
    assert numbers(dl) == X.tolist()
    with iterating_over(dl, [[7]]): batches = iter(dl)
    assert [b[0].tolist() for b in batches] == [[7]]
    assert numbers(dl) == X.tolist()


def test_only_loaders_by_index_with_torch_s_own_iterator_are_indexed():
    class Own(DataLoader):
        def __iter__(self): return iter(())
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(())
    assert is_indexed(DataLoader(X, 4))
    assert not any(is_indexed(dl) for dl in (Own(X, 4), DataLoader(Stream()), DataLoader(X, batch_size=None), [X]))


class Indices(BatchSampler):
    "Draws each batch by numpy and Python's random."
    def __init__(self): pass
    def __len__(self): return 3
    def __iter__(self):
        for _ in range(3): yield [*np.random.randint(0, 99, 5), random.randint(0, 99)]


def draw():
    "What three samplers draw, and whether this process draws on from its own random states."
    found = []
    for sampler in (BatchSampler(RandomSampler(X), 5, False), Indices()):
        torch.manual_seed(rank()), np.random.seed(rank()), random.seed(rank())
        own = OwnIndices(sampler)
        batches = [[*map(int, indices)] for indices in own]
        found.append((batches, own.empty, len(own), torch.rand(1).item(), np.random.rand(), random.random()))
    return found


def test_processes_draw_the_indices_of_the_first_and_keep_their_own_random_states():
    for one, first, second, seen in zip(draw(), *run_ranks(draw, 2), (X, None), strict=True):
        assert [a + b for a, b in zip(first[0], second[0], strict=True)] == one[0]
        assert first[2:] == one[2:]  # the first draws as one process does
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        assert second[2:] == (one[2], torch.rand(1).item(), np.random.rand(), random.random())
        assert seen is None or sorted(chain(*one[0])) == list(range(12))


def small_batches():
    own = OwnIndices([[1, 2, 3], [4], [], [5, 6], [7]])
    return [[*indices] for indices in own], own.empty


def test_a_process_without_a_part_repeats_the_first_index_in_a_batch_that_is_named_empty():
    first, second = run_ranks(small_batches, 2)
    assert first == ([[1, 2], [4], [], [5], [7]], {2})
    assert second == ([[3], [4], [], [6], [7]], {1, 2, 4})


def test_a_function_is_called_as_it_is_in_one_process():
    torch.manual_seed(2)
    expected = torch.rand(3)
    torch.manual_seed(2)
    assert as_first(torch.rand, 3).equal(expected)


def test_each_sampler_that_has_set_epoch_is_told_once():
    class Told(DistributedSampler):
        def set_epoch(self, epoch): self.told = [*getattr(self, 'told', []), epoch]
    sampler = Told(X, 1, 0)
    class Batches(BatchSampler):
        def set_epoch(self, epoch): self.epoch = epoch
    batches = Batches(sampler, 4, False)
    for dl in (DataLoader(X, 4, sampler=sampler), DataLoader(X, batch_sampler=batches), [X], DataLoader(X, 4)):
        tell_epoch(dl, 5)
    assert sampler.told == [5, 5]
    assert batches.epoch == 5
    assert samplers_of([X]) == []
