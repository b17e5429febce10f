"Stages around a rule: clipping by value, cautious steps, weight averages, rescaled steps."
import math

import numpy as np
import pytest
import torch
from torch import nn

from miniai.kernels import fused, numba
from miniai.optim import SGD, AdamW, Momentum, NAdamW, optimizer
from opts import everything, force_eager, params, run, same
from oracle import error


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
