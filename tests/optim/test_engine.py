"The engine: every rule and option, on both paths and in every dtype, is the rule on Python floats; and steps are safe."
import copy
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from miniai.kernels import kernel, threads
from miniai.optim import SGD, Adam, AdamW, Lion, Momentum, NAdamW, RMSProp, engine, optimizer, table
from opts import same
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
both_paths = pytest.mark.parametrize('path', ['fused', 'eager'])


@pytest.fixture
def all_eager(monkeypatch): monkeypatch.setattr(engine, 'eager_reason', lambda slot, program: 'a test wants it so')


@pytest.fixture
def path_of(monkeypatch):
    def choose(path):
        if path == 'eager': monkeypatch.setattr(engine, 'eager_reason', lambda slot, program: 'a test wants it so')
    return choose


@pytest.fixture
def parallel(monkeypatch):
    "The parallel kernel on two threads, whatever the size."
    monkeypatch.setattr(threads, 'WORTH_IT', 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def params(*shapes, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]


def run(opt, ps, steps, seed=1):
    g = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in ps: p.grad = torch.randn(p.shape, generator=g).to(p.dtype)
        opt.step()
    return opt


def everything(opt, ps):
    return [p.detach().clone() for p in ps], [dict(copy.deepcopy(dict(opt.state[p]))) for p in ps]


def equal(a, b):
    (ps, ss), (qs, ts) = a, b
    return same(ps, qs) and same(ss, ts)


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
def test_50_eager_steps_are_the_rule_on_python_floats_with_every_option(cls, dtype, options, all_eager):
    worst, opt = errors(cls, OPTIONS[options], dtype)
    assert worst <= LIMITS[dtype]
    assert opt.path == 'eager: 7 parameter(s), as a test wants it so'


@each_rule
def test_strided_views_are_stepped_by_the_eager_path_like_python_floats(cls):
    worst, opt = errors(cls, EVERYTHING, torch.float64, strided=True)
    assert worst <= 1e-12
    assert 'gaps or overlaps' in opt.path


@both_paths
@pytest.mark.parametrize(('cls', 'options'), [(AdamW, {}), (AdamW, EVERYTHING), (RMSProp, EVERYTHING), (Lion, {}),
                                              (NAdamW, {})])
def test_bfloat16_parameters_are_the_rule_rounded_once_a_step_and_their_states_float32(cls, options, path, path_of):
    path_of(path)
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


@both_paths
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_states_in_bfloat16_are_the_rules_to_one_place_at_every_step(dtype, path, path_of):
    path_of(path)
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


# The same bits

@pytest.mark.parametrize('options', [dict(clip_norm=1., ema=.9), dict(state='bf16')])
def test_results_are_the_same_to_the_bit_for_any_number_of_threads_and_any_chunk(options, parallel, monkeypatch):
    results = []
    for threads_, chunk in [(1, 1 << 15), (2, 1 << 15), (2, 1000), (2, 1001), (1, 1001), (2, 7)]:
        monkeypatch.setattr(table, 'CHUNK', chunk)
        torch.set_num_threads(threads_)
        ps = params((9001,), (33, 7), (5, 3, 3, 3), (1,), ())
        opt = run(AdamW(ps, lr=.1, **options), ps, 4)
        assert ('on 2 threads' if threads_ == 2 else 'serially, as torch has one thread') in opt.path
        results.append(everything(opt, ps))
    assert all(equal(results[0], r) for r in results[1:])


def test_eager_and_fused_steps_agree_to_rounding_for_many_odd_sizes(monkeypatch):
    shapes = [(n,) for n in (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1023, 4097)]
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-13)):
        ps, qs = params(*shapes, dtype=dtype), params(*shapes, dtype=dtype)
        run(AdamW(ps, lr=.01, wd=.1), ps, 5)
        with monkeypatch.context() as m:
            m.setattr(engine, 'eager_reason', lambda slot, program: 'a test wants it so')
            run(AdamW(qs, lr=.01, wd=.1), qs, 5)
        assert all(error(p.detach(), q.detach()) <= limit for p, q in zip(ps, qs, strict=True))


def test_a_moving_schedule_of_every_hyperparameter_compiles_nothing_after_the_first_step():
    ps = params((50,), (3, 3))
    opt, rng = AdamW(ps, lr=1., clip_norm=1., ema=.9), np.random.default_rng(0)
    run(opt, ps, 1)
    before, kernels = dict(kernel.compiled), kernel.kernel_of.cache_info().misses
    for _ in range(50):
        move(opt.param_groups[0], drawn(rng, AdamW))
        opt.clip_norm, opt.ema = rng.uniform(.1, 9), rng.uniform(.5, .99)
        run(opt, ps, 1)
    assert (dict(kernel.compiled), kernel.kernel_of.cache_info().misses) == (before, kernels)


def test_one_cycle_over_rate_and_betas_compiles_nothing_after_the_first_step():
    ps = params((50,))
    opt = Adam(ps, lr=.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(opt, .1, total_steps=20)
    run(opt, ps, 1)
    before, kernels, seen = dict(kernel.compiled), kernel.kernel_of.cache_info().misses, set()
    for _ in range(19):
        schedule.step()
        run(opt, ps, 1)
        seen.add((opt.param_groups[0]['lr'], opt.param_groups[0]['betas']))
    assert len(seen) == 19
    assert (dict(kernel.compiled), kernel.kernel_of.cache_info().misses) == (before, kernels)


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
def test_50_steps_equal_torchs_with_state_dicts_exchanged_both_ways_on_the_way(name, dtype):
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


# Stale memory

CHANGES = dict(
    data=lambda opt, p: setattr(p, 'data', p.data.clone()),
    gradient=lambda opt, p: setattr(p, 'grad', p.grad.clone()),
    state=lambda opt, p: opt.state[p].update(exp_avg=opt.state[p]['exp_avg'].clone()),
    state_data=lambda opt, p: setattr(opt.state[p]['exp_avg'], 'data', opt.state[p]['exp_avg'].data.clone()),
    state_dict=lambda opt, p: opt.load_state_dict(copy.deepcopy(opt.state_dict())),
    dicts=lambda opt, p: opt.state.update({p: dict(opt.state[p])}),
    groups=lambda opt, p: opt.param_groups.__setitem__(0, dict(opt.param_groups[0])),
    pickled=lambda opt, p: opt.__setstate__(opt.__getstate__()),
    path=lambda opt, p: opt.path)


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('which', [0, 1])
def test_tensors_that_move_between_steps_are_found_and_change_no_bit(change, which):
    ps, qs = params((40,), (4, 5)), params((40,), (4, 5))
    a, b, keep = AdamW(ps, lr=.1), AdamW(qs, lr=.1), []
    run(a, ps, 2), run(b, qs, 2)
    for _ in range(3):
        keep.append((ps[which].data, ps[which].grad, dict(a.state[ps[which]])))
        CHANGES[change](a, ps[which])
        run(a, ps, 1), run(b, qs, 1)
    assert equal(everything(a, ps), everything(b, qs))


def test_memory_that_was_left_behind_is_not_written_to():
    p, = params((40,))
    opt = run(AdamW([p], lr=.1), [p], 2)
    left, state = p.data, opt.state[p]['exp_avg']
    p.data, opt.state[p]['exp_avg'] = p.data.clone(), state.clone()
    before = left.clone(), state.clone()
    run(opt, [p], 1)
    assert torch.equal(left, before[0])
    assert torch.equal(state, before[1])


def test_a_parameter_or_state_put_in_anothers_place_is_the_one_that_is_stepped():
    p, q = params((4,), (4,))
    opt = run(Momentum([p], lr=.1), [p], 2)
    opt.param_groups[0]['params'][0] = q
    opt.state[q] = opt.state.pop(p)
    before, start = p.detach().clone(), q.detach().clone()
    run(opt, [q], 1)
    assert torch.equal(p, before)
    assert not torch.equal(q, start)
    fresh = dict(step=0, momentum_buffer=torch.zeros(4))
    opt.state[q] = fresh
    run(opt, [q], 1)
    assert opt.state[q] is fresh
    assert fresh['step'] == 1
    assert fresh['momentum_buffer'].abs().min() > 0


def test_groups_that_change_places_take_their_hyperparameters_along():
    p, q = params((4,), (4,))
    opt = run(SGD([dict(params=[p], lr=0.), dict(params=[q], lr=1.)], lr=.1), [p, q], 1)
    opt.param_groups.reverse()
    before, moved = p.detach().clone(), q.detach().clone()
    run(opt, [p, q], 1)
    assert torch.equal(p, before)
    assert not torch.equal(q, moved)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_a_model_of_another_dtype_between_steps_goes_on_from_its_states(dtype):
    model, twin = nn.Linear(6, 5), nn.Linear(6, 5)
    twin.load_state_dict(model.state_dict())
    a, b = AdamW(model.parameters(), lr=.01), AdamW(twin.parameters(), lr=.01)
    run(a, [*model.parameters()], 3), run(b, [*twin.parameters()], 3)
    model.to(dtype)
    run(a, [*model.parameters()], 3), run(b, [*twin.parameters()], 3)
    assert error(flat(model.parameters()), flat(twin.parameters())) <= (1e-5 if dtype is torch.float64 else .03)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert {s['step'] for s in a.state.values()} == {6}


def test_a_state_of_other_size_dtype_or_layout_is_never_run_over_by_a_kernel():
    p, = params((6, 4))
    transposed, double = torch.zeros(6, 4).t().contiguous().t(), torch.zeros(6, 4, dtype=torch.float64)
    for wrong in (transposed, double, torch.zeros(6, 8)[:, ::2]):
        opt = run(Momentum([p], lr=.1), [p], 1)
        opt.state[p]['momentum_buffer'].data = wrong
        run(opt, [p], 1)
        assert wrong.abs().min() > 0
    opt = run(Momentum([p], lr=.1), [p], 1)
    opt.state[p]['momentum_buffer'] = torch.zeros(3, 4)
    with pytest.raises(RuntimeError, match='size'): run(opt, [p], 1)


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


def test_autograd_notices_that_a_step_changed_a_parameter():
    p, = params((3,))
    loss = (p*p).sum()
    p.grad = torch.ones(3)
    SGD([p], lr=.1).step()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'): loss.backward()


def test_a_copy_or_a_pickle_of_an_optimizer_goes_on_to_the_same_bits():
    ps = params((5,), (4, 3))
    opt = run(AdamW(ps, lr=.1, ema=.9, clip_norm=1., state='bf16', seed=3), ps, 3)
    other = pickle.loads(pickle.dumps(opt))
    qs = other.param_groups[0]['params']
    run(opt, ps, 3, 9), run(other, qs, 3, 9)
    assert equal(everything(opt, ps), everything(other, qs))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_reloaded_optimizer_goes_on_to_the_same_bits(dtype):
    ps, kinds = params((5,), (4, 3), dtype=dtype), dict(lr=.1, ema=.9, state='bf16', rounding='stochastic', seed=3)
    opt = run(AdamW(ps, **kinds), ps, 3)
    saved, qs = copy.deepcopy(opt.state_dict()), [nn.Parameter(p.detach().clone()) for p in ps]
    other = AdamW(qs, **kinds)
    other.load_state_dict(saved)
    run(opt, ps, 3, 9), run(other, qs, 3, 9)
    assert equal(everything(opt, ps), everything(other, qs))


# Processes and threads

def test_a_forked_child_steps_to_the_same_bits_as_its_parent(parallel):
    ps, qs = params((3000,)), params((3000,))
    (opt, twin), p = [run(AdamW(x, lr=.1, clip_norm=1.), x, 2) for x in (ps, qs)], ps[0]
    torch.set_num_threads(1)
    twin.step()
    torch.set_num_threads(2)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            opt.step()
            code = 0 if torch.equal(p, qs[0]) and 'this is a forked process' in opt.path else 3
        finally: os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    opt.step()
    assert torch.equal(p, qs[0])


def test_threads_stepping_optimizers_of_their_own_get_the_bits_of_one_thread(parallel):
    def fresh(i):
        ps = params((3000,), (50, 2), seed=i)
        return AdamW(ps, lr=.1, clip_norm=1.), ps
    alone, together = [fresh(i) for i in range(4)], [fresh(i) for i in range(4)]
    for i, (opt, ps) in enumerate(alone): run(opt, ps, 20, i)
    workers = [threading.Thread(target=run, args=(opt, ps, 20, i)) for i, (opt, ps) in enumerate(together)]
    for w in workers: w.start()
    for w in workers: w.join()
    assert all(equal(everything(*a), everything(*b)) for a, b in zip(alone, together, strict=True))


def test_without_a_safe_threading_layer_steps_run_serially_to_the_same_bits(parallel, monkeypatch):
    ps, qs = params((3000,)), params((3000,))
    run(AdamW(ps, lr=.1), ps, 3)
    monkeypatch.setattr(threads, '_layer_reason', lambda: 'there is no OpenMP')
    opt = run(AdamW(qs, lr=.1), qs, 3)
    assert torch.equal(ps[0], qs[0])
    assert opt.path.endswith('serially, as there is no OpenMP')


# Which path, and why

def test_the_path_says_what_runs_where_and_why(monkeypatch):
    p, = params((8, 3))
    opt = SGD([p], lr=.1)
    assert opt.path == 'no parameter has a gradient'
    run(opt, [p], 1)
    assert opt.path == 'fused: 1 parameter(s) of 24 elements in float32, serially, as the model is small'
    cases = [(params((3,), dtype=torch.float16)[0], 'no kernel for torch.float16'),
             (nn.Parameter(torch.randn(4, 6)[:, ::2]), 'its layout has gaps or overlaps'),
             (nn.Parameter(torch.randn(3, 1).expand(3, 2)), 'its layout has gaps or overlaps'),
             (nn.Parameter(torch.empty(3, device='meta')), 'no kernel for meta')]
    for q, why in cases:
        q.grad = torch.zeros_like(q)
        assert SGD([q], lr=.1).path == f'eager: 1 parameter(s), as {why}'
    q, = params((4, 6))
    q.grad = torch.randn(6, 4).t()
    assert SGD([q], lr=.1).path.endswith('its gradient or state has another layout or dtype')
    both = run(SGD([p, cases[0][0]], lr=.1), [p, cases[0][0]], 1).path.splitlines()
    assert [x.split(':')[0] for x in both] == ['fused', 'eager']
    monkeypatch.setattr(engine, 'missing_numba', lambda: 'Numba is not installed')
    assert run(SGD([p], lr=.2), [p], 1).path.endswith('as Numba is not installed')


def test_a_rule_without_symbols_runs_eagerly_and_says_why():
    def clamped(p, g, *, lr): return p - lr*g.clamp(-1, 1)
    p, = params((5,))
    p.grad = torch.tensor([-3., -.5, 0., .5, 3.])
    want, opt = p.detach() - .1*p.grad.clamp(-1, 1), optimizer(clamped)([p], lr=.1)
    opt.step()
    assert torch.allclose(p, want)
    assert opt.path == "eager: 1 parameter(s), as clamped cannot be traced: 'Symbol' object has no attribute 'clamp'"


def test_a_transposed_parameter_is_stepped_in_place_by_the_kernel():
    p, q = nn.Parameter(torch.randn(6, 4).t()), None
    q = nn.Parameter(p.detach().contiguous())
    p.grad = torch.randn(6, 4).t()
    q.grad = p.grad.contiguous()
    a, b, where = AdamW([p], lr=.1), AdamW([q], lr=.1), p.data_ptr()
    for _ in range(3): a.step(), b.step()
    assert torch.equal(p, q)
    assert (p.data_ptr(), p.stride()) == (where, (1, 4))
    assert a.path.startswith('fused')


# Gradients that change what they are between steps

CHANGED = dict(
    shrunk=lambda p: setattr(p.grad, 'data', torch.ones(2, 4)),
    negated=lambda p: setattr(p, 'grad', torch._neg_view(torch.ones(1000, 4))),
    sparse=lambda p: setattr(p, 'grad', torch.ones_like(p).to_sparse()))


def test_a_gradient_with_the_negative_bit_keeps_its_sign():
    p, = params((1000, 4))
    opt = SGD([p], lr=1.)
    p.grad = torch.ones_like(p)
    opt.step()
    before = p.detach().clone()
    CHANGED['negated'](p)
    opt.step()
    assert torch.equal(p.detach(), before + 1)
    assert 'eager' in opt.path


def test_a_gradient_that_shrinks_is_not_read_beyond_its_end():
    p, = params((1000, 4))
    opt = SGD([p], lr=1.)
    p.grad = torch.ones_like(p)
    opt.step()
    before = p.detach().clone()
    CHANGED['shrunk'](p)
    with pytest.raises(RuntimeError): opt.step()
    assert torch.equal(p.detach(), before)


def test_the_path_follows_the_gradient_at_hand_not_the_first_one():
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
    CHANGED['sparse'](p)
    with pytest.raises(TypeError, match='sparse gradient'): opt.step()


def test_a_step_that_fails_for_its_hyperparameters_changes_nothing_on_either_path():
    def rule(p, g, avg, *, lr, k=1.): return p - lr/k*g, avg + g
    a, b = params((4,)), params((4,), dtype=torch.float16)
    opt = optimizer(rule)([dict(params=a), dict(params=b, k=0.)], lr=.1)
    for p in (*a, *b): p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in (*a, *b)]
    with pytest.raises(ZeroDivisionError): opt.step()
    assert same([p.detach() for p in (*a, *b)], before)
    assert [opt.state[p]['step'] for p in (*a, *b)] == [0, 0]


def test_a_first_step_that_fails_leaves_the_start_to_the_next():
    p, q = params((4,)), params((4,))
    a, b = RMSProp(p, lr=.1), RMSProp(q, lr=.1)
    p[0].grad = torch.full((4,), 5.)
    a.param_groups[0]['eps'] = None
    with pytest.raises(TypeError): a.step()
    a.param_groups[0]['eps'] = 1e-5
    p[0].grad, q[0].grad = torch.ones(4), torch.ones(4)
    a.step(), b.step()
    assert torch.equal(p[0], q[0])


def test_a_child_forked_during_another_threads_first_step_steps_too():
    code = """
import os, sys, threading, time, torch
from torch import nn
from miniai.optim import AdamW
def made():
    p = nn.Parameter(torch.ones(70_000))
    p.grad = torch.ones_like(p)
    return AdamW([p], lr=.1)
torch.set_num_threads(2)
first, second = made(), made()
thread = threading.Thread(target=first.step)
thread.start()
time.sleep(float(sys.argv[1]))
pid = os.fork()
if pid == 0:
    torch.set_num_threads(1)  # torch's own threads do not survive a fork
    second.step()
    os._exit(7)
for _ in range(600):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done: break
    time.sleep(.1)
else: os.kill(pid, 9); sys.exit('the child hangs')
thread.join()
sys.exit(os.waitstatus_to_exitcode(status) != 7)
"""
    for delay in ('.1', '.3'):
        args = [sys.executable, '-W', 'ignore', '-c', code, delay]
        out = subprocess.run(args, capture_output=True, text=True, timeout=120)
        assert out.returncode == 0, out.stderr
