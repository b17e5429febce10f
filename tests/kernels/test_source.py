"Generated code: a rule's own names and numbers mean in a kernel what they mean in Python."
import math

import numpy as np
import pytest
import torch
from torch import nn

from miniai.optim import optimizer, sqrt, where
from opts import params, run


def names_that_code_uses(p, g, h, n, j, x0, h0, a0, e, first, keys, sqrt, *, lr):
    return p - lr*g, h+1, n+2, j+3, x0+4, h0+5, a0+6, e+7, first+8, keys+9, sqrt+10


def test_a_state_may_have_any_name():
    ps = params((5,))
    opt = run(optimizer(names_that_code_uses)(ps, lr=.1), ps, 2)
    states = [x for k, x in opt.state[ps[0]].items() if k != 'step']
    assert [x.tolist() for x in states] == [[2.*(i + 1)]*5 for i in range(10)]
    assert opt.path.startswith('fused')


def odd(p, g, s, *, t, lr, k=2.):
    s = where(g == 0, -1., where(s != 0, s + np.float64(.5), math.inf))
    return p + (-1)**t*lr*g*2**-t + 0*sqrt(k)*abs(p)**.5*p**2*p**3, where(s > 1e30, t + k, s)


def test_equality_negative_bases_infinities_and_numpys_constants_mean_what_they_say(path):
    p = nn.Parameter(torch.tensor([1., 2.], dtype=torch.float64))
    opt, want, states = optimizer(odd)([p], lr=.5), [1., 2.], [0., 0.]
    for t in (1, 2, 3):
        p.grad = torch.tensor([0., 3.], dtype=torch.float64)
        opt.step()
        for i, g in enumerate((0., 3.)): want[i], states[i] = odd(want[i], g, states[i], t=t, lr=.5)
    assert p.tolist() == pytest.approx(want, rel=1e-14)
    assert opt.state[p]['s'].tolist() == states
    assert opt.path.startswith(path)
