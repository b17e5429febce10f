"Paths: which one steps a parameter, and what `opt.path` says about it."
import pytest
import torch
from torch import nn

from miniai.kernels import numba
from miniai.kernels.math import where
from miniai.kernels.matrix import mean, norm, rms
from miniai.optim import LAMB, MARS, SGD, AdamW, optimizer
from opts import PATHS, force_triton, params, run
from oracle import ALL, OPTIONS, errors
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


FEW = [(), (3, 2)]  # and one channels_last: Triton's interpreter is slow


@pytest.mark.parametrize('seed', range(20))
@pytest.mark.parametrize('path', PATHS)
def test_a_random_rule_gives_the_numbers_of_python_floats_on_every_path(path, seed, monkeypatch):
    force, said = PATHS[path]
    force(monkeypatch)
    cls, source = random_rule(seed)
    options = OPTIONS['everything' if seed % 4 == 0 else 'plain']
    worst, opt = errors(cls, options, torch.float64, steps=3, seed=seed, groups=2, shapes=FEW)
    assert worst < 1e-11, source
    assert said in opt.path, source


@pytest.mark.parametrize(('cls', 'options'), [*((cls, 'everything') for cls in ALL), *((AdamW, o) for o in OPTIONS)])
@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_every_rule_and_option_by_triton_gives_the_numbers_of_python_floats(cls, options, dtype, limit, monkeypatch):
    force_triton(monkeypatch)
    worst, opt = errors(cls, OPTIONS[options], dtype, steps=3, groups=2, shapes=FEW)
    assert worst < limit
    assert 'by Triton on cpu' in opt.path


def sums_of_sums(p, g, avg, *, t, lr, mom=.9):
    "A rule whose last norm needs a mean, and that another norm."
    avg = mom*avg + (1-mom)*g/norm(g)
    u = avg + mean(avg*avg > 1e-2)*p
    return p - lr*u/(norm(u) + rms(p)/t), avg


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('cls', [LAMB, MARS, optimizer(sums_of_sums)])
def test_norms_and_means_are_those_of_whole_parameters_on_every_path(path, cls, monkeypatch):
    force, said = PATHS[path]
    force(monkeypatch)
    ps = params((70, 80), (5,), (), (2, 3), dtype=torch.float64)
    want, opt = [p.detach().clone() for p in ps], cls([dict(params=ps[:2]), dict(params=ps[2:], lr=.2)], lr=.1, wd=0.)
    states = [[0*w for _ in cls.spec.states] for w in want]
    for t in range(1, 5):
        run(opt, ps, 1, seed=t)
        for i, p in enumerate(ps):
            hypers = cls.spec.hypers | dict(lr=.1 if i < 2 else .2, t=t)
            want[i], *states[i] = cls.rule(want[i], p.grad, *states[i], **hypers)
    assert all(torch.allclose(p, w, rtol=1e-11, atol=1e-12) for p, w in zip(ps, want, strict=True))
    assert said in opt.path


def test_a_condition_on_hyperparameters_chooses_alike_on_every_path():
    def rule(p, g, *, t, lr): return p - lr*where(t > 1, g, 2*g)
    ends = []
    for force, _ in PATHS.values():
        with pytest.MonkeyPatch.context() as m:
            force(m)
            p, q = params((3,), (3,))
            opt = optimizer(rule)([p, q], lr=1.)
            start = p.detach().clone()
            q.grad = torch.ones(3)
            opt.step()
            p.grad = torch.ones(3)  # its first step, the other's second
            opt.step()
            ends.append(torch.stack([p.detach() - start, q.detach()]))
    assert torch.equal(ends[0][0].round(), torch.full((3,), -2.))
    assert all(torch.allclose(x, ends[0]) for x in ends)
