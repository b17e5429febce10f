"Slots: where states start, and why a parameter takes the eager path."
import torch
from torch import nn

from miniai.kernels import numba
from miniai.optim import SGD, optimizer, starts
from opts import params, run


def param(data, grad=None):
    p = nn.Parameter(data)
    p.grad = torch.randn_like(p) if grad is None else grad
    return p


def test_states_start_at_zero_or_where_the_rule_says_in_their_own_memory():
    @starts(slow=lambda p, g: p, grad=lambda p, g: g)
    def rule(p, g, avg, slow, grad, *, lr): return p, avg, slow, grad
    p = param(torch.randn(3))
    start, g = p.detach().clone(), p.grad.clone()
    opt = optimizer(rule)([p], lr=.1, wd=.5)
    opt.step()
    state = {k: x for k, x in opt.state[p].items() if k != 'step'}
    assert list(state) == ['avg', 'slow', 'grad']
    assert torch.equal(state['avg'], torch.zeros(3))
    assert torch.equal(state['slow'], start)
    assert torch.equal(state['grad'], g)
    assert len({x.data_ptr() for x in (p, p.grad, *state.values())}) == 5


def test_a_state_that_starts_at_the_gradient_starts_at_the_gradient_that_the_rule_sees():
    @starts(first=lambda p, g: g)
    def rule(p, g, first, *, lr): return p, first
    p = param(torch.full((3,), 2.), torch.full((3,), 8.))
    opt = optimizer(rule)([p], lr=.1, wd=.5, decoupled=False, clip_value=3.)
    opt.step()
    assert opt.state[p]['first'].tolist() == [4.]*3


def test_state_may_start_at_a_plain_number():
    @starts(scale=lambda p, g: 1.)
    def rule(p, g, scale, *, lr): return p - lr*scale*g, scale
    p = param(torch.zeros(3), torch.ones(3))
    optimizer(rule)([p], lr=.5).step()
    assert p.tolist() == [-.5]*3


def test_the_path_says_what_runs_and_why(monkeypatch):
    p, = params((8, 3))
    opt = SGD([p], lr=.1)
    assert opt.path == 'no parameter has a gradient'
    run(opt, [p], 1)
    assert opt.path == 'fused: 1 parameter, 24 elements in float32, on one thread, because the model is small'
    cases = [(params((3,), dtype=torch.float16)[0], 'no kernel for torch.float16'),
             (nn.Parameter(torch.randn(4, 6)[:, ::2]), 'its layout has gaps or overlaps'),
             (nn.Parameter(torch.randn(3, 1).expand(3, 2)), 'its layout has gaps or overlaps'),
             (nn.Parameter(torch.empty(3, device='meta')), 'no kernel for meta')]
    for q, why in cases:
        q.grad = torch.zeros_like(q)
        assert SGD([q], lr=.1).path == f'eager: 1 parameter, because {why}'
    q, = params((4, 6))
    q.grad = torch.randn(6, 4).t()
    assert SGD([q], lr=.1).path.endswith('its gradient or state has another layout or dtype')
    both = run(SGD([p, cases[0][0]], lr=.1), [p, cases[0][0]], 1).path.splitlines()
    assert [x.split(':')[0] for x in both] == ['fused', 'eager']
    monkeypatch.setattr(numba, 'missing_numba', lambda: 'Numba is not installed')
    assert run(SGD([p], lr=.2), [p], 1).path.endswith('because Numba is not installed')


def test_a_rule_without_symbols_runs_eagerly_and_says_why():
    def clamped(p, g, *, lr): return p - lr*g.clamp(-1, 1)
    p, = params((5,))
    p.grad = torch.tensor([-3., -.5, 0., .5, 3.])
    want, opt = p.detach() - .1*p.grad.clamp(-1, 1), optimizer(clamped)([p], lr=.1)
    opt.step()
    assert torch.allclose(p, want)
    assert opt.path == "eager: 1 parameter, because clamped cannot be traced: 'Symbol' object has no attribute 'clamp'"
