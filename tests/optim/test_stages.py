"Stages around a rule: clipping, decay, Nesterov's momentum, cautious and rescaled steps, kept norms, weight averages."
import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

from miniai.kernels import fused, numba
from miniai.optim import MARS, SGD, AdamW, HeavyBall, Lion, Momentum, Muon, NAdamW, RMSProp, optimizer
from opts import everything, force_eager, params, run, same
from oracle import error, errors


@pytest.mark.parametrize(('rule', 'says'), [
    (lambda p, g, avg, *, lr: p, r"1 state\(s\) \['avg'\], got 1 value\(s\)"),
    (lambda p, g, *, lr: (p, g), r"0 state\(s\) \[\], got 2 value\(s\)"),
    (lambda p, g, a, b, *, lr: (p, a), r"2 state\(s\) \['a', 'b'\], got 2 value\(s\)"),
])
def test_a_rule_that_returns_too_few_or_too_many_values_is_an_error(rule, says):
    p, = params((2,))
    before = p.detach().clone()
    with pytest.raises(TypeError, match='must return the new parameter and its ' + says): optimizer(rule)([p], lr=.1)
    assert torch.equal(p, before)


def test_clipping_by_value_is_torchs_clip_grad_value_and_a_step(path):
    ps, qs = params((500,)), params((500,))
    a, b = Momentum(ps, lr=.01, clip_value=.5), Momentum(qs, lr=.01)
    g = torch.Generator().manual_seed(0)
    for _ in range(10):
        ps[0].grad = torch.randn(500, generator=g)
        qs[0].grad = ps[0].grad.clone()
        nn.utils.clip_grad_value_(qs, .5)
        a.step(), b.step()
    assert error(ps[0].detach(), qs[0].detach()) <= 1e-6


# Weight averages

@pytest.mark.parametrize('decay', [.3, .6, .999])
def test_the_weight_average_is_torchs_averaged_model_with_a_warm_up(path, decay):
    model = nn.Linear(7, 5)
    opt = AdamW(model.parameters(), lr=.1, ema=decay)
    def warm(avg, p, t): return avg.lerp(p, 1 - min(decay, (1 + float(t))/(10 + float(t))))
    avg = torch.optim.swa_utils.AveragedModel(model, avg_fn=warm)
    avg.update_parameters(model)
    for seed in range(20):
        run(opt, [*model.parameters()], 1, seed)
        avg.update_parameters(model)
    want, before = [*avg.module.parameters()], everything(opt, [*model.parameters()])
    with opt.averaged(): assert all(error(p.detach(), w.detach()) <= 1e-6
                                    for p, w in zip(model.parameters(), want, strict=True))
    assert same(everything(opt, [*model.parameters()]), before)


def test_swapping_averages_in_and_out_of_bfloat16_weights_loses_no_bit_of_either():
    ps = params((50,), dtype=torch.bfloat16)
    opt = run(AdamW(ps, lr=.1, ema=.9), ps, 5)
    before = everything(opt, ps)
    with opt.averaged(): assert torch.equal(ps[0], before[1][0]['ema'].bfloat16())
    assert same(everything(opt, ps), before)
    with pytest.raises(ZeroDivisionError), opt.averaged(): 1/0  # noqa: B018
    assert same(everything(opt, ps), before)


def test_averaged_without_averages_is_an_error():
    with pytest.raises(ValueError, match=r'ema=0\.999'), AdamW(params((2,))).averaged(): pass


def test_only_parameters_that_have_stepped_are_replaced_by_their_averages():
    p, = params((3,))
    opt = AdamW([p], lr=.1, ema=.9, skip_nonfinite=True)
    before = p.detach().clone()
    p.grad = torch.full((3,), math.inf)
    opt.step()
    with opt.averaged(): assert torch.equal(p.detach(), before)
    assert opt.skipped == 1


# Cautious steps

def test_a_cautious_step_moves_only_where_it_goes_against_the_gradient(path):
    p = nn.Parameter(torch.zeros(3))
    opt = Momentum([p], lr=1., mom=.5, cautious=True)
    p.grad = torch.tensor([1., 1., 1.])
    opt.step()
    p.grad = torch.tensor([1., -.1, 0.])
    opt.step()
    assert p.tolist() == [-1.25, -.5, -.5]
    assert opt.state[p]['momentum_buffer'].tolist() == pytest.approx([.75, .2, .25])


def test_a_cautious_step_sees_signs_of_products_too_small_for_float32(path):
    p = nn.Parameter(torch.zeros(3))
    p.grad = torch.tensor([1e-24, -1e-24, 0.])
    SGD([p], lr=1e-3, cautious=True).step()
    assert p.detach().sign().tolist() == [-1., 1., 0.]


def rescaled_momentum(p, grads, lr, mom, wd):
    "In double precision, after Liang et al. 2024 and the authors' own code: one parameter, whole."
    p, avg = p.astype(np.float64), 0.
    for g in grads.astype(np.float64):
        p, avg = p*(1 - lr*wd), mom*avg + (1 - mom)*g
        mask = (avg*g > 0).astype(np.float64)
        p = p - lr*avg*mask/max(mask.mean() if mask.size else 1., 1e-3)
    return p


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_a_rescaled_cautious_step_is_divided_by_its_own_parameters_share(path, dtype):
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


def test_a_rescaled_step_becomes_at_most_a_thousand_times_longer(path):
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
def test_rescaled_steps_have_the_same_bits_for_any_threads_and_chunks_and_the_eager_values(options, monkeypatch):
    def stepped(eager=False, workers=1, chunk=None):
        with monkeypatch.context() as m:
            if eager: force_eager(m)
            if chunk: m.setattr(fused, 'CHUNK', chunk)
            m.setattr(numba, 'WORTH_IT', 0)
            before = torch.get_num_threads()
            torch.set_num_threads(workers)
            ps = params((9001,), (33, 3), (0,), dtype=torch.float64)
            opt = run(NAdamW(ps, lr=.01, cautious='rescaled', **options), ps, 8)
            torch.set_num_threads(before)
        return everything(opt, ps)
    first = stepped()
    for other in (stepped(workers=2), stepped(chunk=100), stepped(chunk=5000, workers=2)): assert same(first, other)
    if 'state' in options: return  # a last bit decides how bfloat16 is rounded
    (ps, _), (qs, _) = first, stepped(eager=True)
    assert all(error(q, p) <= 1e-12 for p, q in zip(ps, qs, strict=True) if p.numel())


# Cautious decay

def test_decay_is_cautious_where_the_step_leads_away_from_zero(path):
    p = nn.Parameter(torch.tensor([2., 2., 2., -2., -2., 0.]))
    p.grad = torch.tensor([1., -1., 0., 1., -1., 1.])
    SGD([p], lr=.5, wd=.5, cautious_decay=True).step()
    assert p.tolist() == [2 - .5 - .5, 2 + .5, 2 - .5, -2 - .5, -2 + .5 + .5, -.5]


def test_cautious_decay_is_chens_equation_for_adamw(path):
    rng, p = np.random.default_rng(0), nn.Parameter(torch.ones(300, dtype=torch.float64))
    x, m, v = np.ones(300), 0., 0.
    opt = AdamW([p], lr=.1, wd=.3, cautious_decay=True)
    for t in range(1, 40):
        g = rng.normal(size=300)
        m, v = .9*m + .1*g, .999*v + .001*g*g
        u = m/(1 - .9**t)/(np.sqrt(v/(1 - .999**t)) + 1e-8)
        x = x - .1*(u + .3*(u*x >= 0)*x)
        p.grad = torch.tensor(g)
        opt.step()
    assert error(p.detach(), x) < 1e-12


# Nesterov's momentum

@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_with_nesterov_heavy_ball_is_torchs_sgd_with_nesterov(path, dtype):
    (p,), (q,) = params((40,), dtype=dtype), params((40,), dtype=dtype)
    run(HeavyBall([p], lr=.01, mom=.8, nesterov=True), [p], 30)
    run(torch.optim.SGD([q], lr=.01, momentum=.8, nesterov=True), [q], 30)
    assert error(p.detach(), q.detach()) < (1e-6 if dtype is torch.float32 else 1e-14)


def test_with_nesterov_adamw_is_nadam_without_its_warm_up(path):
    rng, p = np.random.default_rng(0), nn.Parameter(torch.ones(50, dtype=torch.float64))
    x, m, v = np.ones(50), 0., 0.
    opt = AdamW([p], lr=.1, wd=0., nesterov=True)
    for t in range(1, 40):
        g = rng.normal(size=50)
        m, v = .9*m + .1*g, .999*v + .001*g*g
        x = x - .1*(.9*m + .1*g)/(1 - .9**t)/(np.sqrt(v/(1 - .999**t)) + 1e-8)
        p.grad = torch.tensor(g)
        opt.step()
    assert error(p.detach(), x) < 1e-12


@pytest.mark.parametrize('cls', [Momentum, NAdamW, Lion])
def test_nesterov_applies_an_average_once_more_and_no_other_state(path, cls):
    worst, _ = errors(cls, dict(nesterov=True, clip_norm=2., cautious=True), torch.float64, steps=20)
    assert worst < 1e-12


@pytest.mark.parametrize('cls', [SGD, RMSProp])
def test_nesterov_for_a_rule_without_an_average_of_gradients_is_an_error(cls):
    with pytest.raises(ValueError, match=f'{cls.__name__.lower()} has no state named avg or buf: create it without'):
        cls(params((2,)), lr=.1, nesterov=True)


# Tail averages

@pytest.mark.parametrize('start', [1, 4, 30])
def test_a_tail_average_is_the_mean_of_the_weights_from_that_step_on(path, start):
    model, seen = nn.Linear(7, 5), []
    opt = AdamW(model.parameters(), lr=.1, tail=start)
    for seed in range(12):
        run(opt, [*model.parameters()], 1, seed)
        seen.append([p.detach().double().clone() for p in model.parameters()])
    want = [torch.stack(xs).mean(0) for xs in zip(*seen[min(start, 12) - 1:], strict=True)]
    with opt.averaged(): assert all(error(p.detach(), w) <= 1e-6
                                    for p, w in zip(model.parameters(), want, strict=True))
    assert all(torch.equal(p.double(), w) for p, w in zip(model.parameters(), seen[-1], strict=True))


# Hyperball

def hyperball(xs, grads, lr, wd):
    "AdamW on a sphere, after Wen et al. 2026: parameters and their updates, decay included, have fixed norms."
    out = []
    for x, gs in zip(xs, grads, strict=True):
        m, v, radius = 0., 0., np.linalg.norm(x)
        for t, g in enumerate(gs, 1):
            m, v = .9*m + .1*g, .999*v + .001*g*g
            u = m/(1 - .9**t)/(np.sqrt(v/(1 - .999**t)) + 1e-8)
            decayed = x*(1 - lr*wd)
            if x.ndim < 2 or not radius:
                x = decayed - lr*u
                continue
            u = u + wd*x
            x = x - lr*radius*u/np.linalg.norm(u)
            x = radius*x/np.linalg.norm(x)
        out.append(x)
    return out


def test_on_the_hyperball_matrices_and_their_steps_have_fixed_norms_and_vectors_and_zeros_are_free(path):
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=s) for s in ((7, 5), (4, 2, 3, 3), (6,), (1, 1))] + [np.zeros((3, 3))]
    grads = [rng.normal(size=(25, *x.shape)) for x in xs]
    ps = [nn.Parameter(torch.tensor(x)) for x in xs]
    opt = AdamW(ps, lr=.05, wd=.1, hyperball=True)
    for t in range(25):
        for p, g in zip(ps, grads, strict=True): p.grad = torch.tensor(g[t])
        opt.step()
    for p, w in zip(ps, hyperball(xs, grads, .05, .1), strict=True): assert error(p.detach(), w) < 1e-12
    assert float(ps[0].detach().norm()) == pytest.approx(np.linalg.norm(xs[0]), rel=1e-14)
    assert opt.path.startswith(path)


def test_a_matrix_rule_on_the_hyperball_steps_by_the_rate_times_the_norm():
    p, = params((6, 4), dtype=torch.float64)
    radius = float(p.detach().norm())
    opt = Muon([p], lr=.1, wd=0., hyperball=True)
    for seed in range(5):
        before = p.detach().clone()
        run(opt, [p], 1, seed)
        cosine = float((before*p.detach()).sum())/radius**2
        assert float(p.detach().norm()) == pytest.approx(radius, rel=1e-14)
        assert abs(math.tan(math.acos(cosine))) <= .1*1.01  # a step of a tenth of the norm, and back to the sphere


# All of them

MANY = [dict(tail=3, cautious_decay=True, nesterov=True, clip_norm=1., cautious='rescaled', state='bf16'),
        dict(hyperball=True, nesterov=True, ema=.9, cautious='rescaled', clip_value=.5),
        dict(hyperball=True, tail=2, cautious_decay=True, cautious=True, decoupled=True)]


@pytest.mark.parametrize('options', MANY)
@pytest.mark.parametrize('cls', [NAdamW, MARS, Muon])
def test_stages_together_resume_to_the_bit(path, cls, options):
    def made():
        ps = params((5, 4), (3,), (6, 2))
        return ps, cls(ps, lr=.01, wd=.1, **options)
    (ps, a), (qs, b) = made(), made()
    run(a, ps, 4)
    for p, q in zip(ps, qs, strict=True): q.data.copy_(p.data)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    run(a, ps, 4, 7), run(b, qs, 4, 7)
    assert same(everything(a, ps), everything(b, qs))
    assert all(torch.isfinite(p).all() for p in ps)


def test_a_state_dict_without_a_stages_state_is_an_error():
    for options, missing in ((dict(tail=2), 'tail'), (dict(hyperball=True), 'radius')):
        ps = params((2, 2))
        plain = run(AdamW(ps), ps, 1)
        with pytest.raises(ValueError, match=f"'{missing}'"):
            AdamW(ps, **options).load_state_dict(plain.state_dict())
