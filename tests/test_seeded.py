"Random draws in workers: a matter of pass and sample alone."
import torch
from torch.utils.data import DataLoader

from miniai.activations import set_seed
from miniai.data import SeededSamples
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
