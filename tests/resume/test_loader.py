"The rest of a pass from any batch on: the batches that the whole pass gives, and the random numbers drawn after it."
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
)

from miniai import Callback, CheckpointCB, TrainLearner
from miniai.data import DataLoaders, SeededSamples
from miniai.randomness import random_states, same_states
from miniai.resume.loader import (
    RemainingBatches,
    describe_loader,
    length_of,
    loader_state,
    sampler_state,
    set_loader_state,
    set_sampler_state,
    set_workers,
)
from resuming import Noisy, Quiet, StopCB, Stopped, assert_resumes_exactly, fit_until_stopped
from small import mlp

X = torch.arange(23.)


class Stream(IterableDataset):
    def __iter__(self): return ([x] for x in X)


class Jitter:
    "A transform with its own generators, one of each kind."
    def __init__(self):
        self.torchs, self.pythons = torch.Generator().manual_seed(1), random.Random(4)
        self.numpys = [np.random.default_rng(2), np.random.RandomState(3)]

    def __call__(self, x):
        a, b = self.numpys
        return x + torch.rand((), generator=self.torchs) + a.random() + b.rand() + self.pythons.gauss(0, 1)


class Jittered:
    def __init__(self, n, transform=None): self.n, self.transform = n, transform or Jitter()
    def __len__(self): return self.n
    def __getitem__(self, i): return self.transform(X[i]), i


class OneByOne(Sampler):
    "Draws each index from its generator when it is asked for."
    def __init__(self, n, generator): self.n, self.generator = n, generator
    def __len__(self): return self.n
    def __iter__(self): return (int(torch.randint(self.n, (), generator=self.generator)) for _ in range(self.n))


def seeded(seed=3): return torch.Generator().manual_seed(seed)


def loader(kind, workers=0):
    tensors = TensorDataset(X)
    if kind == 'memory': return DataLoaders.from_arrays(X, X, valid=(X, X), bs=4, seed=2).train
    if kind == 'memory in order': return DataLoaders.from_arrays(X, X, valid=(X, X), bs=2, seed=2).valid
    if kind == 'cached': return DataLoaders(DataLoader(tensors, 4, shuffle=True), [1]).cached().train
    if kind == 'stream': return DataLoader(Stream(), 4)
    if kind == 'jittered': return DataLoader(Jittered(23), 4, shuffle=True)
    if kind == 'one generator':  # for order and samples
        g = seeded()
        return DataLoader(Jittered(23, lambda x: x + torch.rand((), generator=g)), 4, sampler=OneByOne(23, g))
    if kind == 'own generator':
        g = seeded()
        return DataLoader(tensors, 4, sampler=RandomSampler(X, generator=g), generator=g, num_workers=workers)
    if kind == 'replacement':
        return DataLoader(tensors, 1, sampler=RandomSampler(X, True, 70, seeded()), num_workers=workers)
    if kind == 'batch_sampler':
        inner = RandomSampler(X, generator=seeded())
        return DataLoader(tensors, batch_sampler=BatchSampler(inner, 4, False), num_workers=workers)
    if kind == 'in order': return DataLoader(tensors, 4, drop_last=True)
    if kind == 'list': return [(X[i:i + 4],) for i in range(0, 23, 4)]
    return DataLoader(tensors if kind == 'tensors' else Noisy(23), 4, shuffle=True)


def states(dl): return random_states(), loader_state(dl)


def whole_pass(dl):
    "The states before a pass, and its batches, each with the states after it."
    return states(dl), [(batch[0], states(dl)) for batch in dl]


KINDS = ['memory', 'memory in order', 'cached', 'tensors', 'noisy', 'own generator', 'in order', 'list', 'stream',
         'jittered', 'one generator']


@pytest.mark.parametrize('kind', KINDS)
def test_from_every_batch_on_the_rest_of_a_pass_and_the_states_after_it_are_the_same(kind):
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
def test_a_loaders_own_generators_end_as_after_the_whole_pass_so_the_next_pass_is_the_same(kind, workers):
    torch.manual_seed(5)
    dl = loader(kind, workers)
    begun, seen = whole_pass(dl)
    after, further = states(dl), torch.cat([b[0] for b in dl])
    assert after[1]['generators']
    for start in range(1, len(seen) + 1, 1 if workers == 0 else 3 if len(seen) < 10 else 40):
        assert sum(1 for _ in RemainingBatches(dl, start, begun, seen[start - 1][1])) == len(seen) - start
        assert same_states(states(dl), after)
        assert torch.equal(torch.cat([b[0] for b in dl]), further)


class Hundredfold(DataLoader):
    def __iter__(self): return ([100*b[0]] for b in super().__iter__())


class Listed:
    "Has an attribute `batches` that is not a method."
    def __init__(self): self.batches = [(X[:4],), (X[4:8],)]
    def __iter__(self): return iter(self.batches)
    def __len__(self): return 2


@pytest.mark.parametrize('dl', [Hundredfold(TensorDataset(X), 4), Listed()])
def test_a_loader_with_its_own_iter_is_iterated_by_it(dl):
    begun, seen = whole_pass(dl)
    assert [b[0].tolist() for b in RemainingBatches(dl, 1, begun, seen[0][1])] == [b.tolist() for b, _ in seen[1:]]


class Eager(BatchSampler):
    "Draws its order when it is asked for an iterator, which a DataLoader with workers does twice."
    def __init__(self): self.generator = seeded(8)
    def __len__(self): return 6
    def __iter__(self): return iter(torch.randperm(23, generator=self.generator).split(4))


@pytest.mark.parametrize('workers', [0, 1])
def test_a_sampler_that_draws_early_is_started_as_often_as_in_the_whole_pass(workers):
    dl = DataLoader(TensorDataset(X), batch_sampler=Eager(), num_workers=workers)
    begun, seen = whole_pass(dl)
    got = [b[0] for b in RemainingBatches(dl, 2, begun, seen[1][1])]
    assert all(map(torch.equal, got, [b for b, _ in seen[2:]]))
    assert same_states(loader_state(dl), seen[-1][1][1])


@pytest.mark.parametrize('dl', [[1, 2], DataLoader(TensorDataset(X), 12)])
def test_a_pass_that_is_shorter_now_cannot_be_resumed_after_its_end(dl):
    with pytest.raises(ValueError, match='cannot resume a pass after 3 batches: the loader gives only 2 now'):
        list(RemainingBatches(dl, 3, states(dl), states(dl)))


class Ahead:
    "Makes four batches at once, with random numbers in them."
    def __len__(self): return 6
    def __iter__(self):
        made = []
        for i in range(6):
            if not made: made = [X[4*k:4*k + 3].view(3, 1) + torch.randn(1, 4) for k in range(i, min(i + 4, 6))]
            yield made.pop(0), torch.tensor([0, 1, 2])


class Lazily:
    def __len__(self): return 6
    def __iter__(self): return ((torch.randn(3, 4), torch.tensor([0, 1, 2])) for _ in range(6))


@pytest.mark.parametrize('dl', [Ahead(), Lazily()])
def test_a_warning_says_that_a_loader_which_draws_ahead_will_not_resume_exactly(dl, tmp_path):
    def learner(*cbs): return TrainLearner(mlp(), DataLoaders(dl, Lazily()), F.cross_entropy, .1,
                                           [CheckpointCB(tmp_path, batches=1), *cbs])
    fit_until_stopped(learner(StopCB(0, 4)), 1)
    says = f'first 5 batches were loaded again .*{type(dl).__name__} drew .* only if it draws for one batch at a time'
    with pytest.warns(UserWarning, match=says): learner().fit(1, resume=True)


# Descriptions

def test_loaders_are_described_by_what_decides_their_batches():
    other = dict(workers=False, persistent_workers=False, seeded_samples=False)
    assert describe_loader(loader('memory')) == dict(batches=6, samples=23, batch_size=4, seed=2, drop_last=False,
                                                     order=True, **other)
    assert describe_loader(loader('in order')) == dict(batches=5, samples=23, batch_size=4, seed=None, drop_last=True,
                                                       order='SequentialSampler', **other)
    assert describe_loader(Listed())['batches'] == 2


def test_workers_and_seeded_samples_are_part_of_a_description_and_the_number_of_workers_is_not():
    def described(ds, workers):
        found = describe_loader(DataLoader(ds, num_workers=workers))
        return found['workers'], found['seeded_samples']
    ds = Noisy(4)
    assert described(ds, 0) == (False, False)
    assert described(SeededSamples(ds), 0) == (False, True)
    assert described(SeededSamples(ds), 1) == described(SeededSamples(ds), 2) == (True, True)


def test_only_plain_values_are_in_a_description():
    class Odd:
        bs, seed = [torch.ones(2)], torch.ones(2)
        def __len__(self): return 3
    found = describe_loader(Odd())
    assert found.pop('batches') == 3
    assert set(found.values()) == {None, False}


# A loader's state

def test_a_loaders_state_is_restored():
    class Own:
        def __init__(self): self.rng = np.random.default_rng(3)
        def __iter__(self): return iter([[torch.tensor(self.rng.random())]])
    for dl in (loader('own generator'), Own()):
        state = loader_state(dl)
        first = [b[0] for b in dl]
        set_loader_state(dl, state)
        assert all(map(torch.equal, [b[0] for b in dl], first))


def test_generators_in_wrapped_datasets_and_collate_functions_are_part_of_the_state():
    def kinds(dl): return sorted(s['kind'] for s in loader_state(dl)['data_generators'])
    every = ["numpy's Generator of PCG64", "numpy's RandomState of MT19937", 'random.Random of version 3',
             'torch.Generator on cpu']
    assert kinds(DataLoader(SeededSamples(Subset(Jittered(4), [1, 2])))) == every
    rng = random.Random(1)
    assert kinds(DataLoader(TensorDataset(X), collate_fn=lambda b: rng.sample(b, len(b)))) == every[2:3]
    for kind in ('one generator', 'own generator', 'memory'): assert kinds(loader(kind)) == []


# Attributes that change from pass to pass

X4, Y = torch.randn(24, 4, generator=seeded()), torch.arange(24) % 3


class Loader:
    "Six batches of four, in the order of `indices()`."
    def __len__(self): return 6
    def __iter__(self):
        order = torch.tensor([*self.indices()])
        for i in range(6): yield X4[order[4*i:4*i + 4]], Y[order[4*i:4*i + 4]]


class ByCount(Loader):
    def __init__(self): self.passes = 0
    def indices(self):
        self.passes += 1
        return torch.randperm(24, generator=seeded(self.passes)).tolist()


class ByList(Loader):
    def __init__(self): self.order = list(range(24))
    def indices(self):
        random.shuffle(self.order)
        return self.order


class ByTensor(Loader):
    def __init__(self): self.order = torch.arange(24)
    def indices(self):
        self.order = self.order[torch.randperm(24)]
        return self.order


class Shuffler(Sampler):
    def __init__(self): self.generator, self.order = np.random.default_rng(1), np.arange(24)
    def __len__(self): return 24
    def __iter__(self):
        self.generator.shuffle(self.order)
        return iter(self.order.tolist())


class CountsPasses(Sampler):
    "Shuffles by its number of passes."
    def __init__(self): self.generator, self.passes = torch.Generator(), 0
    def __len__(self): return 24
    def __iter__(self):
        self.generator.manual_seed(self.passes)
        self.passes += 1
        yield from torch.randperm(24, generator=self.generator).tolist()


class Growing(DataLoader):
    "Multiplies its batches by its number of passes."
    passes = 0
    def __iter__(self):
        self.passes = self.passes + 1
        for xb, yb in super().__iter__(): yield xb*self.passes, yb


def sampled(sampler, **kwargs): return DataLoader(TensorDataset(X4, Y), 4, sampler=sampler, **kwargs)


@pytest.mark.parametrize('make', [
    ByCount, ByList, ByTensor, lambda: sampled(Shuffler()), lambda: sampled(Shuffler(), num_workers=1),
    lambda: sampled(CountsPasses()), lambda: sampled(CountsPasses(), num_workers=2),
    lambda: Growing(TensorDataset(X4, Y), 4)])
def test_attributes_that_loaders_and_samplers_change_from_pass_to_pass_are_restored(make, tmp_path):
    def learner(folder, *cbs):
        torch.manual_seed(1)
        random.seed(1)
        saves = CheckpointCB(folder, batches=1)
        return TrainLearner(mlp(), DataLoaders(make(), [(X4, Y)]), F.cross_entropy, .1, [saves, *cbs])
    assert_resumes_exactly(learner, tmp_path, ((0, 3), (1, 1)), 3)


class Holder: "Has attributes."


def holding(**kwargs):
    x = Holder()
    vars(x).update(kwargs)
    return x


ORDERS = st.lists(st.integers(0, 50), min_size=2, max_size=9, unique=True)


@given(ORDERS, st.sampled_from([list, np.array, torch.tensor]), st.data())
def test_an_order_is_restored_in_its_own_memory(order, kind, data):
    there = kind(order)
    x = holding(order=there)
    state = sampler_state(x)
    moved = data.draw(st.permutations(order))
    there[:] = kind(moved)
    assert [int(i) for i in state['order']] == order
    set_sampler_state(x, state)
    assert x.order is there
    assert [int(i) for i in there] == order
    there[:] = kind(moved)
    assert [int(i) for i in state['order']] == order


def test_plain_values_and_orders_are_saved_but_not_labels_data_and_options():
    x = holding(n=3, rate=.5, root='/here', done=True, none=None, order=[2, 0, 1], labels=[1, 1, 0], words=['a', 'b'],
                flags=[True, False], y=torch.tensor([1, 1]), images=np.eye(3, dtype=int), weights=torch.rand(3),
                z=torch.tensor([1j, 2]), empty=[], loader=DataLoader([1]), num_workers=4, batch_size=7,
                sparse=torch.eye(3, dtype=torch.int64).to_sparse(),
                meta=torch.ones(3, dtype=torch.int64, device='meta'), pixels=torch.ones(2, 3, dtype=torch.uint8),
                nested=torch.nested.nested_tensor([torch.arange(2)], layout=torch.jagged), point=torch.tensor(3))
    assert {*sampler_state(x)} == {'n', 'rate', 'done', 'none', 'order'}
    assert 'indices' not in sampler_state(SubsetRandomSampler([3, 1, 2]))  # torch's own never change theirs


def test_an_order_that_does_not_fit_or_cannot_be_written_is_replaced():
    ids = np.array([3, 1, 2])
    ids.flags.writeable = False
    x = holding(ids=ids, longer=np.arange(3), shorter=[1, 2], kind=torch.arange(2))
    set_sampler_state(x, dict(ids=np.array([1, 2, 3]), longer=np.arange(5), shorter=[3, 1, 2], kind=[1, 0]))
    assert (x.ids.tolist(), ids.tolist()) == ([1, 2, 3], [3, 1, 2])
    assert (x.longer.tolist(), x.shorter, x.kind) == ([0, 1, 2, 3, 4], [3, 1, 2], [1, 0])


# Persistent workers

@pytest.fixture
def persistent():
    "Makes loaders with 2 persistent workers, and stops these at the end."
    made = []
    def make(*args, **kwargs):
        made.append(DataLoader(*args, num_workers=2, persistent_workers=True, **kwargs))
        return made[-1]
    yield make
    for dl in made: set_workers(dl, dict(workers_running=False))


def pids(dl): return [w.pid for w in dl._iterator._workers]


def test_persistent_workers_are_started_without_loading_kept_if_alive_and_stopped(persistent):
    dl = persistent(TensorDataset(X), 4)
    up, down = dict(workers_running=True), dict(workers_running=False)
    assert loader_state(dl)['workers_running'] is False
    set_workers(dl, up)
    assert loader_state(dl)['workers_running'] is True
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
    assert loader_state(dl)['workers_running'] is False
    assert not any(w.is_alive() for w in gone)
    set_workers(loader('tensors'), up)
    set_workers([1], up)


@pytest.mark.parametrize(('passes', 'generator'), [(0, False), (1, False), (1, True)])
def test_a_pass_with_persistent_workers_resumes_whether_or_not_they_were_running_before_it(passes, generator,
                                                                                          persistent):
    def made(): return persistent(TensorDataset(X), 4, shuffle=True, generator=seeded(7) if generator else None)
    torch.manual_seed(5)
    dl = made()
    for _ in range(passes): list(dl)
    begun, seen = whole_pass(dl)
    after, further = states(dl), torch.cat([b[0] for b in dl])
    last = random_states()
    for start, other in ((1, made()), (len(seen), dl)):
        got = [b[0] for b in RemainingBatches(other, start, begun, seen[start - 1][1])]
        assert all(map(torch.equal, got, [b for b, _ in seen[start:]]))
        assert len(got) == len(seen) - start
        assert same_states(states(other), after)
        assert torch.equal(torch.cat([b[0] for b in other]), further)
        assert same_states(random_states(), last)


class LogCB(Callback):
    "Notes the batches of a run, and stops it after one of them, or between epochs."
    order = float('inf')
    def __init__(self, seen, stop=None): self.seen, self.stop = seen, stop
    def before_batch(self, learn): self.seen.append((learn.epoch, learn.training, learn.batch[1].tolist()))
    def cleanup_batch(self, learn): self._stop(learn.epoch, learn.training and learn.iter)
    def cleanup_epoch(self, learn): self._stop(learn.epoch, 'valid' if not learn.training else None)
    def _stop(self, *at):
        if at == self.stop: raise Stopped('stopped by a test')


@pytest.mark.parametrize('same', [False, True])
def test_a_run_with_persistent_workers_resumes_exactly_with_its_own_loaders_and_with_new_ones(same, persistent,
                                                                                             tmp_path):
    x, y = torch.randn(20, 4), torch.arange(20) % 3
    def dls(): return DataLoaders(persistent(TensorDataset(x, y), 5, shuffle=True), persistent(TensorDataset(x, y), 10))
    def make(dls, folder, seen, seed, stop=None):
        torch.manual_seed(seed)
        cbs = [CheckpointCB(tmp_path/folder, batches=1), Quiet(), LogCB(seen, stop)]
        return TrainLearner(mlp(), dls, F.cross_entropy, .1, cbs)
    def end(learn): return [p.tolist() for p in learn.model.parameters()], torch.get_rng_state().tolist()
    all_seen, whole = [], None
    whole = make(dls(), 'whole', all_seen, 2)
    whole.fit(3)
    want = end(whole)
    for stop in ((0, 'valid'), (1, 0)):
        seen, first = [], dls()
        fit_until_stopped(make(first, str(stop), seen, 2, stop), 3)
        assert len(seen) < len(all_seen)
        learn = make(first if same else dls(), str(stop), seen, 88)
        learn.fit(3, resume=True)
        assert end(learn) == want
        assert seen == all_seen
