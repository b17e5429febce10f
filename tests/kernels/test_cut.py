"Traces cut at sums: each pass takes only earlier sums, and all together are the rule."
import numpy as np
import pytest
import torch

from miniai.kernels.cut import cut
from miniai.kernels.matrix import mean, norm, rms
from miniai.kernels.python import host_values, results_on, values_on
from miniai.kernels.trace import trace_rule
from miniai.optim import rules


def chained(p, g, avg, *, t, lr):
    avg = avg + g/norm(g)
    x = avg*rms(avg) - mean(p > g)*p
    return p - lr*x/(norm(x) + norm(g)/t), avg


def passes(trace, tensors, hypers):
    "What the passes of a trace give one after the other, and how many there are."
    *sums, last = cut(trace)
    for part in sums:
        found = [float(x.sum()) for x in values_on(part, tensors, host_values(part, hypers))]
        hypers = hypers | dict(zip(part.sums.values(), map(np.float64, found), strict=True))
    return results_on(last, tensors, host_values(last, hypers)), len(sums)


@pytest.mark.parametrize(('rule', 'hypers', 'number'), [
    (chained, dict(t=2, lr=.3), 3), (rules.sgd, dict(lr=.1), 0),
    (rules.mars, dict(t=3, lr=.1, beta1=.9, beta2=.99, gamma=.03, eps=1e-8), 1),
    (rules.lamb, dict(t=3, lr=.1, beta1=.9, beta2=.99, eps=1e-6), 1)])
def test_all_passes_together_are_the_rule_and_sums_that_need_no_other_share_one(rule, hypers, number):
    trace = trace_rule(rule)
    tensors = torch.randn(len(trace.elements), 50, dtype=torch.float64).abs().unbind()
    found, n = passes(trace, tensors, hypers)
    want = rule(*tensors, **hypers)
    want = want if isinstance(want, tuple) else (want,)
    assert n == number
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(found, want, strict=True))


def test_a_pass_computes_nothing_that_only_others_need():
    first, last = cut(trace_rule(rules.mars))
    assert all(x not in ' '.join(first.lines) for x in ('p_', 'avg_'))
    assert not any('double' in code for code in last.lines)


def test_a_norm_of_zero_divides_as_it_does_on_tensors():
    trace = trace_rule(lambda p, g, *, lr: p - lr/norm(g)*g)
    (new_p,), _ = passes(trace, (torch.ones(3), torch.zeros(3)), dict(lr=.1))
    assert new_p.isnan().all()


@pytest.mark.parametrize('name', ['x4', 'h1', 'factor'])
def test_hyperparameters_may_have_names_that_traces_use(name):
    def rule(p, g, *, lr, **factor):
        return p - lr*g/norm(g)*norm(p*factor[name])
    first, _ = cut(trace_rule(rule, ('p', 'g'), ('lr', name)))
    assert len(first.sums) == 2
