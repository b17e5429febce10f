"What the tests of optimizers share: tiny parameters and models, and equality to the bit."
import pytest
import torch
from torch import nn

from miniai.optim import SGD, Adam, Momentum, RMSProp

CLASSES = [SGD, Momentum, RMSProp, Adam]
each_class = pytest.mark.parametrize('cls', CLASSES)


def param(*shape, dtype=torch.float64, grad=True):
    p = nn.Parameter(torch.randn(shape, dtype=dtype))
    if grad: p.grad = torch.randn_like(p)
    return p


def net(): return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def train(model, opt, steps, seed=0):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        model(torch.randn(5, 3, generator=g)).square().mean().backward()
        opt.step()
        opt.zero_grad()


def same(a, b):
    "Equal to the bit, whatever the nest."
    if isinstance(a, torch.Tensor): return torch.equal(a, b)
    if isinstance(a, dict): return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple): return len(a) == len(b) and all(map(same, a, b))
    return a == b
