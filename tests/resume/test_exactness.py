"What nobody can draw again is told, and looking for it opens and draws nothing in this process."
import os
import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from miniai import CheckpointCB, DataLoaders, SeededSamples, TrainLearner
from miniai.randomness import random_states, same_states
from miniai.resume.exactness import loader_resume_blocker
from resuming import StopCB
from small import mlp

X = torch.arange(24.)


class Opens:
    "A file that each process opens for itself, by the number of its worker."
    def __init__(self, path): self.path, self.pid = path, None
    def __len__(self): return 24
    def __getitem__(self, i):
        self.pid, worker = self.pid or os.getpid(), get_worker_info().id
        return torch.tensor([float(i), worker, self.pid])


@pytest.mark.parametrize('context', ['fork', 'spawn'])
def test_samples_are_looked_at_in_a_worker_and_never_here(context, tmp_path):
    ds = Opens(tmp_path)
    assert loader_resume_blocker(DataLoader(ds, 4, num_workers=2, multiprocessing_context=context)) == ''
    assert ds.pid is None
    pids = torch.cat([b[:, 2] for b in DataLoader(ds, 4, num_workers=2)]).unique()
    assert len(pids) == 2
    assert os.getpid() not in pids.tolist()


def test_nothing_is_drawn_here_and_no_process_stays():
    import multiprocessing
    before = random_states()
    assert loader_resume_blocker(DataLoader(Sometimes(), 4, shuffle=True, num_workers=2))
    assert same_states(random_states(), before)
    assert not multiprocessing.active_children()


class Sometimes:
    "Draws for odd samples alone."
    def __len__(self): return 24
    def __getitem__(self, i): return X[i] + torch.rand(()) if i % 2 else X[i]


class ByTheBatch(TensorDataset):
    "Draws where it is asked for several samples at once."
    def __getitems__(self, indices): return [(X[i] + random.random(),) for i in indices]


class Eight(TensorDataset):
    "What only whole batches can be put together of."
def eights(samples): return default_collate(samples)[0].view(2, 16)


def test_a_batch_is_looked_at_whole():
    whole = DataLoader(Eight(X.repeat(4)), 32, drop_last=True, num_workers=2, collate_fn=eights)
    assert loader_resume_blocker(whole) == ''
    assert loader_resume_blocker(DataLoader(Eight(X), batch_sampler=[range(4), range(4, 8)], num_workers=1)) == ''


def noisy(samples, factor=1.): return default_collate(samples)[0] + factor*torch.rand(1)


@pytest.mark.parametrize(('ds', 'collate', 'says'), [
    (Sometimes(), None, 'its dataset draws random numbers in 2 worker'),
    (ByTheBatch(X), None, 'its dataset draws random numbers in 2 worker'),
    (TensorDataset(X), noisy, 'its collate_fn draws random numbers in 2 worker'),
    (SeededSamples(TensorDataset(X)), partial(noisy, factor=2.), 'its collate_fn draws random numbers in 2 worker')])
def test_what_draws_in_workers_is_found(ds, collate, says):
    assert says in loader_resume_blocker(DataLoader(ds, 4, num_workers=2, collate_fn=collate))
    stays = loader_resume_blocker(DataLoader(ds, 4, num_workers=2, collate_fn=collate, persistent_workers=True))
    assert 'between epochs too: use persistent_workers=False' in stays
    assert loader_resume_blocker(DataLoader(ds, 4, collate_fn=collate)) == ''


def test_a_generator_that_a_callback_draws_from_too_is_told_where_turns_matter():
    g = torch.Generator()
    ds, others = TensorDataset(X), [('DrawsCB.mine', g)]
    with_workers = DataLoader(ds, 4, shuffle=True, generator=g, num_workers=2)
    says = 'it draws its order from a generator that DrawsCB.mine draws from too'
    assert says in loader_resume_blocker(with_workers, others)
    in_turns = DataLoader(ds, 4, sampler=RandomSampler(ds, True, generator=g))
    assert says in loader_resume_blocker(in_turns, others)
    assert loader_resume_blocker(DataLoader(ds, 4, shuffle=True, generator=g), others) == ''
    assert loader_resume_blocker(with_workers, [('DrawsCB.mine', torch.Generator())]) == ''


def test_an_order_drawn_from_the_default_generator_is_told_where_training_draws_in_between():
    ds, g = TensorDataset(X), torch.default_generator
    for sampler in (RandomSampler(ds, True, generator=g), RandomSampler(ds, num_samples=len(X) + 1, generator=g)):
        assert 'training draws from that too' in loader_resume_blocker(DataLoader(ds, 4, sampler=sampler))
    assert loader_resume_blocker(DataLoader(ds, 4, sampler=RandomSampler(ds, generator=g))) == ''
    assert loader_resume_blocker(DataLoader(ds, 4, sampler=RandomSampler(ds, True))) == ''


class Counts(Sampler):
    "Shuffles by a count of its passes."
    def __init__(self, n): self.n, self.generator, self.passes = n, torch.Generator(), 0
    def __len__(self): return self.n
    def __iter__(self):
        self.generator.manual_seed(self.passes)
        self.passes += 1
        yield from torch.randperm(self.n, generator=self.generator).tolist()


@pytest.mark.parametrize('workers', [0, 2])
def test_a_sampler_that_counts_its_passes_is_looked_at_by_a_copy_and_goes_on_by_its_count(workers, tmp_path):
    def make(folder, *cbs):
        torch.manual_seed(1)
        ds = TensorDataset(torch.randn(24, 4), torch.arange(24) % 3)
        dls = DataLoaders(DataLoader(ds, 4, sampler=Counts(24), num_workers=workers), DataLoader(ds, 8))
        saves = [CheckpointCB(folder, batches=1)] if folder else []
        return TrainLearner(mlp(), dls, F.cross_entropy, .1, [*saves, *cbs])
    def weights(learn): return [p.tolist() for p in learn.model.parameters()]
    alone = make(None)
    alone.fit(3)
    for at in ((0, 2), (1, 3), (1, 5)):
        with pytest.raises(RuntimeError, match='stopped'): make(tmp_path/str(at), StopCB(*at)).fit(3)
        again = make(tmp_path/str(at))
        again.fit(3, resume=True)
        assert weights(again) == weights(alone)


class Wrap:
    def __init__(self, dl): self.dl = dl
    def __len__(self): return len(self.dl)
    def __iter__(self): yield from self.dl


class Stream(IterableDataset):
    def __iter__(self): return iter(X)


def test_workers_that_stay_are_told_wherever_they_are():
    says = 'use persistent_workers=False'
    def loader(ds, stays, **kwargs): return DataLoader(ds, num_workers=1, persistent_workers=stays, **kwargs)
    for make in (lambda stays: Wrap(loader(TensorDataset(X), stays)), lambda stays: loader(Stream(), stays),
                 lambda stays: loader(TensorDataset(X), stays, batch_size=None)):
        assert says in loader_resume_blocker(make(True))
        assert says not in loader_resume_blocker(make(False))
