"A pass from any batch on: the batches that the whole pass gives, and the numbers drawn after it."
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

from miniai.activations import set_seed
from miniai.data import DataLoaders, SeededSamples
from miniai.data.position import (
    FromBatch,
    describe_loader,
    length_of,
    loader_state,
    set_loader_state,
    why_not_exact,
)
from miniai.randomness import random_states
from resuming import Noisy

X = torch.arange(23.)


def loader(kind):
    if kind == 'memory': return DataLoaders.from_arrays(X, X, valid=(X, X), bs=4, seed=2).train
    if kind == 'own generator':
        g = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(X), 4, sampler=RandomSampler(X, generator=g), generator=g)
    if kind == 'in order': return DataLoader(TensorDataset(X), 4, drop_last=True)
    if kind == 'list': return [(X[i:i + 4],) for i in range(0, 23, 4)]
    return DataLoader(TensorDataset(X) if kind == 'tensors' else Noisy(23), 4, shuffle=True)


def whole_pass(dl):
    "Every batch of a pass, with the states before it and those after each batch."
    begun, out = (random_states(), loader_state(dl)), []
    for batch in dl: out.append((batch[0], (random_states(), loader_state(dl))))
    return begun, out


@pytest.mark.parametrize('kind', ['memory', 'tensors', 'noisy', 'own generator', 'in order', 'list'])
def test_from_every_batch_on_a_pass_gives_what_the_whole_one_gave_and_leaves_the_same_states(kind):
    torch.manual_seed(5)
    dl = loader(kind)
    for _ in dl: pass
    begun, seen = whole_pass(dl)
    after = torch.rand(2)
    for start in range(1, len(seen) + 1):
        torch.manual_seed(77)
        rest = FromBatch(dl, start, begun, seen[start - 1][1])
        assert len(rest) == len(seen)
        got = [b[0] for b in rest]
        assert len(got) == len(seen) - start
        assert all(map(torch.equal, got, [b for b, _ in seen[start:]]))
        assert torch.equal(torch.rand(2), after)
        assert loader_state(dl)['epoch'] == seen[-1][1][1]['epoch']


def test_seeded_samples_draw_the_same_in_one_worker_and_in_two_but_not_in_two_passes():
    def passes(workers):
        torch.manual_seed(3)
        dl = DataLoader(SeededSamples(Noisy(8)), 4, num_workers=workers)
        return [torch.cat([x for x, _ in dl]) for _ in range(2)]
    one, two = passes(1), passes(2)
    assert all(map(torch.equal, one, two))
    assert not torch.equal(*one)
    assert len(SeededSamples(Noisy(8))) == 8


def test_without_workers_seeded_samples_are_the_dataset_as_it_is():
    set_seed(1)
    want = Noisy(3)[1][0]
    set_seed(1)
    assert torch.equal(SeededSamples(Noisy(3))[1][0], want)


def test_what_cannot_be_taken_up_exactly_says_why():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return iter(range(3))
    assert why_not_exact(loader('memory')) == why_not_exact(loader('tensors')) == why_not_exact([1]) == ''
    assert 'batches of its own' in why_not_exact(DataLoader(Stream(), batch_size=None))
    assert 'stream' in why_not_exact(DataLoader(Stream(), batch_size=2))
    assert 'draws random numbers in 2 worker(s)' in why_not_exact(DataLoader(Noisy(4), 2, num_workers=2))
    assert why_not_exact(DataLoader(SeededSamples(Noisy(4)), 2, num_workers=2)) == ''
    before = torch.get_rng_state()
    why_not_exact(DataLoader(Noisy(4), 2, num_workers=2))
    assert torch.equal(torch.get_rng_state(), before)


def test_loaders_are_described_by_what_decides_their_batches():
    assert describe_loader(loader('memory')) == dict(batches=6, samples=23, batch_size=4, seed=2, drop_last=False,
                                                     order=True)
    assert describe_loader(loader('in order')) == dict(batches=5, samples=23, batch_size=4, seed=None, drop_last=True,
                                                       order='SequentialSampler')


def test_only_plain_values_describe_a_loader():
    class Odd:
        bs, seed = [torch.ones(2)], torch.ones(2)
        def __len__(self): return 3
    found = describe_loader(Odd())
    assert found.pop('batches') == 3
    assert set(found.values()) == {None}



def test_the_length_of_what_does_not_know_it_is_none():
    class Stream(IterableDataset):
        def __iter__(self): return iter(range(3))
    got = [length_of(x) for x in ([], (1, 2), DataLoader(range(5), 2), iter('ab'), DataLoader(Stream(), 2), None)]
    assert got == [0, 2, 3, None, None, None]


def test_a_loaders_state_is_put_back():
    dl = loader('own generator')
    state = loader_state(dl)
    first = [b[0] for b in dl]
    set_loader_state(dl, state)
    assert all(map(torch.equal, [b[0] for b in dl], first))
