"Slots: where states start, and rules that have no trace."
import torch
from torch import nn

from miniai.optim import optimizer, starts
from opts import params


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


def test_a_rule_without_symbols_runs_eagerly_and_says_why():
    def clamped(p, g, *, lr): return p - lr*g.clamp(-1, 1)
    p, = params((5,))
    p.grad = torch.tensor([-3., -.5, 0., .5, 3.])
    want, opt = p.detach() - .1*p.grad.clamp(-1, 1), optimizer(clamped)([p], lr=.1)
    opt.step()
    assert torch.allclose(p, want)
    assert opt.path == "eager: 1 parameter, because clamped cannot be traced: 'Symbol' object has no attribute 'clamp'"
