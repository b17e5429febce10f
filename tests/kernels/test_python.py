"A trace as Python functions: numbers computed once per step in double precision, lines on tensors."
import pytest
import torch

from miniai.kernels.python import element_function, host_function, scalar_places
from miniai.kernels.trace import trace_rule
from miniai.optim import rules


def test_both_functions_together_are_the_rule():
    trace = trace_rule(rules.adam)
    hypers = dict(t=3, lr=.1, beta1=.9, beta2=.99, eps=1e-5)
    p, g, avg, sqr = torch.randn(4, 5, dtype=torch.float64).unbind()
    hosts = host_function(trace)(**hypers)
    assert all(type(h) is float for h in hosts)
    got = element_function(trace)(p, g, avg, sqr.abs(), *hosts)
    want = rules.adam(p, g, avg, sqr.abs(), **hypers)
    assert all(torch.allclose(a, b, rtol=1e-14) for a, b in zip(got, want, strict=True))


def test_new_scalars_are_among_the_hosts():
    trace = trace_rule(rules.nadamw, scalars=('mu_product',))
    hosts = host_function(trace)(t=1, lr=.1, beta1=.9, beta2=.99, eps=1e-8, momentum_decay=4e-3, mu_product=1.)
    place, = scalar_places(trace)
    assert hosts[place] == pytest.approx(.9*(1 - .5*.96**4e-3), rel=1e-15)


def test_states_may_have_names_that_traces_use():
    def rule(p, g, x1, x7, *, lr):
        x1, x7 = x1 + g, x7 - g
        return p - lr*x1*x7, x1, x7
    trace, tensors = trace_rule(rule), [torch.randn(3, dtype=torch.float64) for _ in range(4)]
    got = element_function(trace)(*tensors, *host_function(trace)(lr=.1))
    assert all(map(torch.equal, got, rule(*tensors, lr=.1)))
