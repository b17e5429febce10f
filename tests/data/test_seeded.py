"Random draws in workers depend only on the epoch and the sample."
import hashlib

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from miniai.activations import set_seed
from miniai.data import SeededSamples
from miniai.data.seeded import _number_of
from resuming import Noisy


def test_seeded_samples_draw_the_same_in_one_worker_and_in_two_but_not_in_two_passes():
    def passes(workers):
        torch.manual_seed(3)
        dl = DataLoader(SeededSamples(Noisy(8)), 4, num_workers=workers)
        return [torch.cat([x for x, _ in dl]) for _ in range(2)]
    one, two = passes(1), passes(2)
    assert all(map(torch.equal, one, two))
    assert not torch.equal(*one)
    assert len(SeededSamples(Noisy(8))) == 8


class Named:
    "Draws by names and by pairs of them."
    def __getitem__(self, i): return repr(i), torch.randn(1)


class Words(str):
    "Text with a repr of its own."
    def __repr__(self): return f'words {self}'


INDEXES = ['a', 'b', '1', 1, ('a', 1), ('a', 2), 1.5, None, b'a', Words('c'), slice(1, 2)]


def test_with_any_index_a_sample_draws_the_same_in_one_worker_and_in_two_and_no_two_are_equal():
    def drawn(order, workers):
        torch.manual_seed(3)
        dl = DataLoader(SeededSamples(Named()), batch_size=None, sampler=order, num_workers=workers)
        return {i: x.item() for i, x in dl}
    one = drawn(INDEXES, 1)
    assert one == drawn(INDEXES[::-1], 2)
    assert len(set(one.values())) == len(INDEXES)


@pytest.mark.parametrize('kind', [np.int64, torch.tensor, lambda i: torch.tensor([i])])
def test_a_whole_number_is_the_same_index_whatever_its_type(kind):
    assert _number_of(kind(7)) == 7


def test_the_number_of_any_other_index_is_the_sha256_of_its_repr():
    assert _number_of('a') == int(hashlib.sha256(b"'a'").hexdigest()[:16], 16)


@pytest.mark.parametrize('index', [object(), ('a', object())])
def test_in_workers_an_index_that_differs_between_processes_is_an_error(index):
    dl = DataLoader(SeededSamples(Named()), batch_size=None, sampler=[index], num_workers=1)
    with pytest.raises(TypeError, match=r'needs an index that is the same in every process, got .*: let the sampler'):
        list(dl)


def test_without_workers_seeded_samples_are_the_dataset_as_it_is():
    set_seed(1)
    want = Noisy(3)[1][0]
    set_seed(1)
    assert torch.equal(SeededSamples(Noisy(3))[1][0], want)


def test_in_workers_no_gpu_is_asked_for_its_random_state(monkeypatch):
    def ask(*args): raise RuntimeError('Cannot re-initialize CUDA in forked subprocess')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_rng_state_all', ask)
    monkeypatch.setattr(torch.cuda, 'set_rng_state_all', ask)
    assert len(list(DataLoader(SeededSamples(Noisy(4)), 2, num_workers=1))) == 2
