"What stands around a rule: skipped steps, clipping, weight averages, rounding at random; and traces, piece by piece."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine import equal, everything, params, run
from torch import nn

from miniai.kernels import threads
from miniai.optim import SGD, AdamW, Momentum, NAdamW, engine, optimizer, sqrt, table, where
from miniai.optim.rounding import dithered
from oracle import error

both_paths = pytest.mark.parametrize('path', ['fused', 'eager'])


@pytest.fixture
def path_of(monkeypatch):
    def choose(path):
        if path == 'eager': monkeypatch.setattr(engine, 'eager_reason', lambda slot, program: 'a test wants it so')
    return choose


# Steps that are skipped

@both_paths
@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_a_step_whose_gradients_are_not_finite_changes_nothing_and_is_counted(path, bad, dtype, path_of):
    path_of(path)
    ps = params((5000,), (3,), dtype=dtype)
    opt = run(AdamW(ps, lr=.1, skip_nonfinite=True, ema=.9), ps, 2)
    before = everything(opt, ps)
    for k in (4999, 0):
        ps[0].grad[k] = bad
        opt.step()
    assert equal(everything(opt, ps), before)
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
    assert equal(everything(opt, ps), everything(other, qs))


@both_paths
def test_a_gradscaler_unscales_and_its_found_inf_skips_the_step(path, path_of):
    path_of(path)
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
    assert equal(everything(opt, ps), before)
    assert (scaler.get_scale(), opt.skipped) == (512., 1)


# Clipping

@both_paths
@pytest.mark.parametrize('limit', [.1, 3., 1e9])
def test_clipping_by_norm_is_torchs_clip_grad_norm_and_a_step(path, limit, path_of):
    path_of(path)
    shapes = [(5000,), (3, 4), (), (0,)]
    ps, qs = params(*shapes), params(*shapes)
    a, b = AdamW(ps, lr=.01, wd=.1, clip_norm=limit), torch.optim.AdamW(qs, lr=.01, weight_decay=.1)
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        for p, q in zip(ps, qs, strict=True): p.grad, q.grad = (x := torch.randn(p.shape, generator=g)), x.clone()
        nn.utils.clip_grad_norm_(qs, limit)
        a.step(), b.step()
    assert all(error(p.detach(), q.detach()) <= 1e-5 for p, q in zip(ps, qs, strict=True) if p.numel())


def test_clipping_by_norm_of_gradients_that_are_not_finite_shows_as_it_does_with_torch():
    ps, qs = params((4,), (3,)), params((4,), (3,))
    for bad in (math.nan, math.inf):
        a, b = SGD(ps, lr=.1, clip_norm=1.), torch.optim.SGD(qs, lr=.1)
        for p, q in zip(ps, qs, strict=True): p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        ps[0].grad[0] = qs[0].grad[0] = bad
        nn.utils.clip_grad_norm_(qs, 1.)
        a.step(), b.step()
        assert all(torch.allclose(p, q, equal_nan=True) for p, q in zip(ps, qs, strict=True))


@both_paths
def test_clipping_by_value_is_torchs_clip_grad_value_and_a_step(path, path_of):
    path_of(path)
    ps, qs = params((500,)), params((500,))
    a, b = Momentum(ps, lr=.01, clip_value=.5), Momentum(qs, lr=.01)
    g = torch.Generator().manual_seed(0)
    for _ in range(10):
        ps[0].grad = torch.randn(500, generator=g)
        qs[0].grad = ps[0].grad.clone()
        nn.utils.clip_grad_value_(qs, .5)
        a.step(), b.step()
    assert error(ps[0].detach(), qs[0].detach()) <= 1e-6


# Cautious steps, weight averages

@both_paths
def test_a_cautious_step_moves_only_where_it_goes_against_the_gradient(path, path_of):
    path_of(path)
    p = nn.Parameter(torch.zeros(3))
    opt = Momentum([p], lr=1., mom=.5, cautious=True)
    p.grad = torch.tensor([1., 1., 1.])
    opt.step()
    p.grad = torch.tensor([1., -.1, 0.])
    opt.step()
    assert p.tolist() == [-1.25, -.5, -.5]
    assert opt.state[p]['momentum_buffer'].tolist() == pytest.approx([.75, .2, .25])


@both_paths
def test_the_weight_average_is_torchs_averaged_model_begun_at_the_first_weights(path, path_of):
    path_of(path)
    model = nn.Linear(7, 5)
    opt = AdamW(model.parameters(), lr=.1, ema=.9)
    avg = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(.9))
    avg.update_parameters(model)
    for seed in range(20):
        run(opt, [*model.parameters()], 1, seed)
        avg.update_parameters(model)
    want, before = [*avg.module.parameters()], everything(opt, [*model.parameters()])
    with opt.averaged(): assert all(error(p.detach(), w.detach()) <= 1e-6
                                    for p, w in zip(model.parameters(), want, strict=True))
    assert equal(everything(opt, [*model.parameters()]), before)


def test_a_swap_and_a_swap_back_lose_no_bit_of_a_float32_average_of_bfloat16_weights():
    ps = params((50,), dtype=torch.bfloat16)
    opt = run(AdamW(ps, lr=.1, ema=.9), ps, 5)
    before = everything(opt, ps)
    with opt.averaged(): assert torch.equal(ps[0], before[1][0]['ema'].bfloat16())
    assert equal(everything(opt, ps), before)
    with pytest.raises(ZeroDivisionError), opt.averaged(): 1/0  # noqa: B018
    assert equal(everything(opt, ps), before)


def test_without_an_average_there_is_nothing_to_swap_in():
    with pytest.raises(ValueError, match=r'ema=0\.999'), AdamW(params((2,))).averaged(): pass


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_an_average_keeps_its_precision_through_a_state_dict_beside_states_in_bfloat16(dtype):
    ps = params((50,), dtype=dtype)
    opt = run(AdamW(ps, lr=.1, ema=.9, state='bf16'), ps, 5)
    saved, other = opt.state_dict(), AdamW(ps, lr=.1, ema=.9, state='bf16')
    other.load_state_dict(saved)
    assert other.state[ps[0]]['ema'].dtype == torch.float32
    assert other.state[ps[0]]['exp_avg'].dtype == torch.bfloat16
    assert torch.equal(other.state[ps[0]]['ema'], opt.state[ps[0]]['ema'])


# Rounding at random

@both_paths
def test_stochastic_rounding_of_parameters_is_unbiased(path, path_of):
    path_of(path)
    n, x = 40_000, 1 + 2**-7*.3
    p = nn.Parameter(torch.ones(n, dtype=torch.bfloat16))
    p.grad = torch.full_like(p, -1.)
    SGD([p], lr=2**-7*.3, rounding='stochastic', seed=1).step()
    assert set(p.tolist()) == {1., 1 + 2**-7}
    assert abs(p.float().mean().item() - x) < 5*2**-7*math.sqrt(.3*.7/n)


def test_rounding_to_nearest_loses_what_stochastic_rounding_keeps():
    ends = {}
    for rounding in ('nearest', 'stochastic'):
        p = nn.Parameter(torch.ones(2000, dtype=torch.bfloat16))
        opt = SGD([p], lr=2**-12, rounding=rounding)
        for _ in range(256):
            p.grad = torch.full_like(p, -1.)
            opt.step()
        ends[rounding] = p.float().mean().item()
    assert ends['nearest'] == 1.
    assert ends['stochastic'] == pytest.approx(1 + 256*2**-12, abs=2e-3)


@pytest.mark.parametrize('options', [dict(rounding='stochastic'), dict(state='bf16', rounding='stochastic')])
def test_kernel_and_eager_path_round_by_the_same_dice_in_every_layout(options, monkeypatch):
    def both():
        x = torch.randn(20, 6, 5, 7, generator=torch.Generator().manual_seed(5)).bfloat16()
        ps = [nn.Parameter(x.clone().to(memory_format=torch.channels_last)), nn.Parameter(x.clone()[0, 0])]
        opt, g = AdamW(ps, lr=.1, seed=3, **options), torch.Generator().manual_seed(1)
        for p in ps: p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=g))
        opt.step()
        return opt, everything(opt, ps)
    fused, eager = both(), None
    monkeypatch.setattr(engine, 'eager_reason', lambda slot, program: 'a test wants it so')
    eager = both()
    assert ('fused' in fused[0].path, 'eager' in eager[0].path) == (True, False) or 'eager' in eager[0].path
    tensors = [[*ps, *(x for s in ss for x in s.values() if torch.is_tensor(x))] for _, (ps, ss) in (fused, eager)]
    for a, b in zip(*tensors, strict=True):  # contraction changes the last of 16 random bits now and then
        assert (a != b).double().mean() < 2e-3
        assert (a.float() - b.float()).abs().max() <= .01*b.float().abs().max()


def test_seeds_steps_and_places_draw_different_dice():
    p = torch.full((1000,), 1.001)
    draws = [dithered(p, k) for k in range(4)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert torch.equal(dithered(torch.tensor([math.nan, math.inf, -math.inf, 0., -0.]), 7).isnan(),
                       torch.tensor([True, False, False, False, False]))


# Options that cannot be meant

@pytest.mark.parametrize(('wrong', 'says'), [
    (dict(clip_norm=0.), 'clip_norm must be above 0'), (dict(clip_norm=-1.), 'clip_norm'),
    (dict(clip_value=0.), 'clip_value'),
    (dict(clip_norm=math.nan), 'clip_norm'), (dict(ema=1.), 'ema must be in'), (dict(ema=-.1), 'ema'),
    (dict(state='fp8'), "state must be 'bf16' or None"),
    (dict(rounding='up'), "rounding must be 'nearest' or 'stochastic'")])
def test_an_option_that_cannot_be_meant_is_refused_by_name(wrong, says):
    with pytest.raises(ValueError, match=says): AdamW(params((2,)), **wrong)


def test_a_state_dict_of_another_shape_or_dtype_is_refused_and_changes_nothing():
    ps = params((4,))
    opt = run(Momentum(ps, lr=.1), ps, 2)
    before = everything(opt, ps)
    for wrong, says in ((torch.zeros(5), 'shape'), (torch.zeros(4, dtype=torch.int64), 'dtype'),
                        (torch.zeros(4, dtype=torch.complex64), 'dtype'), (None, 'no')):
        saved = opt.state_dict()
        saved['state'] = {0: dict(saved['state'][0], momentum_buffer=wrong)}
        with pytest.raises(ValueError, match=says): opt.load_state_dict(saved)
        assert equal(everything(opt, ps), before)


# Traces

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


@both_paths
def test_equality_negative_bases_infinities_and_numpys_constants_mean_what_they_say(path, path_of):
    path_of(path)
    p = nn.Parameter(torch.tensor([1., 2.], dtype=torch.float64))
    opt, want, states = optimizer(odd)([p], lr=.5), [1., 2.], [0., 0.]
    for t in (1, 2, 3):
        p.grad = torch.tensor([0., 3.], dtype=torch.float64)
        opt.step()
        for i, g in enumerate((0., 3.)): want[i], states[i] = odd(want[i], g, states[i], t=t, lr=.5)
    assert p.tolist() == pytest.approx(want, rel=1e-14)
    assert opt.state[p]['s'].tolist() == states
    assert opt.path.startswith(path)


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


@pytest.mark.parametrize('rule', [lambda p, g, *, lr: p if g > 0 else g, lambda p, g, *, lr: p if g == 0 else g,
                                  lambda p, g, *, lr: p if g > 0 and p > 0 else g])
def test_a_branch_on_an_element_is_refused_when_the_class_is_made(rule):
    with pytest.raises(TypeError, match='where'): optimizer(rule, 'Bad')


# Any list of tensors

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
    assert equal(everything(one, ps), everything(many, qs))


# Cautious steps, rescaled by the mask's mean

def rescaled_momentum(p, grads, lr, mom, wd):
    "In double precision, after Liang et al. 2024 and the authors' own code: one parameter, whole."
    p, avg = p.astype(np.float64), 0.
    for g in grads.astype(np.float64):
        p, avg = p*(1 - lr*wd), mom*avg + (1 - mom)*g
        mask = (avg*g > 0).astype(np.float64)
        p = p - lr*avg*mask/max(mask.mean() if mask.size else 1., 1e-3)
    return p


@both_paths
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_a_rescaled_cautious_step_is_divided_by_its_own_parameters_share(path, path_of, dtype):
    path_of(path)
    shapes, rng = [(5000,), (3, 7), (1,), (0,), ()], np.random.default_rng(0)
    ps = [nn.Parameter(torch.tensor(rng.normal(size=s), dtype=dtype)) for s in shapes]
    grads = [torch.tensor(rng.normal(size=(30, *s)), dtype=dtype) for s in shapes]
    want = [rescaled_momentum(p.detach().numpy(), g.numpy(), .01, .7, .1) for p, g in zip(ps, grads, strict=True)]
    opt = Momentum(ps, lr=.01, mom=.7, wd=.1, cautious='rescaled')
    for t in range(30):
        for p, g in zip(ps, grads, strict=True): p.grad = g[t].clone()
        opt.step()
    worst = max(error(p.detach(), w) for p, w in zip(ps, want, strict=True) if p.numel())
    assert worst <= (1e-12 if dtype is torch.float64 else 1e-5)
    assert path in opt.path


@both_paths
def test_one_step_in_ten_thousand_is_lengthened_a_thousandfold_and_the_others_are_not_taken(path, path_of):
    path_of(path)
    p = nn.Parameter(torch.zeros(10_000, dtype=torch.float64))
    opt = Momentum([p], lr=1., mom=.5, cautious='rescaled')
    p.grad = torch.ones_like(p)
    opt.step()
    before = p.detach().clone()
    p.grad = torch.full_like(p, -.1)
    p.grad[7] = 1.
    opt.step()
    moved = before - p.detach()
    assert moved[7].item() == pytest.approx(.75*1000)
    assert moved.count_nonzero() == 1


@pytest.mark.parametrize('options', [{}, dict(ema=.9, clip_norm=1., decoupled=False), dict(state='bf16')])
def test_rescaled_steps_have_the_same_bits_for_any_threads_and_chunks_and_the_eager_paths_values(options, monkeypatch):
    def stepped(eager=False, workers=1, chunk=None):
        with monkeypatch.context() as m:
            if eager: m.setattr(engine, 'eager_reason', lambda slot, program: 'a test wants it so')
            if chunk: m.setattr(table, 'CHUNK', chunk)
            m.setattr(threads, 'WORTH_IT', 0)
            before = torch.get_num_threads()
            torch.set_num_threads(workers)
            ps = params((9001,), (33, 3), (0,), dtype=torch.float64)
            opt = run(NAdamW(ps, lr=.01, cautious='rescaled', **options), ps, 8)
            torch.set_num_threads(before)
        return everything(opt, ps)
    first = stepped()
    for other in (stepped(workers=2), stepped(chunk=100), stepped(chunk=5000, workers=2)): assert equal(first, other)
    if 'state' in options: return  # a last bit decides how bfloat16 is rounded
    (ps, _), (qs, _) = first, stepped(eager=True)
    assert all(error(q, p) <= 1e-12 for p, q in zip(ps, qs, strict=True) if p.numel())


def test_cautious_is_a_choice_of_three():
    for good in (True, False, 'rescaled'): AdamW(params((2,)), cautious=good)
    with pytest.raises(ValueError, match="cautious must be True, False or 'rescaled', got 'scaled'"):
        AdamW(params((2,)), cautious='scaled')


def test_averages_are_swapped_in_for_parameters_that_have_stepped_alone():
    p, = params((3,))
    opt = AdamW([p], lr=.1, ema=.9, skip_nonfinite=True)
    before = p.detach().clone()
    p.grad = torch.full((3,), math.inf)
    opt.step()
    with opt.averaged(): assert torch.equal(p.detach(), before)
    assert opt.skipped == 1


@both_paths
def test_a_cautious_step_sees_signs_of_products_too_small_for_float32(path, path_of):
    path_of(path)
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1e-24, -1e-24, 0.])
    SGD([p], lr=1e-3, cautious=True).step()
    assert p.detach().sign().tolist() == [-1., 1., 0.]
