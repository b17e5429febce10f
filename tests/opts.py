"What the tests of optimizers share: small parameters and models, steps, fixtures, and equality to the bit."
import copy

import numpy as np
import pytest
import torch
from torch import nn

from miniai.kernels import numba, triton
from miniai.kernels.fused import FusedPass
from miniai.optim import SGD, Adam, Momentum, RMSProp, paths, plan

CLASSES = [SGD, Momentum, RMSProp, Adam]
each_class = pytest.mark.parametrize('cls', CLASSES)


def param(*shape, dtype=torch.float64, grad=True):
    p = nn.Parameter(torch.randn(shape, dtype=dtype))
    if grad: p.grad = torch.randn_like(p)
    return p


def with_grad(data, grad=None):
    p = nn.Parameter(data)
    p.grad = torch.randn_like(p) if grad is None else grad
    return p


def params(*shapes, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]


def run(opt, ps, steps, seed=1):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in ps: p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        opt.step()
    return opt


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


def everything(opt, ps):
    "Copies of parameters and of their states."
    return [p.detach().clone() for p in ps], [copy.deepcopy(dict(opt.state[p])) for p in ps]


# Fixtures, which the conftest.py of a folder imports

def force_eager(monkeypatch): monkeypatch.setattr(plan, 'path_of', lambda slot: (None, 'a test wants it so'))


def force_batched(monkeypatch): monkeypatch.setattr(FusedPass, 'unsupported', lambda x: 'a test wants it so')


def force_triton(monkeypatch):
    "Kernels by Triton on CPUs, in its interpreter."
    monkeypatch.setattr(triton, 'DEVICES', ('cuda', 'xpu', 'cpu'))
    monkeypatch.setattr(paths, 'FusedPass', triton.TritonPass)
    for method in ('step', 'sums'):  # the interpreter is numpy, which would warn of NaN
        monkeypatch.setattr(triton.TritonPass, method, np.errstate(all='ignore')(getattr(triton.TritonPass, method)))
    missing = triton.missing_triton()
    if missing: pytest.skip(missing)


# What makes a path step everything, and what `opt.path` then says.
PATHS = dict(numba=(lambda m: None, 'thread'), triton=(force_triton, 'by Triton on cpu'),
             batched=(force_batched, 'batched'), eager=(force_eager, 'eager'))


@pytest.fixture
def eager(monkeypatch): force_eager(monkeypatch)


@pytest.fixture(params=['fused', 'batched', 'eager'])
def path(request, monkeypatch):
    "All paths, one after the other."
    if request.param == 'eager': force_eager(monkeypatch)
    if request.param == 'batched': force_batched(monkeypatch)
    return request.param


@pytest.fixture
def parallel(monkeypatch):
    "The parallel kernel on two threads, whatever the size."
    monkeypatch.setattr(numba, 'WORTH_IT', 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
