"Paths: which one steps a parameter, and what `opt.path` says about it."
import pytest
import torch
from torch import nn

from miniai.kernels import numba
from miniai.optim import SGD, AdamW
from opts import params, run
from oracle import OPTIONS, errors
from random_rules import random_rule

ON_CPU = '1 parameter, {} elements in {}, on cpu, because {}'


def given(q):
    q.grad = torch.zeros_like(q)
    return SGD([q], lr=.1).path


def test_what_no_kernel_knows_is_stepped_in_batches_and_what_has_an_odd_layout_eagerly(monkeypatch):
    p, half = params((8, 3)), params((3,), dtype=torch.float16)
    opt = SGD(p, lr=.1)
    assert opt.path == 'no parameter has a gradient'
    run(opt, p, 1)
    assert opt.path == 'fused: 1 parameter, 24 elements in float32, on one thread, because the model is small'
    assert given(half[0]) == f"batched: {ON_CPU.format(3, 'float16', 'no kernel for torch.float16')}"
    for odd in (torch.randn(4, 6)[:, ::2], torch.randn(3, 1).expand(3, 2)):
        assert given(nn.Parameter(odd)) == 'eager: 1 parameter, because its layout has gaps or overlaps'
    assert given(nn.Parameter(torch.empty(3, device='meta'))).endswith('no kernel for meta')
    both = run(SGD([*p, *half], lr=.1), [*p, *half], 1).path.splitlines()
    assert [x.split(':')[0] for x in both] == ['fused', 'batched']
    monkeypatch.setattr(numba, 'missing_numba', lambda: 'Numba is not installed')
    assert run(SGD(p, lr=.2), p, 1).path == f"batched: {ON_CPU.format(24, 'float32', 'Numba is not installed')}"


def test_a_gradient_of_another_layout_dtype_or_device_is_stepped_eagerly():
    q, = params((4, 6))
    q.grad = torch.randn(6, 4).t()
    assert SGD([q], lr=.1).path.endswith('its gradient or state has another layout or dtype, or is on another device')
    opt = AdamW([q], lr=.1)
    q.grad = torch.randn(4, 6)
    opt.step()
    assert opt.path.startswith('fused')
    opt.state[q]['exp_avg'] = torch.zeros(4, 6, device='meta')
    assert opt.path.startswith('eager')


@pytest.mark.parametrize('seed', range(20))
def test_a_random_rule_gives_the_numbers_of_python_floats_on_every_path(seed, path):
    cls, source = random_rule(seed)
    worst, opt = errors(cls, OPTIONS['everything' if seed % 4 == 0 else 'plain'], torch.float64, steps=4, seed=seed,
                        groups=2)
    assert worst < 1e-11, source
    assert opt.path.startswith(path), source
