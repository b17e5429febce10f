"What nobody can draw again is told, and looking for it opens and draws nothing in this process."
import os
import random
from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, default_collate, get_worker_info

from miniai import Callback, SeededSamples
from miniai.data.exactness import why_not_exact
from miniai.randomness import random_states, same_states

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
    assert why_not_exact(DataLoader(ds, 4, num_workers=2, multiprocessing_context=context)) == ''
    assert ds.pid is None
    pids = torch.cat([b[:, 2] for b in DataLoader(ds, 4, num_workers=2)]).unique()
    assert len(pids) == 2
    assert os.getpid() not in pids.tolist()


def test_nothing_is_drawn_here_and_no_process_stays():
    import multiprocessing
    before = random_states()
    assert why_not_exact(DataLoader(Sometimes(), 4, shuffle=True, num_workers=2))
    assert same_states(random_states(), before)
    assert not multiprocessing.active_children()


class Sometimes:
    "Draws for odd samples alone."
    def __len__(self): return 24
    def __getitem__(self, i): return X[i] + torch.rand(()) if i % 2 else X[i]


class ByTheBatch(TensorDataset):
    "Draws where it is asked for several samples at once."
    def __getitems__(self, indices): return [(X[i] + random.random(),) for i in indices]


def noisy(samples, factor=1.): return default_collate(samples)[0] + factor*torch.rand(1)


@pytest.mark.parametrize(('ds', 'collate', 'says'), [
    (Sometimes(), None, 'its dataset draws random numbers in 2 worker'),
    (ByTheBatch(X), None, 'its dataset draws random numbers in 2 worker'),
    (TensorDataset(X), noisy, 'its collate_fn draws random numbers in 2 worker'),
    (SeededSamples(TensorDataset(X)), partial(noisy, factor=2.), 'its collate_fn draws random numbers in 2 worker')])
def test_what_draws_in_workers_is_found(ds, collate, says):
    assert says in why_not_exact(DataLoader(ds, 4, num_workers=2, collate_fn=collate))
    stays = why_not_exact(DataLoader(ds, 4, num_workers=2, collate_fn=collate, persistent_workers=True))
    assert 'between epochs too: use persistent_workers=False' in stays
    assert why_not_exact(DataLoader(ds, 4, collate_fn=collate)) == ''


class DrawsCB(Callback):
    def __init__(self, g): self.mine = g


def test_a_generator_that_a_callback_draws_from_too_is_told_where_turns_matter():
    g = torch.Generator()
    ds, cb = TensorDataset(X), DrawsCB(g)
    with_workers = DataLoader(ds, 4, shuffle=True, generator=g, num_workers=2)
    says = 'it draws its order from a generator that DrawsCB.mine draws from too'
    assert says in why_not_exact(with_workers, [cb])
    in_turns = DataLoader(ds, 4, sampler=torch.utils.data.RandomSampler(ds, True, generator=g))
    assert says in why_not_exact(in_turns, [cb])
    assert why_not_exact(DataLoader(ds, 4, shuffle=True, generator=g), [cb]) == ''
    assert why_not_exact(with_workers, [DrawsCB(torch.Generator())]) == ''


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
        assert says in why_not_exact(make(True))
        assert says not in why_not_exact(make(False))
