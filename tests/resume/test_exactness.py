"Reasons why a loader cannot be resumed mid-epoch are found, without opening files or drawing numbers in this process."
import multiprocessing
import os
import random
from functools import partial

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from miniai import DataLoaders, SeededSamples
from miniai.randomness import random_states, same_states
from miniai.resume.exactness import loader_resume_blocker
from miniai.resume.loader import loader_state
from resuming import Noisy

X = torch.arange(24.)
TENSORS = TensorDataset(X)


def blocker(ds=TENSORS, bs=4, workers=2, others=(), **kwargs):
    return loader_resume_blocker(DataLoader(ds, bs, num_workers=workers, **kwargs), others)


class Wrap:
    def __init__(self, dl): self.dl = dl
    def __len__(self): return len(self.dl)
    def __iter__(self): yield from self.dl


class Stream(IterableDataset):
    def __iter__(self): return iter(X)


class Sometimes:
    "Draws only for odd samples."
    def __len__(self): return 24
    def __getitem__(self, i): return X[i] + torch.rand(()) if i % 2 else X[i]


class Batchwise(TensorDataset):
    "Draws when it is asked for several samples at once."
    def __getitems__(self, indices): return [(X[i] + random.random(),) for i in indices]


class Moved:
    def __init__(self, transform): self.transform = transform
    def __len__(self): return 24
    def __getitem__(self, i): return self.transform(X[i])


class Jitter:
    def __init__(self): self.rngs = [random.Random(1), torch.Generator()]
    def __call__(self, x): return x + self.rngs[0].random() + torch.rand((), generator=self.rngs[1])


# What can be resumed

@pytest.mark.parametrize('dl', [
    [1], Wrap(DataLoader(TENSORS)), DataLoaders.from_arrays(X, X, valid=.2, bs=4).train,
    DataLoader(TENSORS, 4, shuffle=True), DataLoader(Moved(Jitter()), 4), DataLoader(Sometimes(), 4)])
def test_in_memory_data_lists_wrappers_and_loaders_without_workers_can_be_resumed(dl):
    assert loader_resume_blocker(dl) == ''


class Named:
    def __getitem__(self, name): return dict(a=1., b=2.)[name]


@pytest.mark.parametrize('kwargs', [
    {}, dict(shuffle=True), dict(shuffle=True, persistent_workers=True), dict(sampler=range(24)),
    dict(sampler=torch.arange(24)), dict(shuffle=True, generator=torch.Generator()),
    dict(ds=SeededSamples(Noisy(4))), dict(ds=Named(), sampler=['b', 'a']), dict(ds=[], sampler=[])])
def test_workers_that_draw_nothing_or_by_seeded_samples_can_be_resumed(kwargs): assert blocker(**kwargs) == ''


# What cannot

def test_iterators_streams_and_datasets_of_batches_cannot():
    assert 'an iterator, which can be used only once' in loader_resume_blocker(iter([1]))
    assert 'its dataset is an IterableDataset' in blocker(Stream(), workers=0)
    assert 'its dataset makes whole batches' in blocker(bs=None, workers=0)


class Unknown(Sampler):
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __iter__(self): return (random.randrange(self.n) for _ in range(self.n))


class Known(Unknown):
    generator = torch.Generator()


def test_a_sampler_needs_a_known_random_source():
    for sampler in (Unknown(23), iter(range(23)), (i for i in range(23))):
        says = f"the sampler's random source is unknown: let {type(sampler).__name__} draw only from a generator"
        assert says in blocker(sampler=sampler, workers=0)
    assert 'let Unknown draw' in loader_resume_blocker(DataLoader(TENSORS, batch_sampler=Unknown(23)))
    assert blocker(sampler=Known(23), workers=0) == ''
    assert loader_resume_blocker(DataLoader(TENSORS, batch_sampler=[[1, 2], [3]])) == ''


def test_an_order_must_not_share_a_generator_with_a_callback_if_it_is_drawn_bit_by_bit():
    g = torch.Generator()
    others = [('DrawsCB.mine', g)]
    says = 'its order comes from a generator that DrawsCB.mine draws from too: give each its own'
    bit_by_bit = RandomSampler(TENSORS, True, generator=g)
    assert blocker(others=others, shuffle=True, generator=g) == says
    assert blocker(others=others, sampler=bit_by_bit, workers=0) == says
    assert blocker(others=others, shuffle=True, generator=g, workers=0) == ''
    assert blocker(others=[('DrawsCB.mine', torch.Generator())], shuffle=True, generator=g) == ''


def test_an_order_must_not_come_from_the_default_generator_if_it_is_drawn_bit_by_bit():
    g, says = torch.default_generator, "torch's default generator, which training draws from too"
    bit_by_bit = RandomSampler(TENSORS, True, generator=g), RandomSampler(X, num_samples=len(X) + 1, generator=g)
    for sampler in bit_by_bit: assert says in blocker(sampler=sampler, workers=0)
    assert says in blocker(shuffle=True, generator=g)
    for sampler in (RandomSampler(TENSORS, generator=g), RandomSampler(TENSORS, True)):
        assert blocker(sampler=sampler, workers=0) == ''


def test_batches_must_come_in_order():
    assert 'use in_order=True' in blocker(in_order=False)
    assert blocker(workers=1, in_order=False) == ''


# What workers draw

def noisy(samples, factor=1.): return default_collate(samples)[0] + factor*torch.rand(1)


@pytest.mark.parametrize(('ds', 'collate', 'says'), [
    (Sometimes(), None, 'its dataset draws random numbers in 2 worker'),
    (Batchwise(X), None, 'its dataset draws random numbers in 2 worker'),
    (SeededSamples(TENSORS), partial(noisy, factor=2.), 'its collate_fn draws random numbers in 2 worker')])
def test_draws_from_global_generators_in_workers_are_found(ds, collate, says):
    assert says in blocker(ds, collate_fn=collate)
    assert 'between epochs is not exact either' in blocker(ds, collate_fn=collate, persistent_workers=True)
    assert blocker(ds, collate_fn=collate, workers=0) == ''


@pytest.mark.parametrize('wrap', [SeededSamples, lambda ds: Subset(ds, range(4))])
def test_draws_from_generators_in_the_dataset_are_found_and_named(wrap):
    dl = DataLoader(wrap(Moved(Jitter())), num_workers=2)
    before = loader_state(dl)
    why = loader_resume_blocker(dl)
    assert 'transform.rngs.0 and ' in why
    assert "global generator instead, and wrap the dataset in miniai.SeededSamples(dataset)" in why
    assert same_states(loader_state(dl), before)


def test_persistent_workers_do_not_help_seeded_samples():
    assert 'use persistent_workers=False' in blocker(SeededSamples(Noisy(4)), persistent_workers=True)


def test_a_global_generator_in_an_attribute_counts_as_global():
    ds = Moved(lambda x: x + random.random())
    ds.rng = random.getstate.__self__
    assert 'SeededSamples' in blocker(ds, workers=1)
    assert blocker(SeededSamples(ds), workers=1) == ''
    assert loader_state(DataLoader(ds))['data_generators'] == []


@pytest.mark.parametrize('make', [
    lambda **kwargs: Wrap(DataLoader(TENSORS, **kwargs)), lambda **kwargs: DataLoader(Stream(), **kwargs),
    lambda **kwargs: DataLoader(TENSORS, batch_size=None, **kwargs)])
def test_persistent_workers_are_named_as_a_problem_wherever_they_are(make):
    says = 'use persistent_workers=False'
    assert says in loader_resume_blocker(make(num_workers=1, persistent_workers=True))
    assert says not in loader_resume_blocker(make(num_workers=1))


# How they are looked at

class Opens:
    "A file that each process opens for itself, by the number of its worker."
    def __init__(self): self.pid = None
    def __len__(self): return 24
    def __getitem__(self, i):
        self.pid, worker = self.pid or os.getpid(), get_worker_info().id
        return torch.tensor([float(i), worker, self.pid])


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_samples_are_made_in_a_worker_and_never_in_this_process(context):
    ds = Opens()
    assert blocker(ds, multiprocessing_context=context) == ''
    assert ds.pid is None
    pids = torch.cat([b[:, 2] for b in DataLoader(ds, 4, num_workers=2)]).unique()
    assert len(pids) == 2
    assert os.getpid() not in pids.tolist()


def test_nothing_is_drawn_in_this_process_and_no_process_is_left():
    dl = DataLoader(Sometimes(), 4, shuffle=True, num_workers=2, generator=torch.Generator())
    before = random_states(), loader_state(dl)
    assert loader_resume_blocker(dl)
    assert same_states((random_states(), loader_state(dl)), before)
    assert not multiprocessing.active_children()


class CountsPasses(Known):
    passes = 0
    def __iter__(self):
        self.passes += 1
        return super().__iter__()


def test_a_copy_of_a_users_sampler_is_asked_for_indices():
    sampler = CountsPasses(24)
    assert blocker(sampler=sampler) == ''
    assert sampler.passes == 0


def eights(samples): return default_collate(samples)[0].view(2, 16)


def test_whole_batches_are_made():
    assert blocker(TensorDataset(X.repeat(4)), 32, drop_last=True, collate_fn=eights) == ''
    assert loader_resume_blocker(DataLoader(TENSORS, batch_sampler=[range(4), range(4, 8)], num_workers=1)) == ''
