"A pass from any batch on: the batches that the whole pass gives, and the numbers drawn after it."
import copy
import random

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, TensorDataset

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
from miniai.randomness import random_states, same_states
from resuming import Noisy

X = torch.arange(23.)


def loader(kind, workers=0):
    if kind == 'memory': return DataLoaders.from_arrays(X, X, valid=(X, X), bs=4, seed=2).train
    if kind == 'own generator':
        g = torch.Generator().manual_seed(3)
        return DataLoader(TensorDataset(X), 4, sampler=RandomSampler(X, generator=g), generator=g,
                          num_workers=workers)
    if kind == 'replacement':
        return DataLoader(TensorDataset(X), 1, sampler=RandomSampler(X, True, 70, torch.Generator().manual_seed(3)),
                          num_workers=workers)
    if kind == 'batch_sampler':
        inner = RandomSampler(X, generator=torch.Generator().manual_seed(3))
        return DataLoader(TensorDataset(X), batch_sampler=BatchSampler(inner, 4, False), num_workers=workers)
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


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', ['own generator', 'replacement', 'batch_sampler'])
def test_a_loaders_own_generators_end_as_after_the_whole_pass_and_a_further_pass_is_the_same(kind, workers):
    torch.manual_seed(5)
    dl = loader(kind, workers)
    begun, seen = whole_pass(dl)
    after, further = (random_states(), loader_state(dl)), torch.cat([b[0] for b in dl])
    assert after[1]['generators']
    for start in range(1, len(seen) + 1, 1 if workers == 0 else 2 if len(seen) < 10 else 23):
        assert sum(1 for _ in FromBatch(dl, start, begun, seen[start - 1][1])) == len(seen) - start
        assert same_states((random_states(), loader_state(dl)), after)
        assert torch.equal(torch.cat([b[0] for b in dl]), further)


class Hundredfold(DataLoader):
    def __iter__(self): return ([100*b[0]] for b in super().__iter__())


def test_a_loader_with_a_way_of_its_own_keeps_it():
    dl = Hundredfold(TensorDataset(X), 4)
    begun, seen = whole_pass(dl)
    assert torch.equal(torch.cat([b[0] for b in FromBatch(dl, 2, begun, seen[1][1])]), 100*X[8:])


class Listed:
    "Keeps its batches in an attribute of a name that is a method of ours."
    def __init__(self): self.batches = [(X[:4],), (X[4:8],)]
    def __iter__(self): return iter(self.batches)
    def __len__(self): return 2


def test_a_list_named_batches_is_no_method():
    dl = Listed()
    begun, seen = whole_pass(dl)
    assert [b[0].tolist() for b in FromBatch(dl, 1, begun, seen[0][1])] == [[4, 5, 6, 7]]
    assert why_not_exact(dl) == ''
    assert describe_loader(dl)['batches'] == 2


def test_what_is_asked_of_a_rest_is_asked_of_its_loader():
    dl = loader('tensors')
    rest = FromBatch(dl, 1, *[(random_states(), loader_state(dl))]*2)
    assert (rest.batch_size, rest.dataset) == (4, dl.dataset)
    assert copy.copy(rest).dl is dl
    with pytest.raises(AttributeError, match='colour'): rest.colour  # noqa: B018


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


class Lazy(Sampler):
    "Draws each index when it is asked for."
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __iter__(self): return (random.randrange(self.n) for _ in range(self.n))


class Owned(Lazy):
    def __init__(self, n, generator): self.n, self.generator = n, generator
    def __iter__(self): return (int(torch.randint(self.n, (), generator=self.generator)) for _ in range(self.n))


def test_a_sampler_that_draws_from_nobody_knows_where_says_so_and_one_with_a_generator_is_replayed():
    for sampler in (Lazy(23), iter(range(23)), (i for i in range(23))):
        assert 'its attribute `generator`' in why_not_exact(DataLoader(TensorDataset(X), 4, sampler=sampler))
    assert 'class Lazy' in why_not_exact(DataLoader(TensorDataset(X), batch_sampler=Lazy(23)))
    for sampler in (list(range(23)), range(23), torch.arange(23), Owned(23, torch.Generator())):
        assert why_not_exact(DataLoader(TensorDataset(X), 4, sampler=sampler)) == ''
    assert why_not_exact(DataLoader(TensorDataset(X), batch_sampler=[[1, 2], [3]])) == ''


class Named:
    def __getitem__(self, name): return dict(a=1., b=2.)[name]


def test_workers_that_cannot_be_started_anew_say_so_and_a_dataset_is_asked_for_an_index_that_it_has():
    def why(ds=None, workers=2, **kwargs):
        return why_not_exact(DataLoader(TensorDataset(X) if ds is None else ds, num_workers=workers, **kwargs))
    assert 'use persistent_workers=False' in why(persistent_workers=True)
    assert 'use persistent_workers=False' in why(SeededSamples(Noisy(4)), persistent_workers=True)
    assert 'give it one of its own' in why(shuffle=True, generator=torch.default_generator)
    assert why(shuffle=True, generator=torch.default_generator, workers=0) == ''
    assert why(Named(), sampler=['b', 'a']) == why([], sampler=[]) == ''
    dl = loader('own generator', 2)
    before = random_states(), loader_state(dl)
    assert why_not_exact(dl) == ''
    assert same_states((random_states(), loader_state(dl)), before)


@pytest.mark.skipif(not hasattr(loader('in order'), 'in_order'), reason="this torch gives batches in order alone")
def test_workers_out_of_order_say_so():
    assert 'use in_order=True' in why_not_exact(DataLoader(TensorDataset(X), num_workers=2, in_order=False))
    assert why_not_exact(DataLoader(TensorDataset(X), num_workers=1, in_order=False)) == ''


def test_workers_and_seeded_samples_are_part_of_a_loaders_description():
    def described(ds, workers):
        found = describe_loader(DataLoader(ds, num_workers=workers))
        return found['workers'], found['seeded_samples']
    ds = Noisy(4)
    assert described(ds, 0) == (False, False)
    assert described(SeededSamples(ds), 0) == (False, True)
    assert described(SeededSamples(ds), 1) == described(SeededSamples(ds), 2) == (True, True)


def test_loaders_are_described_by_what_decides_their_batches():
    assert describe_loader(loader('memory')) == dict(batches=6, samples=23, batch_size=4, seed=2, drop_last=False,
                                                     order=True, workers=False, seeded_samples=False)
    assert describe_loader(loader('in order')) == dict(batches=5, samples=23, batch_size=4, seed=None, drop_last=True,
                                                       order='SequentialSampler', workers=False, seeded_samples=False)


def test_only_plain_values_describe_a_loader():
    class Odd:
        bs, seed = [torch.ones(2)], torch.ones(2)
        def __len__(self): return 3
    found = describe_loader(Odd())
    assert found.pop('batches') == 3
    assert set(found.values()) == {None, False}


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
