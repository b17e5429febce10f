"Traces: what a rule may not do is an error, and what has no symbols runs on tensors."
import pytest
import torch

from miniai.optim import optimizer, sqrt
from miniai.optim.spec import read_rule
from opts import params, run


@pytest.mark.parametrize('rule', [lambda p, g, *, lr: p if g > 0 else g, lambda p, g, *, lr: p if g == 0 else g,
                                  lambda p, g, *, lr: p if g > 0 and p > 0 else g])
def test_a_branch_on_an_element_is_an_error_that_names_the_rule_and_where(rule):
    says = 'rule <lambda>: a rule may not branch on an element: write where'
    with pytest.raises(TypeError, match=says): read_rule(rule)


def test_a_rule_that_compares_hyperparameters_runs_eagerly_and_takes_the_right_branch():
    def rule(p, g, *, lr, mom=0.): return p - lr*g if mom == 0 else p
    ps = params((3,))
    opt, start = optimizer(rule)(ps, lr=.1), ps[0].detach().clone()
    run(opt, ps, 1)
    assert torch.allclose(ps[0], start - .1*ps[0].grad)
    opt.param_groups[0]['momentum'] = .5
    start = ps[0].detach().clone()
    run(opt, ps, 1)
    assert torch.equal(ps[0], start)
    assert 'rule cannot be traced: it branches on a hyperparameter' in opt.path


@pytest.mark.parametrize('rule', [
    lambda p, g, *, lr: p - lr*((g > 0) + (p > -5)), lambda p, g, *, lr: p - lr*abs(g > 0),
    lambda p, g, *, lr: p - lr*-(g > 0), lambda p, g, *, lr: p - lr*sqrt(g > 0), lambda p, g, *, lr: p - lr*(g > 0)**2])
def test_arithmetic_with_a_comparison_is_an_error_that_names_where(rule):
    with pytest.raises(TypeError, match='may not compute with a comparison: write where'): read_rule(rule)


def test_a_long_computation_over_hyperparameters_stays_short_code():
    def rule(p, g, *, lr, n=1.):
        y, c = lr, lr
        for _ in range(150): y, c = y*(1.5 - 0.5*n*y*y), c*n + lr
        return p - y*g*c
    assert read_rule(rule).untraced == ''
    p, q = (torch.nn.Parameter(torch.full((3,), 2., dtype=torch.float64)) for _ in range(2))
    p.grad = torch.ones_like(p)
    optimizer(rule)([p], lr=.1, n=.5).step()
    assert p.tolist() == pytest.approx(rule(q, p.grad, lr=.1, n=.5).tolist(), rel=1e-12)
