"The rest of a pass from any batch on: the batches that the whole pass gives, and the random numbers drawn after it."
import copy
import random
import warnings
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    get_worker_info,
)

from miniai import CheckpointCB, MaxBatchesCB, TrainLearner
from miniai.data import DataLoaders, Dataset, SeededSamples
from miniai.randomness import random_states, same_states
from miniai.resume.loader import RemainingBatches, can_seek, resume_warning
from miniai.resume.state import RunState
from miniai.resume.workers import set_workers
from resuming import Noisy, StopCB, Stopped, Watcher, assert_resumes_exactly, fit_until_stopped
from small import learner, mlp

X = torch.arange(23.)
MODULE_LEVEL = random.Random(5)


def seeded(seed=3): return torch.Generator().manual_seed(seed)


# Datasets

class Stream(IterableDataset):
    def __init__(self, noise=0.): self.noise = noise
    def __iter__(self):
        worker = get_worker_info()
        for x in X[worker.id::worker.num_workers] if worker else X:
            yield [x + self.noise*torch.rand(()) if self.noise else x]


class Jitter:
    "A transform with its own generators, one of each kind."
    def __init__(self):
        self.torchs, self.pythons = seeded(1), random.Random(4)
        self.numpys = [np.random.default_rng(2), np.random.RandomState(3)]

    def __call__(self, x):
        a, b = self.numpys
        return x + torch.rand((), generator=self.torchs) + a.random() + b.rand() + self.pythons.gauss(0, 1)


class Jittered:
    def __init__(self, n, transform=None): self.n, self.transform = n, transform or Jitter()
    def __len__(self): return self.n
    def __getitem__(self, i): return self.transform(X[i]), i


class Counts:
    "Numbers its samples in the order in which they are asked for."
    def __init__(self): self.asked = 0
    def __len__(self): return 23
    def __getitem__(self, i):
        self.asked += 1
        return X[i], self.asked


# Samplers

class Drawn(Sampler):
    "Draws each index from `draw(n)` when it is asked for."
    def __init__(self, draw, n=23): self.draw, self.n = draw, n
    def __len__(self): return self.n
    def __iter__(self): return (int(self.draw(self.n)) for _ in range(self.n))


class Shuffles(Sampler):
    "Shuffles its list at the start of each pass, further and further."
    def __init__(self, rng): self.rng, self.order = rng, list(range(23))
    def __len__(self): return 23
    def __iter__(self):
        self.rng.shuffle(self.order)
        yield from self.order


class ByItsClass(Drawn):
    "Draws from a generator that all samplers of its class share."
    rng = np.random.default_rng(4)
    def __init__(self): super().__init__(lambda n: self.rng.integers(n))


class Eager(BatchSampler):
    "Draws its order when it is asked for an iterator, which a DataLoader with workers does twice."
    def __init__(self): self.generator = seeded(8)
    def __len__(self): return 6
    def __iter__(self): return iter(torch.randperm(23, generator=self.generator).split(4))


# Loaders

class Hundredfold(DataLoader):
    def __iter__(self): return ([100*b[0]] for b in super().__iter__())


class Listed:
    "Has an attribute `batches` that is not a method."
    def __init__(self): self.batches = [(X[:4],), (X[4:8],)]
    def __iter__(self): return iter(self.batches)
    def __len__(self): return 2


class Own:
    "Draws from its own generator and from the global one, and counts its passes."
    def __init__(self): self.rng, self.passes = np.random.default_rng(3), 0
    def __len__(self): return 5
    def __iter__(self):
        self.passes += 1
        for i in range(5): yield [torch.rand(2) + self.rng.random() + i*self.passes]


def tensors(workers=0, bs=4, **kwargs): return DataLoader(TensorDataset(X), bs, num_workers=workers, **kwargs)
def arrays(bs, **kwargs): return DataLoaders.from_arrays(X, X, valid=(X, X), bs=bs, seed=2, **kwargs)


def one_generator(g=None):
    "For order and samples."
    g = g or seeded()
    return DataLoader(Jittered(23, lambda x: x + torch.rand((), generator=g)), 4,
                      sampler=Drawn(lambda n: torch.randint(n, (), generator=g)))


def own_generator(workers=0):
    g = seeded()
    return tensors(workers, sampler=RandomSampler(X, generator=g), generator=g)


def hugging_face(workers=0, **kwargs):
    "A shuffled stream."
    hf = pytest.importorskip('datasets')
    ds = hf.Dataset.from_dict(dict(x=X.tolist())).to_iterable_dataset(num_shards=2).with_format('torch')
    ds = ds.shuffle(seed=3, buffer_size=7)
    return DataLoaders.from_dd(dict(train=ds, test=ds), 4, num_workers=workers, **kwargs).train


def drawing_collate(rng): return DataLoader(TensorDataset(X), 4, collate_fn=lambda b: [torch.stack(
    [x for x, in b]) + rng.random()])


LOADERS = dict(
    memory=lambda: arrays(4).train, memory_in_order=lambda: arrays(2).valid,
    cached=lambda: DataLoaders(tensors(shuffle=True), [1]).cached().train, tensors=lambda: tensors(shuffle=True),
    in_order=lambda: tensors(drop_last=True), noisy=lambda: DataLoader(Noisy(23), 4, shuffle=True),
    one_by_one=lambda: DataLoader(TensorDataset(X), None, shuffle=True), list=lambda: [(x,) for x in X.split(4)],
    jittered=lambda: DataLoader(Jittered(23), 4, shuffle=True), counts=lambda: DataLoader(Counts(), 4, shuffle=True),
    own_generator=own_generator, one_generator=one_generator, stream=lambda: DataLoader(Stream(), 4),
    noisy_stream=lambda: DataLoader(Stream(.1), 4), collate=lambda: drawing_collate(random.Random(1)),
    global_sampler=lambda: tensors(sampler=Drawn(np.random.randint)),
    hundredfold=lambda: Hundredfold(TensorDataset(X), 4),
    python_sampler=lambda: tensors(sampler=Shuffles(random.Random(2))),
    numpy_sampler=lambda: tensors(sampler=Shuffles(np.random.default_rng(2))),
    module_sampler=lambda: tensors(sampler=Drawn(lambda n: MODULE_LEVEL.randrange(n))),
    class_sampler=lambda: tensors(sampler=ByItsClass()), listed=Listed, own=Own, hugging_face=hugging_face,
    eager=lambda: DataLoader(TensorDataset(X), batch_sampler=Eager()))
BY_WORKERS = dict(
    own_generator=own_generator, eager=lambda workers: DataLoader(TensorDataset(X), num_workers=workers,
                                                                  batch_sampler=Eager()),
    replacement=lambda workers: tensors(workers, sampler=RandomSampler(X, True, 30, seeded())),
    numpy_sampler=lambda workers: tensors(workers, sampler=Shuffles(np.random.default_rng(2))),
    module_sampler=lambda workers: tensors(workers, sampler=Drawn(lambda n: MODULE_LEVEL.randrange(n))),
    noisy=lambda workers: DataLoader(Noisy(23), 4, shuffle=True, num_workers=workers),
    jittered=lambda workers: DataLoader(Jittered(23), 4, shuffle=True, num_workers=workers),
    counts=lambda workers: DataLoader(Counts(), 4, shuffle=True, num_workers=workers),
    stream=lambda workers: DataLoader(Stream(.1), 4, num_workers=workers), hugging_face=hugging_face,
    seeded_samples=lambda workers: DataLoader(SeededSamples(Noisy(23)), 4, shuffle=True, num_workers=workers))


class Passes:
    "Passes over a loader, as in a run with checkpoints."
    def __init__(self, dl, held=None):
        self.learn = TrainLearner(mlp(), DataLoaders(dl, [1]))
        self.learn.held, self.learn.opt = held, torch.optim.SGD(self.learn.model.parameters(), .1)
        self.dl, self.state = dl, RunState(self.learn)

    def now(self):
        taken = self.state.take(self.learn, ['begun'])
        return copy.deepcopy({nm: taken[nm] for nm in ('random', 'states', 'attributes', 'running', 'begun')})

    def whole(self):
        "The batches of a pass, each with the state after it."
        self.state.begin_pass(self.learn)
        return [(batch[0], self.now()) for batch in self.dl]

    def rest(self, start, seen, dl=None):
        now = seen[start - 1][1]
        self.state.begin_pass(self.learn, now['begun'])
        return RemainingBatches(self.learn, dl or self.dl, 'learn.dls.train', start, now['begun'], now, self.state)


def data_of(state): return {nm: state[nm] for nm in ('random', 'states', 'attributes')}


def assert_goes_on(make, starts=None, held=None):
    "From every batch on, the rest of a pass, the states after it, and the next pass are those of an uninterrupted run."
    torch.manual_seed(5)
    passes = Passes(make(), held)
    for _ in passes.dl: pass
    seen = passes.whole()
    after, further = data_of(passes.now()), [b[0] for b in passes.dl]
    for start in starts or range(1, len(seen) + 1):
        torch.manual_seed(77)
        rest = passes.rest(start, seen)
        if not isinstance(getattr(passes.dl, 'dataset', None), IterableDataset): assert len(rest) == len(seen)
        assert not rest.taken
        got = [b[0] for b in rest]
        assert rest.taken
        assert len(got) == len(seen) - start
        assert all(map(torch.equal, got, [b for b, _ in seen[start:]]))
        assert same_states(data_of(passes.now()), after)
        assert all(map(torch.equal, [b[0] for b in passes.dl], further))


@pytest.mark.filterwarnings('ignore:the first . batches were loaded again to resume')
@pytest.mark.parametrize('kind', LOADERS)
def test_from_every_batch_on_the_rest_of_a_pass_the_states_after_it_and_the_next_pass_are_the_same(kind):
    assert_goes_on(LOADERS[kind])


@pytest.mark.parametrize(('kind', 'workers'), [*((kind, 1) for kind in BY_WORKERS), ('noisy', 2), ('stream', 2),
                                               ('hugging_face', 2), ('own_generator', 2), ('eager', 2)])
def test_with_workers_too(kind, workers): assert_goes_on(partial(BY_WORKERS[kind], workers), (1, 4, 6))


@pytest.mark.parametrize('kind', ['order', 'sampler', 'samples'])
def test_a_generator_that_the_learner_or_a_callback_holds_too_is_part_of_the_data(kind):
    g = seeded()
    make = dict(order=lambda: tensors(sampler=RandomSampler(X, generator=g)), samples=lambda: one_generator(g),
                sampler=lambda: tensors(sampler=Drawn(lambda n: torch.randint(n, (), generator=g))))[kind]
    assert_goes_on(make, held=g)


@pytest.mark.parametrize('dl', [[1, 2], tensors(bs=12), tensors(1, 12)])
def test_a_pass_that_is_shorter_now_cannot_be_resumed_after_its_end(dl):
    passes = Passes(dl)
    passes.state.begin_pass(passes.learn)
    rest = passes.rest(3, [(0, passes.now())]*3)
    with pytest.raises(ValueError, match='cannot resume a pass after 3 batches: the loader gives only 2'): list(rest)


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
    def make(*cbs): return learner([CheckpointCB(tmp_path, batches=1), *cbs], dls=DataLoaders(dl, Lazily()))
    fit_until_stopped(make(StopCB(0, 4)), 1)
    says = f'first 5 batches were loaded again .*{type(dl).__name__} drew .* only if it draws for one batch at a time'
    with pytest.warns(UserWarning, match=says): make().fit(1, resume=True)


def test_a_loader_that_draws_nothing_is_loaded_again_without_a_warning():
    passes = Passes(LOADERS['stream']())
    seen = passes.whole()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(list(passes.rest(4, seen))) == 2


def test_a_pass_that_can_start_anywhere_loads_nothing_again(monkeypatch):
    asked, real = [], TensorDataset.__getitem__
    monkeypatch.setattr(TensorDataset, '__getitem__', lambda ds, i: asked.append(int(i)) or real(ds, i))
    passes = Passes(DataLoader(TensorDataset(X), 4))
    seen = passes.whole()
    asked.clear()
    list(passes.rest(5, seen))
    assert asked == [20, 21, 22]
    assert can_seek(arrays(4).train)
    assert not any(map(can_seek, (passes.dl, Listed(), [1])))


# A loader that knows by itself where it stands

class Speaks:
    "Like torchdata's StatefulDataLoader: after load_state_dict the next pass is the rest of the saved one."
    def __init__(self): self.done, self.order, self.begins_at, self.loaded = 0, None, 0, 0
    def __len__(self): return 6
    def state_dict(self): return dict(done=self.done, order=self.order)
    def load_state_dict(self, state):
        self.done, self.order = state['done'], state['order']
        self.begins_at = self.done

    def __iter__(self):
        start, self.begins_at = self.begins_at, 0
        if not start: self.order = torch.randperm(24)
        for i in range(start, 6):
            self.done, self.loaded = i + 1, self.loaded + 1
            yield X4[self.order[4*i:4*i + 4]], Y[self.order[4*i:4*i + 4]]
        self.done = 0


def test_a_loader_with_a_state_dict_of_its_own_goes_on_by_itself(tmp_path):
    made = []
    def make(folder, *cbs):
        made.append(Speaks())
        return learner([CheckpointCB(folder, batches=1), *cbs], dls=DataLoaders(made[-1], [(X4, Y)]))
    assert_resumes_exactly(make, tmp_path, ((0, 3), (1, 0)))
    assert [dl.loaded for dl in made] == [12, 4, 8, 7, 5]
    assert_resumes_exactly(make, tmp_path/'steps', ((0, 3), (1, 2), (2, 0)), None, steps=11, valid_every=4)


def test_a_warning_says_that_it_continues_a_pass_which_ended_early(tmp_path):
    with pytest.warns(UserWarning, match=r'learn\.dls\.train: by its state_dict it continues a pass that MaxBatchesCB'):
        learner([CheckpointCB(tmp_path), MaxBatchesCB(3)], dls=DataLoaders(Speaks(), [(X4, Y)])).fit(1)


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


class ByCountFromItsClass(ByCount):
    "Has a counter of its own from the first pass on."
    passes = 0
    def __init__(self): pass


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


class ByArray(Sampler):
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


class Queue(Loader):
    "Takes its order from a list that gets shorter, and is filled again."
    def __init__(self): self.left = []
    def indices(self):
        if not self.left: self.left = [torch.randperm(24).tolist() for _ in range(2)]
        return self.left.pop()


def sampled(sampler, **kwargs): return DataLoader(TensorDataset(X4, Y), 4, sampler=sampler, **kwargs)


@pytest.mark.parametrize('make', [
    ByCount, ByCountFromItsClass, ByList, ByTensor, Queue, lambda: sampled(ByArray()),
    lambda: sampled(ByArray(), num_workers=1), lambda: sampled(CountsPasses()),
    lambda: sampled(CountsPasses(), num_workers=1),
    lambda: Growing(TensorDataset(X4, Y), 4)])
def test_attributes_that_loaders_and_samplers_change_from_pass_to_pass_are_restored(make, tmp_path):
    def run(folder, *cbs):
        torch.manual_seed(1)
        random.seed(1)
        saves = CheckpointCB(folder, batches=1)
        return TrainLearner(mlp(), DataLoaders(make(), [(X4, Y)]), F.cross_entropy, .1, [saves, *cbs])
    assert_resumes_exactly(run, tmp_path, ((0, 3), (1, 1)), 3)


# Persistent workers

@pytest.fixture
def persistent():
    "Makes loaders with 2 persistent workers, and stops these at the end."
    made = []
    def make(*args, **kwargs):
        made.append(DataLoader(*args, num_workers=2, persistent_workers=True, **kwargs))
        return made[-1]
    yield make
    for dl in made: set_workers(dl, False)


@pytest.mark.parametrize(('passes', 'generator'), [(0, False), (1, False), (1, True)])
def test_a_pass_with_persistent_workers_resumes_whether_or_not_they_were_running_before_it(passes, generator,
                                                                                          persistent):
    def make(): return Passes(persistent(TensorDataset(X), 4, shuffle=True, generator=seeded(7) if generator else None))
    torch.manual_seed(5)
    first = make()
    for _ in range(passes): list(first.dl)
    seen = first.whole()
    after, further = data_of(first.now()), torch.cat([b[0] for b in first.dl])
    last = random_states()
    for start, other in ((1, make()), (len(seen), first)):
        got = [b[0] for b in other.rest(start, seen)]
        assert all(map(torch.equal, got, [b for b, _ in seen[start:]]))
        assert len(got) == len(seen) - start
        assert same_states(data_of(other.now()), after)
        assert torch.equal(torch.cat([b[0] for b in other.dl]), further)
        assert same_states(random_states(), last)


class LogCB(Watcher):
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
        cbs = [CheckpointCB(tmp_path/folder, batches=1), LogCB(seen, stop)]
        return TrainLearner(mlp(), dls, F.cross_entropy, .1, cbs)
    def end(learn): return [p.tolist() for p in learn.model.parameters()], torch.get_rng_state().tolist()
    all_seen = []
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


# Why a run may not resume exactly

@pytest.mark.parametrize(('dl', 'says'), [
    (iter([1]), 'an iterator, which can be used only once: use a DataLoader or a list'),
    ((x for x in [1]), 'an iterator, which can be used only once'),
    (tensors(2, in_order=False), 'whatever order the workers finish: use in_order=True'),
    (DataLoader(Noisy(4), num_workers=1, persistent_workers=True), 'no checkpoint holds: use persistent_workers=False'),
    (DataLoader(SeededSamples(Noisy(4)), num_workers=1, persistent_workers=True), 'use persistent_workers=False'),
    (DataLoader(Stream(), num_workers=1, persistent_workers=True), 'use persistent_workers=False'),
    (tensors(1, persistent_workers=True, collate_fn=list), 'use persistent_workers=False')])
def test_what_may_keep_a_run_from_resuming_exactly_is_named(dl, says): assert says in resume_warning(dl)


@pytest.mark.parametrize('dl', [
    [1], Own(), Speaks(), arrays(4).train, DataLoader(Noisy(4)), tensors(0, in_order=False), DataLoader(Stream(), 4),
    DataLoader(Stream(), 4, num_workers=1), DataLoader(Noisy(4), num_workers=2), tensors(1, persistent_workers=True),
    DataLoader(Subset(ConcatDataset([Dataset(X, X)]*2), [1]), num_workers=1, persistent_workers=True),
    tensors(1, sampler=Drawn(lambda n: MODULE_LEVEL.randrange(n))), DataLoader(SeededSamples(Noisy(4)), num_workers=1)])
def test_other_loaders_resume_exactly(dl): assert resume_warning(dl) == ''


def test_a_fit_with_checkpoints_warns_of_it_by_path(tmp_path):
    dl = DataLoader(TensorDataset(X4, Y), 4, num_workers=1, in_order=False)
    says = 'the run may not resume exactly from learn.dls.train: its batches come in whatever order'
    with pytest.warns(UserWarning, match=says):
        learner([CheckpointCB(tmp_path)], dls=DataLoaders(dl, [(X4, Y)])).fit(1)
