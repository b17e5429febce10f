"Seeds, and random states: restored, they give the numbers that came after them."
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniai.checkpoint import load, save
from miniai.randomness import describe_states, random_states, same_states, set_random_states, set_seed


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)], random.gauss(0, 1)


@given(st.integers(-2**31, 2**40))
def test_set_seed_repeats_torch_numpy_and_random(seed):
    set_seed(seed)
    first = draws()
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    set_seed(seed)
    assert draws() == first


def test_set_seed_is_the_own_seed_of_torch_numpy_and_random():
    set_seed(42)
    ours = draws()
    torch.manual_seed(42)
    np.random.seed(42)
    random.seed(42)
    assert draws() == ours


def test_set_seed_switches_deterministic_algorithms_on_and_off():
    try:
        set_seed(1, deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        set_seed(1)
        assert not torch.are_deterministic_algorithms_enabled()
    finally: torch.use_deterministic_algorithms(False)


def test_restored_states_repeat_every_global_generator():
    random.gauss(0, 1)  # leaves a second number behind
    states = random_states()
    first = draws()
    draws()
    set_random_states(states)
    assert draws() == first


def test_states_of_other_devices_are_refused():
    with pytest.raises(ValueError, match='cannot restore random states: CUDA generators was 3 and is 0 here'):
        set_random_states(random_states() | dict(cuda=[1, 2, 3]))


@pytest.fixture
def numpys_own():
    own = np.random.get_bit_generator()
    yield
    np.random.set_bit_generator(own)


@pytest.mark.parametrize('kind', [np.random.PCG64, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM])
def test_numpys_other_generators_are_restored_too_also_from_a_file(kind, numpys_own, tmp_path):
    before = random_states()
    np.random.set_bit_generator(kind(3))
    np.random.randn()
    save(tmp_path/'a', random_states())
    first = np.random.randn(3).tolist(), np.random.rand(3).tolist()
    set_random_states(load(tmp_path/'a'))
    assert (np.random.randn(3).tolist(), np.random.rand(3).tolist()) == first
    with pytest.raises(ValueError, match=f"random states: numpy's generator was 'MT19937' and is '{kind.__name__}'"):
        set_random_states(before)


def test_states_are_the_same_until_a_number_is_drawn():
    for draw in (torch.rand, np.random.rand, lambda n: random.random()):
        before = random_states()
        assert same_states(before, random_states())
        draw(1)
        assert not same_states(before, random_states())


@pytest.fixture
def mps(monkeypatch):
    "A machine with an MPS device; the state of its generator is one number."
    there = [torch.tensor([5], dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    monkeypatch.setattr(torch.mps, 'get_rng_state', lambda: there[0].clone())
    monkeypatch.setattr(torch.mps, 'set_rng_state', lambda x: there.__setitem__(0, x))
    return there


def test_the_generator_of_mps_is_restored_and_checked(mps, monkeypatch):
    states = random_states()
    mps[0] = mps[0] + 1
    assert not same_states(states, random_states())
    set_random_states(states)
    assert mps[0].item() == 5
    assert describe_states(states)['MPS generators'] == 1
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert describe_states(random_states())['MPS generators'] == 0
    with pytest.raises(ValueError, match='random states: MPS generators was 1 and is 0 here'): set_random_states(states)
