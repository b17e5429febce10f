"Persistent workers are started without loading anything, kept if alive, and stopped."
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from miniai.resume.workers import has_running_workers, set_workers

X = torch.arange(12.)


@pytest.fixture
def dl():
    made = DataLoader(TensorDataset(X), 4, num_workers=2, persistent_workers=True)
    yield made
    set_workers(made, False)


def pids(dl): return [w.pid for w in dl._iterator._workers]
def numbers(dl): return torch.cat([b[0] for b in dl]).tolist()


def test_workers_are_started_without_loading_kept_if_alive_and_stopped(dl):
    assert not has_running_workers(dl)
    set_workers(dl, True)
    assert has_running_workers(dl)
    assert dl._iterator._send_idx == 0
    first = pids(dl)
    set_workers(dl, True)
    assert pids(dl) == first
    assert numbers(dl) == X.tolist()
    assert pids(dl) == first
    dl._iterator._workers[0].kill()
    dl._iterator._workers[0].join()
    set_workers(dl, True)
    assert not {*pids(dl)} & {*first}
    gone = dl._iterator._workers
    set_workers(dl, False)
    assert not has_running_workers(dl)
    assert not any(w.is_alive() for w in gone)
    assert numbers(dl) == X.tolist()


@pytest.mark.parametrize('other', [[1], *(DataLoader(TensorDataset(X), 4, num_workers=n) for n in (0, 1))])
def test_other_loaders_have_none_and_stay_as_they_are(other):
    before, state = dict(vars(other)) if isinstance(other, DataLoader) else None, torch.get_rng_state()
    for running in (True, False): set_workers(other, running)
    assert not has_running_workers(other)
    assert before is None or vars(other) == before
    assert torch.equal(torch.get_rng_state(), state)
