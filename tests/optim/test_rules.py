"The rules as pure functions: each against the notebook's formula, on Python floats and on tensors."
import inspect
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import formulas
from miniai.kernels.math import sqrt
from miniai.optim import LAMB, MARS, Scion, rules, starts

PAIRS = dict(SGD=rules.sgd, Momentum=rules.momentum, RMSProp=rules.rmsprop, Adam=rules.adam)
STATES = dict(SGD=0, Momentum=1, RMSProp=1, Adam=2)
AVERAGES = dict(SGD=[], Momentum=['grad_avg'], RMSProp=['sqr_avg'], Adam=['avg', 'sqr_avg'])
CASES = [(torch.float64, 1e-12), (torch.float32, 1e-5)]
EMPTY = inspect.Parameter.empty
each_rule = pytest.mark.parametrize('name', PAIRS)


def first_state(name, p, g): return [g*g] if name == 'RMSProp' else [p*0]*STATES[name]


def call(rule, p, g, state, t, hypers):
    "The rule's outputs as (p, states), `t` handed over where it asks for it."
    if 't' in inspect.signature(rule).parameters: hypers = hypers | dict(t=t)
    out = rule(p, g, *state, **hypers)
    return (out[0], list(out[1:])) if isinstance(out, tuple) else (out, [])


def distance(rule, name, dtype, seed=0, steps=100, shape=(7, 5)):
    "The largest relative error of parameter and averages between `rule` on tensors and the notebook's formula."
    rng = np.random.default_rng(seed)
    p = torch.tensor(rng.normal(size=shape), dtype=dtype)
    a, saved, worst = p.double().numpy(), {}, 0.
    for t in range(1, steps+1):
        g = torch.tensor(rng.normal(size=shape), dtype=dtype)
        hypers = formulas.random_hypers(rng, name) | dict(wd=0.)
        a = formulas.FORMULAS[name](a, g.double().numpy(), saved, t, **hypers)
        del hypers['wd']
        if t == 1: state = first_state(name, p, g)
        p, state = call(rule, p, g, state, t, hypers)
        pairs = [(p, a), *zip(state, (saved[k] for k in AVERAGES[name]), strict=True)]
        worst = max(worst, *(formulas.relative_error(x, y) for x, y in pairs))
    assert p.dtype == dtype
    return worst


@pytest.mark.parametrize(('dtype', 'limit'), CASES)
@each_rule
def test_a_rule_is_the_notebooks_formula_over_100_steps_of_moving_hyperparameters(name, dtype, limit):
    assert distance(PAIRS[name], name, dtype) < limit


def authors_adopt(p, g, s, t, lr, b1, b2, eps):
    "Algorithm 2 of Taniguchi et al., with the clipping of its section on large gradients, as a loop body."
    if t == 0: return p, dict(m=0*g, v=g**2)
    c = min(max(s['v']**.5, eps), 1e300)
    m = b1*s['m'] + (1 - b1)*min(max(g/c, -t**.25), t**.25)
    return p - lr*m, dict(m=m, v=b2*s['v'] + (1 - b2)*g**2)


def authors_ademamix(p, g, s, t, lr, b1, b2, b3, alpha, eps):
    "Algorithm 1 of Pagliardini et al., without its warmups."
    s = s or dict(m1=0., m2=0., v=0.)
    s = dict(m1=b1*s['m1'] + (1 - b1)*g, m2=b3*s['m2'] + (1 - b3)*g, v=b2*s['v'] + (1 - b2)*g**2)
    m, v = s['m1']/(1 - b1**(t + 1)), s['v']/(1 - b2**(t + 1))
    return p - lr*(m + alpha*s['m2'])/(v**.5 + eps), s


@given(st.lists(st.floats(-50, 50).filter(lambda g: abs(g) > 1e-6), min_size=1, max_size=12), st.floats(.5, .95),
       st.floats(.5, .999))
def test_adopt_and_ademamix_are_their_papers_algorithms(grads, b1, b2):
    a, b, one, two, s, z = 1., 1., (1., 0., 0.), (1., 0., 0., 0.), {}, {}
    for t, g in enumerate(grads):
        a, s = authors_adopt(a, g, s, t, .1, b1, b2, 1e-6)
        b, z = authors_ademamix(b, g, z, t, .1, b1, b2, .99, 3., 1e-8)
        one = rules.adopt(one[0], g, *one[1:], t=t + 1, lr=.1, beta1=b1, beta2=b2)
        two = rules.ademamix(two[0], g, *two[1:], t=t + 1, lr=.1, beta1=b1, beta2=b2, beta3=.99, alpha=3.)
        assert one[0] == pytest.approx(a, rel=1e-10, abs=1e-12)
        assert two[0] == pytest.approx(b, rel=1e-10, abs=1e-12)


# Rules on whole parameters, as plain loops over numpy arrays: p, g, a dict of state, the step from 1, lr and wd

def authors_mars(p, g, s, t, lr, wd, b1=.95, b2=.99, gamma=.025, eps=1e-8):
    "Algorithm 2 of Yuan et al. with the approximation of their equation 3.4, in the order of the authors' code."
    c = g + gamma*b1/(1 - b1)*(g - s.get('g', 0*g))
    if np.linalg.norm(c) > 1: c = c/np.linalg.norm(c)
    s['m'], s['v'], s['g'] = b1*s.get('m', 0) + (1 - b1)*c, b2*s.get('v', 0) + (1 - b2)*c**2, g
    return p - lr*(wd*p + s['m']/(1 - b1**t)/(np.sqrt(s['v']/(1 - b2**t)) + eps))


def authors_lamb(p, g, s, t, lr, wd, b1=.9, b2=.999, eps=1e-6):
    "Algorithm 2 of You et al., but for decay, which they add to the step before they measure it."
    p = p*(1 - lr*wd)
    s['m'], s['v'] = b1*s.get('m', 0) + (1 - b1)*g, b2*s.get('v', 0) + (1 - b2)*g**2
    r = s['m']/(1 - b1**t)/(np.sqrt(s['v']/(1 - b2**t)) + eps)
    return p - lr*np.linalg.norm(p)/np.linalg.norm(r)*r


def quintic(x, steps=5):
    "Jordan et al.'s Newton-Schulz steps."
    if x.shape[0] > x.shape[1]: return quintic(x.T, steps).T
    x = x/np.linalg.norm(x)
    for _ in range(steps): x = 3.4445*x - 4.7750*(x@x.T)@x + 2.0315*(x@x.T)@(x@x.T)@x
    return x


def authors_scion(p, g, s, t, lr, wd, outer=False):
    "Algorithm 2 of Pethick et al.; norms as in their table 2 and, for convolutions, their appendix."
    s['d'] = d = .9*s.get('d', 0) + .1*g
    if g.ndim < 2: step = 50*d/(np.sqrt(np.mean(d**2)) + 1e-8)
    elif outer: step = 3000*np.sign(d)/d.shape[1]
    else: step = 50*(g.shape[0]/g.shape[1])**.5/np.prod(g.shape[2:])*quintic(d.reshape(len(d), -1)).reshape(g.shape)
    return p - lr*(step + wd*p)


@pytest.mark.parametrize(('cls', 'theirs'), [(MARS, authors_mars), (LAMB, authors_lamb), (Scion, authors_scion)])
def test_a_rule_on_whole_parameters_is_its_papers_loop_over_100_steps(cls, theirs):
    "With two groups, a rate that moves, and gradients that are missing or large."
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=s) for s in ((7, 5), (5, 9), (4, 2, 3, 3), (3, 4, 5), (6,), (1,), (5, 3))]
    ps, states, counts = [nn.Parameter(torch.tensor(x)) for x in xs], [{} for _ in xs], [0]*len(xs)
    later = dict(rule=cls.companion()) if cls.spec.others else {}
    opt = cls([dict(params=ps[:4], wd=.3), dict(params=ps[4:], **later)], lr=.01, wd=.1)
    for t in range(100):
        lr = .003*(1 + t % 5)
        for group in opt.param_groups: group['lr'] = lr
        for i, p in enumerate(ps):
            p.grad = None
            if t % 7 == i: continue
            g, counts[i] = rng.normal(size=p.shape)*10.**(i % 3 - 1), counts[i] + 1
            p.grad = torch.tensor(g)
            own = dict(outer=i > 3) if cls is Scion else {}
            xs[i] = theirs(xs[i], g, states[i], counts[i], lr, .3 if i < 4 else .1, **own)
        opt.step()
    for p, x in zip(ps, xs, strict=True): assert np.abs(p.detach().numpy() - x).max() < 1e-10


def test_lambs_decay_is_outside_its_trust_ratio():
    "You et al. add wd*p to the step, which is then as long as the parameter; as a stage, decay shortens it besides."
    p = nn.Parameter(torch.tensor([3., 4.], dtype=torch.float64))
    p.grad = torch.tensor([1., -1.], dtype=torch.float64)
    LAMB([p], lr=.1, wd=.5).step()
    u = np.array([1., -1.])/(1 + 1e-6)
    inside = [3., 4.] - .1*5*(u + .5*np.array([3., 4.]))/np.linalg.norm(u + .5*np.array([3., 4.]))
    outside = .95*np.array([3., 4.]) - .1*(.95*5)*u/np.linalg.norm(u)
    assert p.tolist() == pytest.approx(outside, rel=1e-12)
    assert np.abs(p.detach().numpy() - inside).max() > .1


def test_scions_decay_of_1_keeps_parameters_within_their_scale():
    "The constrained form: in it a step is an average of the parameter and of a point of norm `scale`."
    ps = [nn.Parameter(torch.full((3,), 7.)), nn.Parameter(torch.full((4, 2), 9.))]
    opt = Scion([dict(params=[p], rule=Scion.companion(), scale=2., bias_scale=5.) for p in ps], lr=.5)
    for _ in range(30):
        for p in ps: p.grad = torch.ones_like(p)
        opt.step()
    assert ps[0].tolist() == pytest.approx([-5.]*3, rel=1e-5)
    assert ps[1].flatten().tolist() == pytest.approx([-2/2]*8, rel=1e-5)


def undampened(p, g, avg, *, lr, mom=.9):
    avg = mom*avg + g
    return p - lr*avg, avg


def nesterov(p, g, avg, *, lr, mom=.9):
    avg = mom*avg + (1-mom)*g
    return p - lr*(mom*avg + (1-mom)*g), avg


def rms_eps_inside(p, g, sqr, *, lr, sqr_mom=.99, eps=1e-5):
    sqr = sqr_mom*sqr + (1-sqr_mom)*g*g
    return p - lr*g/sqrt(sqr + eps), sqr


def adam_eps_outside(p, g, avg, sqr, *, t, lr, beta1=.9, beta2=.99, eps=1e-5):
    avg, sqr = beta1*avg + (1-beta1)*g, beta2*sqr + (1-beta2)*g*g
    return p - lr*avg/(1-beta1**t)/(sqrt(sqr/(1-beta2**t)) + eps), avg, sqr


def adam_uncorrected(p, g, avg, sqr, *, t, lr, beta1=.9, beta2=.99, eps=1e-5):
    avg, sqr = beta1*avg + (1-beta1)*g, beta2*sqr + (1-beta2)*g*g
    return p - lr*avg/sqrt(sqr + eps), avg, sqr


def adam_late(p, g, avg, sqr, *, t, lr, beta1=.9, beta2=.99, eps=1e-5):
    return rules.adam(p, g, avg, sqr, t=t+1, lr=lr, beta1=beta1, beta2=beta2, eps=eps)


WRONG = [('SGD', lambda p, g, *, lr: p + lr*g), ('Momentum', undampened), ('Momentum', nesterov),
         ('RMSProp', rms_eps_inside), ('Adam', adam_eps_outside), ('Adam', adam_uncorrected), ('Adam', adam_late)]


@pytest.mark.parametrize(('name', 'wrong'), WRONG)
def test_the_comparison_with_the_formula_finds_a_wrong_rule(name, wrong):
    assert distance(wrong, name, torch.float64) > 1e-5


@each_rule
def test_a_rule_on_python_floats_gives_what_it_gives_on_float64_tensors(name):
    rng = np.random.default_rng(1)
    p, x = 1.5, torch.tensor(1.5, dtype=torch.float64)
    for t in range(1, 101):
        g = rng.normal()
        gx = torch.tensor(g, dtype=torch.float64)
        if t == 1: state, xstate = first_state(name, p, g), first_state(name, x, gx)
        hypers = formulas.random_hypers(rng, name)
        del hypers['wd']
        p, state = call(PAIRS[name], p, g, state, t, hypers)
        x, xstate = call(PAIRS[name], x, gx, xstate, t, hypers)
        assert all(type(v) is float for v in (p, *state))
        assert (p, *state) == pytest.approx([v.item() for v in (x, *xstate)], rel=1e-14, abs=1e-300)


@each_rule
@given(p=st.floats(-1e3, 1e3), g=st.floats(-1e3, 1e3), lr=st.floats(0, 1))
@settings(max_examples=60)
def test_the_first_step_on_python_floats_is_the_formulas(name, p, g, lr):
    mine, _ = call(PAIRS[name], p, g, first_state(name, p, g), 1, dict(lr=lr))
    theirs = formulas.FORMULAS[name](np.float64(p), np.float64(g), {}, 1, lr=lr)
    assert mine == pytest.approx(theirs, rel=1e-12, abs=1e-12)


@each_rule
def test_a_rule_leaves_its_arguments_alone(name):
    args = [torch.randn(3), torch.randn(3), *(torch.rand(3) for _ in range(STATES[name]))]
    before = [x.clone() for x in args]
    call(PAIRS[name], *args[:2], args[2:], 1, dict(lr=.1))
    assert all(torch.equal(x, y) for x, y in zip(args, before, strict=True))


@each_rule
def test_a_rule_has_the_notebooks_defaults_and_a_docstring(name):
    own, theirs = (inspect.signature(f).parameters.values() for f in (PAIRS[name], formulas.FORMULAS[name]))
    defaults = {v.name: v.default for v in own if v.default is not EMPTY}
    assert defaults == {v.name: v.default for v in theirs if v.default is not EMPTY and v.name != 'wd'}
    assert PAIRS[name].__doc__


def test_only_rmsprop_starts_at_the_squared_gradient_and_all_other_state_at_zero():
    assert rules.rmsprop.starts['sqr_avg'](5., 3.) == 9.
    assert not any(hasattr(r, 'starts') for r in (rules.sgd, rules.momentum, rules.adam))


def test_starts_gives_back_the_same_rule_with_its_first_state_noted():
    def rule(p, g, a, *, lr): return p, a
    first = lambda p, g: p  # noqa: E731
    assert starts(a=first)(rule) is rule
    assert rule.starts == dict(a=first)


def test_adams_first_step_has_length_lr_whatever_the_gradient():
    for g in (1., -1., 50., -3e4):
        p, _, _ = rules.adam(0., g, 0., 0., t=1, lr=.1, eps=0.)
        assert p == pytest.approx(-math.copysign(.1, g), rel=1e-14)
