"The plan of a step: every rule and option, on every path and in every dtype, is the rule on Python floats."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai.kernels import numba
from miniai.optim import SGD, AdamW, Lion, NAdamW, RMSProp, optimizer, rules
from miniai.optim.plan import hypers_of
from miniai.optim.spec import read_rule
from opts import everything, force_batched, force_eager, params, run, same
from oracle import (
    ALL,
    EVERYTHING,
    OPTIONS,
    Oracle,
    drawn,
    error,
    errors,
    flat,
    give_gradients,
    move,
    norm_scale,
    starting,
    states_of,
)

LIMITS = {torch.float64: 1e-12, torch.float32: 1e-5}

both_dtypes = pytest.mark.parametrize('dtype', LIMITS)

each_rule = pytest.mark.parametrize('cls', ALL)


# The rule on Python floats

@each_rule
@both_dtypes
@pytest.mark.parametrize('options', ['norm', 'everything'])
def test_50_fused_steps_are_the_rule_on_python_floats_with_every_hyperparameter_moving(cls, dtype, options):
    worst, opt = errors(cls, OPTIONS[options], dtype)
    assert worst <= LIMITS[dtype]
    assert 'eager' not in opt.path


@pytest.mark.parametrize('options', [o for o in OPTIONS if o not in ('norm', 'everything')])
@pytest.mark.parametrize('cls', [AdamW, RMSProp])
def test_50_fused_steps_with_each_option_alone_are_the_rule_on_python_floats(cls, options):
    worst, opt = errors(cls, OPTIONS[options], torch.float32)
    assert worst <= 1e-5
    assert 'eager' not in opt.path


@each_rule
@both_dtypes
@pytest.mark.parametrize('options', OPTIONS)
def test_50_eager_steps_are_the_rule_on_python_floats_with_every_option(cls, dtype, options, eager):
    worst, opt = errors(cls, OPTIONS[options], dtype)
    lost = options == 'decay' and dtype is torch.float32  # a step that float32 loses does not say whether to decay
    assert worst <= (1e-3 if lost else LIMITS[dtype])
    assert opt.path == 'eager: 7 parameters, because a test wants it so'


@each_rule
@both_dtypes
@pytest.mark.parametrize('options', ['norm', 'everything'])
def test_20_batched_steps_of_two_groups_are_the_rule_on_python_floats(cls, dtype, options, monkeypatch):
    force_batched(monkeypatch)
    worst, opt = errors(cls, OPTIONS[options], dtype, steps=20, groups=2)
    assert worst <= LIMITS[dtype]
    assert opt.path.startswith('batched: 7 parameters')


@each_rule
def test_strided_views_take_the_eager_path_and_are_the_rule_on_python_floats(cls):
    worst, opt = errors(cls, EVERYTHING, torch.float64, strided=True)
    assert worst <= 1e-12
    assert 'gaps or overlaps' in opt.path


@pytest.mark.parametrize(('cls', 'options'), [(AdamW, {}), (AdamW, EVERYTHING), (RMSProp, EVERYTHING), (Lion, {}),
                                              (NAdamW, {})])
def test_bfloat16_parameters_are_rounded_once_per_step_and_have_float32_states(cls, options, path):
    rng = np.random.default_rng(0)
    ps = starting(rng, torch.bfloat16)
    opt, hs = cls(ps, lr=1., **options), [Oracle(cls, options, x) for x in flat(ps).tolist()]
    for _ in range(50):
        hypers = drawn(rng, cls)
        move(opt.param_groups[0], hypers)
        give_gradients(rng, ps)
        scale = norm_scale(ps, options.get('clip_norm'))
        for o, p, g in zip(hs, flat(ps).tolist(), flat(p.grad for p in ps).tolist(), strict=True):
            o.p = p
            o.step(g, hypers, scale)
        opt.step()
        want = np.array([o.p for o in hs])
        assert (np.abs(flat(ps) - want) <= np.abs(want)*(2**-8 + 1e-5) + 1e-30).all()
    found = states_of(opt, ps)
    for i, s in enumerate(cls.spec.states): assert error(found[s], [o.s[i] for o in hs]) <= 1e-5
    if 'ema' in options: assert error(found['ema'], [o.ema for o in hs]) <= 1e-2  # of values rounded to bfloat16
    assert {x.dtype for p in ps for x in opt.state[p].values() if torch.is_tensor(x)} <= {torch.float32}
    assert opt.path.startswith(path)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_states_in_bfloat16_are_the_rules_to_one_unit_in_the_last_place_at_every_step(dtype, path):
    rng, options = np.random.default_rng(0), dict(ema=.9)
    ps = starting(rng, dtype)
    opt, hs = AdamW(ps, lr=1., state='bf16', **options), [Oracle(AdamW, options, x) for x in flat(ps).tolist()]
    for t in range(50):
        hypers = drawn(rng, AdamW)
        move(opt.param_groups[0], hypers)
        give_gradients(rng, ps)
        old = states_of(opt, ps) if t else {}
        for i, (o, p, g) in enumerate(zip(hs, flat(ps).tolist(), flat(p.grad for p in ps).tolist(), strict=True)):
            if t: o.p, o.s = p, [float(old[s][i]) for s in AdamW.spec.states]
            o.step(g, hypers)
        opt.step()
        for k, s in enumerate(AdamW.spec.states):
            want = np.array([o.s[k] for o in hs])
            assert (np.abs(states_of(opt, ps)[s] - want) <= np.abs(want)*(2**-7 + 1e-5)).all()
        assert error(flat(ps), [o.p for o in hs]) <= (2**-8 if dtype is torch.bfloat16 else 1e-5)
    kinds = {nm: {opt.state[p][nm].dtype for p in ps} for nm in ('exp_avg', 'exp_avg_sq', 'ema')}
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    assert kinds == dict(exp_avg={torch.bfloat16}, exp_avg_sq={torch.bfloat16}, ema={wide})
    assert opt.path.startswith(path)


def test_eager_and_fused_steps_agree_to_rounding_for_many_odd_sizes(monkeypatch):
    shapes = [(n,) for n in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1023, 4097)]
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        ps, qs = params(*shapes, dtype=dtype), params(*shapes, dtype=dtype)
        run(AdamW(ps, lr=.01, wd=.1), ps, 5)
        with monkeypatch.context() as m:
            force_eager(m)
            run(AdamW(qs, lr=.01, wd=.1), qs, 5)
        assert all(error(p.detach(), q.detach()) <= limit for p, q in zip(ps, qs, strict=True))


def test_hyperparameters_are_read_from_a_group_as_python_floats():
    group = dict(lr=1, betas=[0, 1], eps=2, weight_decay=torch.tensor(.5), other='x')
    found = hypers_of(group, read_rule(rules.adam).places)
    assert found == dict(lr=1., beta1=0., beta2=1., eps=2., wd=.5)
    assert {type(x) for x in found.values()} == {float}
    group = dict(lr=1, momentum=.5, weight_decay=0)
    assert hypers_of(group, read_rule(rules.momentum).places) == dict(lr=1., mom=.5, wd=0.)


# Against torch

PAIRS = dict(
    NAdamW=(lambda ps: NAdamW(ps, lr=.01, wd=.1),
            lambda ps: torch.optim.NAdam(ps, lr=.01, weight_decay=.1, decoupled_weight_decay=True)),
    AdamW=(lambda ps: AdamW(ps, lr=.01, wd=.1), lambda ps: torch.optim.AdamW(ps, lr=.01, weight_decay=.1)),
    SGD=(lambda ps: ALL[0](ps, lr=.01, wd=.1, decoupled=False),
         lambda ps: torch.optim.SGD(ps, lr=.01, weight_decay=.1)),
    HeavyBall=(lambda ps: ALL[2](ps, lr=.01, wd=.1, decoupled=False),
               lambda ps: torch.optim.SGD(ps, lr=.01, momentum=.9, weight_decay=.1)),
    Nesterov=(lambda ps: ALL[3](ps, lr=.01, wd=.1, decoupled=False),
              lambda ps: torch.optim.SGD(ps, lr=.01, momentum=.9, nesterov=True, weight_decay=.1)),
    Adagrad=(lambda ps: ALL[5](ps, lr=.01, wd=.1, lr_decay=.1, decoupled=False),
             lambda ps: torch.optim.Adagrad(ps, lr=.01, lr_decay=.1, weight_decay=.1)))


@both_dtypes
@pytest.mark.parametrize('name', PAIRS)
def test_50_steps_equal_torchs_while_state_dicts_are_exchanged_both_ways(name, dtype):
    ours, theirs = PAIRS[name]
    ps, qs = params((5, 3), (7,), dtype=dtype), params((5, 3), (7,), dtype=dtype)
    a, b = ours(ps), theirs(qs)
    for seed in range(5):
        run(a, ps, 10, seed)
        run(b, qs, 10, seed)
        assert error(flat(ps), flat(qs)) <= (LIMITS[dtype] if name != 'NAdamW' else 1e-5)  # torch's product is float32
        a_, b_ = ours(ps), theirs(qs)
        a_.load_state_dict(b.state_dict())
        b_.load_state_dict(a.state_dict())
        a, b = a_, b_
    if name in ('AdamW', 'Adagrad'): assert {s['step'] for s in a.state.values()} == {50}  # torch's SGD counts none


# What changes between steps

def test_gradients_that_come_and_go_and_groups_that_are_added_change_no_bit():
    ps, qs = params((5,), (6,), (7,)), params((5,), (6,), (7,))
    a, bs = AdamW(ps[:2], lr=.1), [AdamW([q], lr=.1) for q in qs]
    g = torch.Generator().manual_seed(3)
    for t in range(12):
        if t == 4: a.add_param_group(dict(params=ps[2:]))
        for i, (p, q) in enumerate(zip(ps, qs, strict=True)):
            p.grad = None if (t + i) % 3 == 0 or (i == 2 and t < 4) else torch.randn(p.shape, generator=g)
            q.grad = None if p.grad is None else p.grad.clone()
        a.step()
        for b in bs: b.step()
        assert all(map(torch.equal, ps, qs))


def test_groups_that_swap_places_keep_their_hyperparameters():
    p, q = params((4,), (4,))
    opt = run(SGD([dict(params=[p], lr=0.), dict(params=[q], lr=1.)], lr=.1), [p, q], 1)
    opt.param_groups.reverse()
    before, moved = p.detach().clone(), q.detach().clone()
    run(opt, [p, q], 1)
    assert torch.equal(p, before)
    assert not torch.equal(q, moved)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_converted_to_another_dtype_keeps_its_states(dtype):
    model, twin = nn.Linear(6, 5), nn.Linear(6, 5)
    twin.load_state_dict(model.state_dict())
    a, b = AdamW(model.parameters(), lr=.01), AdamW(twin.parameters(), lr=.01)
    run(a, [*model.parameters()], 3), run(b, [*twin.parameters()], 3)
    model.to(dtype)
    run(a, [*model.parameters()], 3), run(b, [*twin.parameters()], 3)
    assert error(flat(model.parameters()), flat(twin.parameters())) <= (1e-5 if dtype is torch.float64 else .03)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {s['step'] for s in a.state.values()} == {6}


def test_the_path_depends_on_the_current_gradient_not_on_the_first_one():
    p, = params((6, 4))
    opt = AdamW([p], lr=.1)
    p.grad = torch.ones(4, 6).t()
    opt.step()
    assert 'eager' in opt.path
    p.grad = torch.ones(6, 4)
    opt.step()
    assert 'eager' not in opt.path
    p.grad = torch.ones(4, 6).t()
    opt.step()
    p.grad = torch.ones_like(p).to_sparse()
    with pytest.raises(TypeError, match='sparse gradient'): opt.step()


def test_changing_every_hyperparameter_compiles_nothing_after_the_first_step():
    ps = params((50,), (3, 3))
    opt, rng = AdamW(ps, lr=1., clip_norm=1., ema=.9), np.random.default_rng(0)
    run(opt, ps, 1)
    before, kernels = dict(numba.compiled), numba.step_kernel.cache_info().misses
    for _ in range(50):
        move(opt.param_groups[0], drawn(rng, AdamW))
        opt.clip_norm, opt.ema = rng.uniform(.1, 9), rng.uniform(.5, .99)
        run(opt, ps, 1)
    assert (dict(numba.compiled), numba.step_kernel.cache_info().misses) == (before, kernels)


def test_autograd_notices_that_a_step_changed_a_parameter():
    p, = params((3,))
    loss = (p*p).sum()
    p.grad = torch.ones(3)
    SGD([p], lr=.1).step()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): loss.backward()


shapes = st.lists(st.lists(st.integers(0, 5), max_size=3).map(tuple), min_size=1, max_size=6)


@given(shapes=shapes, data=st.data())
@settings(max_examples=25)
def test_order_grouping_and_missing_gradients_change_no_bit(shapes, data):
    ps, qs = params(*shapes), params(*shapes)
    order = data.draw(st.permutations(range(len(qs))))
    cut = data.draw(st.integers(0, len(qs)))
    groups = [dict(params=[qs[i] for i in x]) for x in (order[:cut], order[cut:]) if x]
    one, many = AdamW(ps, lr=.1, ema=.9, clip_value=.5), AdamW(groups, lr=.1, ema=.9, clip_value=.5)
    for _ in range(3):
        for p, q in zip(ps, qs, strict=True):
            p.grad = torch.randn_like(p) if data.draw(st.booleans()) else None
            q.grad = None if p.grad is None else p.grad.clone()
        one.step(), many.step()
    assert same(everything(one, ps), everything(many, qs))


# Steps that are skipped or fail

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_a_step_whose_gradients_are_not_finite_changes_nothing_and_is_counted(path, bad, dtype):
    ps = params((5000,), (3,), dtype=dtype)
    opt = run(AdamW(ps, lr=.1, skip_nonfinite=True, ema=.9), ps, 2)
    before = everything(opt, ps)
    for k in (4999, 0):
        ps[0].grad[k] = bad
        opt.step()
    assert same(everything(opt, ps), before)
    assert opt.skipped == 2
    run(opt, ps, 1)
    assert (opt.skipped, opt.state[ps[0]]['step']) == (2, 3)


def test_a_first_step_that_is_skipped_starts_no_average():
    ps, qs = params((5,)), params((5,))
    opt, other = AdamW(ps, lr=.1, skip_nonfinite=True, ema=.9), AdamW(qs, lr=.1, ema=.9)
    ps[0].grad = torch.full((5,), math.nan)
    opt.step()
    assert torch.equal(ps[0], qs[0])
    run(opt, ps, 3), run(other, qs, 3)
    assert same(everything(opt, ps), everything(other, qs))


def test_a_gradscaler_unscales_and_its_found_inf_skips_the_step(path):
    ps, qs = params((5, 3)), params((5, 3))
    opt, other = AdamW(ps, lr=.1, clip_norm=1.), AdamW(qs, lr=.1, clip_norm=1.)
    scaler = torch.amp.GradScaler('cpu', init_scale=1024., growth_interval=100)
    def scaled(x):
        opt.zero_grad()
        scaler.scale((ps[0]*x).sum()).backward()
        scaler.step(opt)
        scaler.update()
    for x in (.5, 2.):
        scaled(x)
        qs[0].grad = torch.full((5, 3), x)
        other.step()
    assert error(ps[0].detach(), qs[0].detach()) <= 1e-6
    before = everything(opt, ps)
    scaled(math.inf)
    assert same(everything(opt, ps), before)
    assert scaler.get_scale() == 512.


def test_a_step_that_fails_for_its_hyperparameters_changes_nothing_on_any_path():
    def rule(p, g, avg, *, lr, k=1.): return p - lr/k*g, avg + g
    a, b = params((4,)), params((4,), dtype=torch.float16)
    opt = optimizer(rule)([dict(params=a), dict(params=b, k=0.)], lr=.1)
    for p in (*a, *b): p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in (*a, *b)]
    with pytest.raises(ZeroDivisionError): opt.step()
    assert same([p.detach() for p in (*a, *b)], before)
    assert [opt.state[p]['step'] for p in (*a, *b)] == [0, 0]


def test_states_start_at_the_first_step_that_succeeds():
    p, q = params((4,)), params((4,))
    a, b = RMSProp(p, lr=.1), RMSProp(q, lr=.1)
    p[0].grad = torch.full((4,), 5.)
    a.param_groups[0]['eps'] = None
    with pytest.raises(TypeError): a.step()
    a.param_groups[0]['eps'] = 1e-5
    p[0].grad, q[0].grad = torch.ones(4), torch.ones(4)
    a.step(), b.step()
    assert torch.equal(p[0], q[0])


# Clipping by norm

@pytest.mark.parametrize('limit', [.1, 3., 1e9])
def test_clipping_by_norm_is_torchs_clip_grad_norm_and_a_step(path, limit):
    shapes = [(5000,), (3, 4), (), (0,)]
    ps, qs = params(*shapes), params(*shapes)
    a, b = AdamW(ps, lr=.01, wd=.1, clip_norm=limit), torch.optim.AdamW(qs, lr=.01, weight_decay=.1)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        for p, q in zip(ps, qs, strict=True): p.grad, q.grad = (x := torch.randn(p.shape, generator=g)), x.clone()
        nn.utils.clip_grad_norm_(qs, limit)
        a.step(), b.step()
    assert all(error(p.detach(), q.detach()) <= 1e-5 for p, q in zip(ps, qs, strict=True) if p.numel())


def test_clipping_by_norm_treats_gradients_that_are_not_finite_as_torch_does():
    ps, qs = params((4,), (3,)), params((4,), (3,))
    for bad in (math.nan, math.inf):
        a, b = SGD(ps, lr=.1, clip_norm=1.), torch.optim.SGD(qs, lr=.1)
        for p, q in zip(ps, qs, strict=True): p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        ps[0].grad[0] = qs[0].grad[0] = bad
        nn.utils.clip_grad_norm_(qs, 1.)
        a.step(), b.step()
        assert all(torch.allclose(p, q, equal_nan=True) for p, q in zip(ps, qs, strict=True))
