"Parts of batches: disjoint, complete, in order, whatever the loader."
from itertools import chain

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from miniai.data.memory import MemoryLoader
from miniai.data.parts import in_parts, is_divided, known_batch_size
from miniai.distributed import rank
from ranks import run_ranks


class Numbers(Dataset):
    "Its items, and which of them this process has loaded."
    def __init__(self, n): self.n, self.loaded = n, []
    def __len__(self): return self.n

    def __getitem__(self, i):
        self.loaded.append(i)
        return i, float(i)


class Lazy(BatchSampler):
    "Draws the size and the items of each batch only when it is asked for."
    def __init__(self, n): self.n = n
    def __len__(self): return 5

    def __iter__(self):
        for _ in range(5): yield torch.randint(self.n, (int(torch.randint(1, 9, ())),)).tolist()


class Counting(IterableDataset):
    def __init__(self, n): self.n = n
    def __iter__(self): return iter(range(self.n))


class Shuffled:
    "A user's loader, which draws its order when a pass begins."
    def __init__(self, n): self.n = n

    def __iter__(self):
        for i in torch.randperm(self.n).split(8): yield dict(i=i, nested=[i, (i.float(), 'text')])


class Around:
    "A user's loader around another, which begins only when it is asked for a batch."
    def __init__(self, name, dl): setattr(self, name, dl)

    def __iter__(self):
        for batch in next(iter(vars(self).values())): yield batch  # noqa: UP028


def first(batch): return batch['i'] if isinstance(batch, dict) else batch if torch.is_tensor(batch) else batch[0]


def loaders(n):
    x = torch.arange(n)
    ds, seeded = TensorDataset(x, x), torch.Generator().manual_seed(3)
    weighted = torch.utils.data.WeightedRandomSampler(torch.ones(n), 40)
    return [MemoryLoader(x, x, bs=8), MemoryLoader(x, x, bs=8, shuffle=True, seed=3),
            [(x[i:i + 8], x[i:i + 8]) for i in range(0, n, 8)], DataLoader(ds, 8), DataLoader(ds, 8, shuffle=True),
            DataLoader(ds, 8, shuffle=True, generator=seeded), DataLoader(ds, 8, shuffle=True, drop_last=True),
            DataLoader(ds, 8, sampler=weighted), DataLoader(ds, batch_sampler=Lazy(n)), Shuffled(n),
            DataLoader(Counting(n), 8), DataLoader(x, 8, shuffle=True), Around('dl', DataLoader(ds, 8)),
            *(Around(name, MemoryLoader(x, x, bs=8, shuffle=True)) for name in ('dl', 'loader'))]


def passes(sizes):
    "Three passes over each loader, with a random state that differs from process to process and moves between batches."
    found = []
    for dl in (dl for n in sizes for dl in loaders(n)):
        torch.manual_seed(7 + rank())
        for _ in range(3):
            found.append([])
            for batch, counts in in_parts(dl):
                found[-1].append((first(batch).tolist(), counts))
                torch.rand(1 + rank())
    return found


@pytest.mark.parametrize('n', [2, 4])
def test_the_parts_of_all_processes_are_the_batches_of_one_in_every_pass(n):
    sizes = 29, 32, 33, 50
    expected = passes(sizes)  # of one process
    for one, *parts in zip(expected, *run_ranks(passes, n, sizes), strict=True):
        assert len(one) == max(map(len, parts))
        for (batch, _), *mine in zip(one, *parts, strict=True):
            assert list(chain(*(part for part, counts in mine if counts))) == batch
            assert all(len(part) for part, _ in mine)
            assert max(len(part) for part, _ in mine) - min(len(part) for part, _ in mine) <= 1


def loaded():
    "What this process loads of a pass with workers, and without."
    found = []
    for workers, persistent in ((0, False), (2, False), (2, True)):
        torch.manual_seed(rank())
        ds = Numbers(21)
        dl = DataLoader(ds, 8, shuffle=True, num_workers=workers, persistent_workers=persistent,
                        multiprocessing_context='fork' if workers else None)
        passes = [[batch[0].tolist() for batch, _ in in_parts(dl)] for _ in range(2)]
        found.append((passes, ds.loaded))
        del dl
    return found


def test_a_process_loads_its_own_part_only_with_and_without_workers():
    for one, *parts in zip(loaded(), *run_ranks(loaded, 2), strict=True):
        assert [[a + b for a, b in zip(*p, strict=True)] for p in zip(*(p for p, _ in parts), strict=True)] == one[0]
        assert one[0][0] != one[0][1]
    (passes, own), (_, others) = (part[0] for part in run_ranks(loaded, 2))
    assert own == [i for p in passes for batch in p for i in batch]
    assert sorted(own[:11] + others[:10]) == list(range(21))


def outside():
    dl = MemoryLoader(torch.arange(4), bs=3)
    list(in_parts(dl))
    return [x.tolist() for x, in dl]


def test_outside_a_fit_each_process_has_whole_batches():
    assert run_ranks(outside, 2) == [[[0, 1, 2], [3]]]*2


def as_they_are():
    x = torch.arange(10)
    stream = Counting(5)
    stream.world_size = 2
    found = [DataLoader(x, 2, sampler=DistributedSampler(x)), DataLoader(stream, 2)]
    assert all(map(is_divided, found))
    assert all(known_batch_size(dl) is None for dl in found)
    return [[(batch.tolist(), counts) for batch, counts in in_parts(dl)] for dl in found]


def test_loaders_that_give_each_process_its_own_data_are_left_as_they_are():
    expected = [list(DataLoader(torch.arange(10), 2, sampler=DistributedSampler(range(10), 2, r))) for r in range(2)]
    for found, own in zip(run_ranks(as_they_are, 2), expected, strict=True):
        assert found[0] == [(batch.tolist(), True) for batch in own]
        assert found[1] == [([0, 1], True), ([2, 3], True), ([4], True)]


class Wraps:
    "A loader around another one, kept as `name`."
    def __init__(self, name, dl): self.name, vars(self)[name] = name, dl
    def __iter__(self): return iter(vars(self)[self.name])


def wrapped():
    for name in ('dl', 'inner'):
        (batch, counts), = in_parts(Wraps(name, MemoryLoader(torch.arange(4.), bs=4)))
        assert (first(batch).tolist(), counts) == ([2.*rank(), 2.*rank() + 1], True)


def test_a_loader_around_a_memory_loader_is_divided_once_whatever_it_calls_it(): run_ranks(wrapped, 2)


def refused():
    said = r'first batch of a list is not the same in the 2 processes.*attribute world_size'
    with pytest.raises(ValueError, match=said): list(in_parts([torch.arange(4.) + rank()]))
    with pytest.raises(ValueError, match=said): list(in_parts([torch.arange(4.)]*rank()))
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    for batch in (packed, (packed, torch.ones(2))):
        with pytest.raises(TypeError, match='packed sequences cannot be divided'): list(in_parts([batch]))


def test_batches_that_differ_or_cannot_be_cut_are_refused(): run_ranks(refused, 2)


def nested():
    n = torch.arange(4)
    batch = dict(n=n, both=[n*2, (n*3, 'text')], number=torch.tensor(4.), weights=torch.ones(3))
    return [batch for batch, _ in in_parts([batch, batch])] + [next(in_parts([n]))[0], known_batch_size([n])]


def test_nested_batches_are_cut_at_every_depth_but_not_what_has_another_length():
    for found, rows in zip(run_ranks(nested, 2), ([0, 1], [2, 3]), strict=True):
        n = torch.tensor(rows)
        expected = dict(n=n, both=[n*2, (n*3, 'text')], number=torch.tensor(4.), weights=torch.ones(3))
        for batch in found[:2]: assert str(batch) == str(expected)
        assert found[2].equal(n)
        assert found[3] is None
