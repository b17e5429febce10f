"Random states put back give the numbers that came after them, whichever generator they are of."
import random

import numpy as np
import pytest
import torch
from torch import nn

from miniai.augment import RandCrop, RandFlip
from miniai.checkpoint import load, save
from miniai.randomness import generators_of, random_states, same_states, set_random_states


def draws():
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), [random.random() for _ in range(3)], random.gauss(0, 1)


def test_states_put_back_repeat_every_global_generator():
    random.gauss(0, 1)  # leaves a second number behind
    states = random_states()
    first = draws()
    draws()
    set_random_states(states)
    assert draws() == first


def test_states_of_other_devices_are_refused():
    with pytest.raises(ValueError, match='random states: CUDA generators was 3 and is 0 here'):
        set_random_states(random_states() | dict(cuda=[1, 2, 3]))


@pytest.fixture
def numpys_own():
    own = np.random.get_bit_generator()
    yield
    np.random.set_bit_generator(own)


@pytest.mark.parametrize('kind', [np.random.PCG64, np.random.Philox, np.random.SFC64, np.random.PCG64DXSM])
def test_numpys_other_generators_are_put_back_too_from_a_file_as_well(kind, numpys_own, tmp_path):
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


def test_generators_are_found_in_attributes_modules_and_lists():
    g, h, k = (torch.Generator() for _ in range(3))
    o = type('O', (), {})()
    o.own, o.number, o.layers = g, 3, nn.Sequential(RandCrop(1, generator=h), nn.Sequential(RandFlip(generator=k)))
    o.many = [RandFlip(generator=g), 'text']
    assert dict(generators_of(o)) == {'own': g, 'layers.0.generator': h, 'layers.1.0.generator': k,
                                      'many.0.generator': g}
    assert list(generators_of(3)) == []
