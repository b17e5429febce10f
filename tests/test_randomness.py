"Random states put back give the numbers that came after them, whichever generator they are of."
import random

import numpy as np
import pytest
import torch
from torch import nn

from miniai.augment import RandCrop, RandFlip
from miniai.randomness import generators_of, random_states, set_random_states


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
    with pytest.raises(ValueError, match=r'random states of 3 CUDA device\(s\) were saved, and here are 0'):
        set_random_states(random_states() | dict(cuda=[1, 2, 3]))


def test_generators_are_found_in_attributes_modules_and_lists():
    g, h, k = (torch.Generator() for _ in range(3))
    o = type('O', (), {})()
    o.own, o.number, o.layers = g, 3, nn.Sequential(RandCrop(1, generator=h), nn.Sequential(RandFlip(generator=k)))
    o.many = [RandFlip(generator=g), 'text']
    assert dict(generators_of(o)) == {'own': g, 'layers.0.generator': h, 'layers.1.0.generator': k,
                                      'many.0.generator': g}
    assert list(generators_of(3)) == []
