"A pass from any batch on: the batches that the whole pass gives, and the numbers drawn after it."
import copy
import random
from contextlib import suppress

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, Subset, TensorDataset

from miniai import Callback, CheckpointCB, TrainLearner
from miniai.data import DataLoaders, SeededSamples
from miniai.randomness import random_states, same_states
from miniai.resume.exactness import loader_resume_blocker
from miniai.resume.loader import (
    RemainingBatches,
    describe_loader,
    length_of,
    loader_state,
    set_loader_state,
    set_workers,
)
from resuming import Noisy, Quiet
from small import mlp

X = torch.arange(23.)


class Stream(IterableDataset):
    def __iter__(self): return ([x] for x in X)


class Jitter:
    "A transform with generators of its own, one of each kind."
    def __init__(self):
        self.torchs, self.pythons = torch.Generator().manual_seed(1), random.Random(4)
        self.numpys = [np.random.default_rng(2), np.random.RandomState(3)]

    def __call__(self, x):
        a, b = self.numpys
        return x + torch.rand((), generator=self.torchs) + a.random() + b.rand() + self.pythons.gauss(0, 1)


class Held:
    "Samples moved by a transform."
    def __init__(self, n, transform=None): self.n, self.transform = n, transform or Jitter()
    def __len__(self): return self.n
    def __getitem__(self, i): return self.transform(X[i]), i


def shared(n):
    "A loader whose order and samples are drawn from one generator."
    g = torch.Generator().manual_seed(6)
    return DataLoader(Held(n, lambda x: x + torch.rand((), generator=g)), 4, sampler=Owned(n, g))


def loader(kind, workers=0):
    if kind == 'memory': return DataLoaders.from_arrays(X, X, valid=(X, X), bs=4, seed=2).train
    if kind == 'memory in order': return DataLoaders.from_arrays(X, X, valid=(X, X), bs=2, seed=2).valid
    if kind == 'cached': return DataLoaders(DataLoader(TensorDataset(X), 4, shuffle=True), [1]).cached().train
    if kind == 'stream': return DataLoader(Stream(), 4)
    if kind == 'held': return DataLoader(Held(23), 4, shuffle=True)
    if kind == 'shared': return shared(23)
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


@pytest.mark.parametrize('kind', ['memory', 'memory in order', 'cached', 'tensors', 'noisy', 'own generator',
                                  'in order', 'list', 'stream', 'held', 'shared'])
def test_from_every_batch_on_a_pass_gives_what_the_whole_one_gave_and_leaves_the_same_states(kind):
    torch.manual_seed(5)
    dl = loader(kind)
    for _ in dl: pass
    begun, seen = whole_pass(dl)
    after = torch.rand(2)
    for start in range(1, len(seen) + 1):
        torch.manual_seed(77)
        rest = RemainingBatches(dl, start, begun, seen[start - 1][1])
        assert length_of(rest) in (None, len(seen))
        got = [b[0] for b in rest]
        assert len(got) == len(seen) - start
        assert all(map(torch.equal, got, [b for b, _ in seen[start:]]))
        assert torch.equal(torch.rand(2), after)
        assert same_states(loader_state(dl), seen[-1][1][1])


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('kind', ['own generator', 'replacement', 'batch_sampler'])
def test_a_loaders_own_generators_end_as_after_the_whole_pass_and_a_further_pass_is_the_same(kind, workers):
    torch.manual_seed(5)
    dl = loader(kind, workers)
    begun, seen = whole_pass(dl)
    after, further = (random_states(), loader_state(dl)), torch.cat([b[0] for b in dl])
    assert after[1]['generators']
    for start in range(1, len(seen) + 1, 1 if workers == 0 else 2 if len(seen) < 10 else 23):
        assert sum(1 for _ in RemainingBatches(dl, start, begun, seen[start - 1][1])) == len(seen) - start
        assert same_states((random_states(), loader_state(dl)), after)
        assert torch.equal(torch.cat([b[0] for b in dl]), further)


class Hundredfold(DataLoader):
    def __iter__(self): return ([100*b[0]] for b in super().__iter__())


def test_a_loader_with_a_way_of_its_own_keeps_it():
    dl = Hundredfold(TensorDataset(X), 4)
    begun, seen = whole_pass(dl)
    assert torch.equal(torch.cat([b[0] for b in RemainingBatches(dl, 2, begun, seen[1][1])]), 100*X[8:])


class Listed:
    "Keeps its batches in an attribute of a name that is a method of ours."
    def __init__(self): self.batches = [(X[:4],), (X[4:8],)]
    def __iter__(self): return iter(self.batches)
    def __len__(self): return 2


def test_a_list_named_batches_is_no_method():
    dl = Listed()
    begun, seen = whole_pass(dl)
    assert [b[0].tolist() for b in RemainingBatches(dl, 1, begun, seen[0][1])] == [[4, 5, 6, 7]]
    assert loader_resume_blocker(dl) == ''
    assert describe_loader(dl)['batches'] == 2


def test_what_is_asked_of_a_rest_is_asked_of_its_loader():
    dl = loader('tensors')
    rest = RemainingBatches(dl, 1, *[(random_states(), loader_state(dl))]*2)
    assert (rest.batch_size, rest.dataset) == (4, dl.dataset)
    assert copy.copy(rest).dl is dl
    with pytest.raises(AttributeError, match='colour'): rest.colour  # noqa: B018


def test_what_cannot_be_taken_up_exactly_says_why():
    for dl in (loader('memory'), loader('tensors'), [1]): assert loader_resume_blocker(dl) == ''
    assert 'gives its batches once' in loader_resume_blocker(iter([1]))
    assert 'batches of its own' in loader_resume_blocker(DataLoader(Stream(), batch_size=None))
    assert 'stream' in loader_resume_blocker(DataLoader(Stream(), batch_size=2))
    assert 'draws random numbers in 2 worker(s)' in loader_resume_blocker(DataLoader(Noisy(4), 2, num_workers=2))
    assert loader_resume_blocker(DataLoader(SeededSamples(Noisy(4)), 2, num_workers=2)) == ''
    before = torch.get_rng_state()
    loader_resume_blocker(DataLoader(Noisy(4), 2, num_workers=2))
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
        assert 'its attribute `generator`' in loader_resume_blocker(DataLoader(TensorDataset(X), 4, sampler=sampler))
    assert 'class Lazy' in loader_resume_blocker(DataLoader(TensorDataset(X), batch_sampler=Lazy(23)))
    for sampler in (list(range(23)), range(23), torch.arange(23), Owned(23, torch.Generator())):
        assert loader_resume_blocker(DataLoader(TensorDataset(X), 4, sampler=sampler)) == ''
    assert loader_resume_blocker(DataLoader(TensorDataset(X), batch_sampler=[[1, 2], [3]])) == ''


class Named:
    def __getitem__(self, name): return dict(a=1., b=2.)[name]


def test_workers_that_cannot_be_started_anew_say_so_and_a_dataset_is_asked_for_an_index_that_it_has():
    def why(ds=None, workers=2, **kwargs):
        return loader_resume_blocker(DataLoader(TensorDataset(X) if ds is None else ds, num_workers=workers, **kwargs))
    assert why(persistent_workers=True) == ''
    for ds in (Noisy(4), SeededSamples(Noisy(4)), Held(4)):
        assert 'use persistent_workers=False' in why(ds, persistent_workers=True)
    assert 'give it one of its own' in why(shuffle=True, generator=torch.default_generator)
    assert why(shuffle=True, generator=torch.default_generator, workers=0) == ''
    assert why(Named(), sampler=['b', 'a']) == why([], sampler=[]) == ''
    dl = loader('own generator', 2)
    before = random_states(), loader_state(dl)
    assert loader_resume_blocker(dl) == ''
    assert same_states((random_states(), loader_state(dl)), before)


@pytest.mark.skipif(not hasattr(loader('in order'), 'in_order'), reason="this torch gives batches in order alone")
def test_workers_out_of_order_say_so():
    assert 'use in_order=True' in loader_resume_blocker(DataLoader(TensorDataset(X), num_workers=2, in_order=False))
    assert loader_resume_blocker(DataLoader(TensorDataset(X), num_workers=1, in_order=False)) == ''


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
                                                     order=True, workers=False, persistent_workers=False,
                                                     seeded_samples=False)
    assert describe_loader(loader('in order')) == dict(batches=5, samples=23, batch_size=4, seed=None, drop_last=True,
                                                       order='SequentialSampler', workers=False,
                                                       persistent_workers=False, seeded_samples=False)


def test_only_plain_values_describe_a_loader():
    class Odd:
        bs, seed = [torch.ones(2)], torch.ones(2)
        def __len__(self): return 3
    found = describe_loader(Odd())
    assert found.pop('batches') == 3
    assert set(found.values()) == {None, False}


def test_the_length_of_what_does_not_know_it_is_none():
    got = [length_of(x) for x in ([], (1, 2), DataLoader(range(5), 2), iter('ab'), DataLoader(Stream(), 2), None)]
    assert got == [0, 2, 3, None, None, None]


def test_a_loaders_state_is_put_back():
    dl = loader('own generator')
    state = loader_state(dl)
    first = [b[0] for b in dl]
    set_loader_state(dl, state)
    assert all(map(torch.equal, [b[0] for b in dl], first))


def test_a_pass_that_has_become_shorter_cannot_be_taken_up():
    for dl in ([1, 2], DataLoader(TensorDataset(X), 12)):
        states = random_states(), loader_state(dl)
        with pytest.raises(ValueError, match='was left after 3 batches cannot be taken up there: it has 2 now'):
            list(RemainingBatches(dl, 3, states, states))


# Samplers that draw as soon as they begin

class Eager(BatchSampler):
    "Draws its order when it is asked to begin, which a DataLoader with workers does twice."
    def __init__(self): self.generator = torch.Generator().manual_seed(8)
    def __len__(self): return 6
    def __iter__(self): return iter(torch.randperm(23, generator=self.generator).split(4))


@pytest.mark.parametrize('workers', [0, 1])
def test_a_sampler_that_draws_early_begins_as_often_as_in_the_whole_pass(workers):
    dl = DataLoader(TensorDataset(X), batch_sampler=Eager(), num_workers=workers)
    begun, seen = whole_pass(dl)
    got = [b[0] for b in RemainingBatches(dl, 2, begun, seen[1][1])]
    assert all(map(torch.equal, got, [b for b, _ in seen[2:]]))
    assert same_states(loader_state(dl), seen[-1][1][1])


# Generators that a dataset holds

def test_generators_held_by_a_dataset_through_wrappers_and_by_collate_functions_are_part_of_a_loaders_state():
    def kinds(dl): return sorted(s['kind'] for s in loader_state(dl)['held'])
    every = ["numpy's Generator of PCG64", "numpy's RandomState of MT19937", 'random.Random of version 3',
             'torch.Generator on cpu']
    assert kinds(DataLoader(SeededSamples(Subset(Held(4), [1, 2])))) == every
    rng = random.Random(1)
    assert kinds(DataLoader(TensorDataset(X), collate_fn=lambda b: rng.sample(b, len(b)))) == every[2:3]
    assert kinds(loader('shared')) == kinds(loader('own generator')) == kinds(loader('memory')) == []
    class Own:
        def __init__(self): self.rng = np.random.default_rng(3)
        def __iter__(self): return iter([self.rng.random()])
    dl = Own()
    state = loader_state(dl)
    first = list(dl)
    set_loader_state(dl, state)
    assert list(dl) == first


def test_workers_with_copies_of_a_generator_say_whose_and_what_to_do():
    for wrap in (lambda ds: ds, SeededSamples, lambda ds: Subset(ds, range(4))):
        dl = DataLoader(wrap(Held(4)), num_workers=2)
        before = loader_state(dl)
        why = loader_resume_blocker(dl)
        assert 'transform.numpys.0 and ' in why
        assert "let it draw from torch's, numpy's or Python's global generator, and wrap its dataset in" in why
        assert same_states(loader_state(dl), before)
        assert loader_resume_blocker(DataLoader(wrap(Held(4)))) == ''
    g = torch.Generator()
    dl = DataLoader(Held(4, lambda x: x + torch.rand((), generator=g)), sampler=Owned(4, g), num_workers=1)
    assert 'that it holds, dataset.transform.' in loader_resume_blocker(dl)


def test_the_global_generators_under_another_name_are_the_global_ones():
    def transform(x): return x + random.random()
    ds = Held(4, transform)
    ds.rng = random.getstate.__self__
    dl = DataLoader(ds, num_workers=1)
    assert 'SeededSamples' in loader_resume_blocker(dl)
    assert loader_resume_blocker(DataLoader(SeededSamples(ds), num_workers=1)) == ''
    assert loader_state(dl)['held'] == []


# Workers that stay from pass to pass

@pytest.fixture
def stay():
    "Makes loaders of 2 workers that stay, and lets these go at the end."
    made = []
    def make(*args, **kwargs):
        made.append(DataLoader(*args, num_workers=2, persistent_workers=True, **kwargs))
        return made[-1]
    yield make
    for dl in made: set_workers(dl, dict(workers_up=False))


def pids(dl): return [w.pid for w in dl._iterator._workers]


def test_workers_are_started_without_loading_anything_stay_where_they_are_up_and_are_let_go(stay):
    dl = stay(TensorDataset(X), 4)
    up, down = dict(workers_up=True), dict(workers_up=False)
    assert loader_state(dl)['workers_up'] is False
    set_workers(dl, up)
    assert loader_state(dl)['workers_up'] is True
    assert dl._iterator._send_idx == 0
    first = pids(dl)
    set_workers(dl, up)
    assert pids(dl) == first
    dl._iterator._workers[0].kill()
    dl._iterator._workers[0].join()
    set_workers(dl, up)
    assert pids(dl) != first
    gone = dl._iterator._workers
    set_workers(dl, down)
    assert loader_state(dl)['workers_up'] is False
    assert not any(w.is_alive() for w in gone)
    set_workers(loader('tensors'), up)
    set_workers([1], up)


@pytest.mark.parametrize('generator', [False, True])
@pytest.mark.parametrize('passes', [0, 1])
def test_a_pass_of_workers_that_stay_is_taken_up_whether_they_were_up_when_it_began(passes, generator, stay):
    def made(): return stay(TensorDataset(X), 4, shuffle=True,
                            generator=torch.Generator().manual_seed(7) if generator else None)
    torch.manual_seed(5)
    dl = made()
    for _ in range(passes): list(dl)
    begun, seen = whole_pass(dl)
    after, further = (random_states(), loader_state(dl)), torch.cat([b[0] for b in dl])
    last = random_states()
    for start in (1, len(seen)):
        for other in (dl, made()):
            got = [b[0] for b in RemainingBatches(other, start, begun, seen[start - 1][1])]
            assert all(map(torch.equal, got, [b for b, _ in seen[start:]]))
            assert len(got) == len(seen) - start
            assert same_states((random_states(), loader_state(other)), after)
            assert torch.equal(torch.cat([b[0] for b in other]), further)
            assert same_states(random_states(), last)


class LogCB(Callback):
    "Notes which batches the run saw, and stops it after one of them, or between the epochs."
    order = float('inf')
    def __init__(self, seen, stop=None): self.seen, self.stop = seen, stop
    def before_batch(self, learn): self.seen.append((learn.epoch, learn.training, learn.batch[1].tolist()))
    def cleanup_batch(self, learn): self._stop(learn.epoch, learn.training and learn.iter)
    def cleanup_epoch(self, learn): self._stop(learn.epoch, 'valid' if not learn.training else None)
    def _stop(self, *at):
        if at == self.stop: raise KeyError('stopped by a test')


@pytest.mark.parametrize('stop', [(0, 2), (0, 'valid'), (1, 0), (1, 'valid'), (2, 3)])
@pytest.mark.parametrize('same', [False, True])
def test_a_run_whose_workers_stay_goes_on_to_the_bit_with_its_own_loaders_and_with_new_ones(same, stop, stay, tmp_path):
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    def dls(): return DataLoaders(stay(TensorDataset(x, y), 5, shuffle=True), stay(TensorDataset(x, y), 10))
    def fit(dls, folder, seen, stop=None, resume=False):
        torch.manual_seed(88 if resume else 2)
        learn = TrainLearner(mlp(), dls, F.cross_entropy, .1,
                             [CheckpointCB(tmp_path/folder, batches=1), Quiet(), LogCB(seen, stop)])
        with suppress(KeyError): learn.fit(3, resume=resume)
        return [p.tolist() for p in learn.model.parameters()], torch.get_rng_state().tolist()
    all_seen, seen, first = [], [], dls()
    want = fit(dls(), 'whole', all_seen)
    fit(first, 'run', seen, stop)
    assert len(seen) < len(all_seen)
    assert fit(first if same else dls(), 'run', seen, resume=True) == want
    assert seen == all_seen
