"The eager path: a rule on tensors of every dtype, shape and layout, one parameter at a time."
import numpy as np
import pytest
import torch

import formulas
from miniai.optim import RMSProp, optimizer, rules, starts
from miniai.optim.eager import eager_step
from miniai.optim.spec import read_rule
from miniai.optim.stages import Stages, program
from opts import each_class, with_grad

HALF = [torch.bfloat16, torch.float16]


@each_class
@pytest.mark.parametrize('shape', [(), (0,), (3, 0), (1,), (5,), (2, 3, 4, 5)])
def test_parameter_state_and_gradient_keep_shape_dtype_and_memory(cls, shape):
    p = with_grad(torch.randn(shape, dtype=torch.float64))
    opt, where = cls([p], lr=.1, wd=.1), p.data_ptr()
    for _ in range(3): opt.step()
    assert p.data_ptr() == where
    assert p.requires_grad
    tensors = [x for k, x in opt.state[p].items() if k != 'step']
    assert all(x.shape == shape and x.dtype == torch.float64 and not x.requires_grad for x in tensors)


@each_class
def test_channels_last_stays_channels_last_and_changes_no_value(cls):
    data, grad = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    formats = (torch.contiguous_format, torch.channels_last)
    plain, last = (with_grad(data.clone(memory_format=f), grad.clone(memory_format=f)) for f in formats)
    opt = cls([plain, last], lr=.1, wd=.1)
    for _ in range(3): opt.step()
    assert torch.equal(plain, last)
    assert all(x.stride() == last.stride() == (60, 1, 15, 3) for k, x in opt.state[last].items() if k != 'step')


@each_class
def test_strided_views_are_stepped_like_their_contiguous_copies(cls):
    whole = torch.randn(4, 6)
    view, copy = with_grad(whole[:, ::2]), with_grad(whole[:, ::2].clone())
    copy.grad, between = view.grad.clone(), whole[:, 1::2].clone()
    opt = cls([view, copy], lr=.1, wd=.1)
    for _ in range(3): opt.step()
    assert torch.allclose(view, copy, rtol=1e-6, atol=1e-6)  # the copy's kernel contracts products and sums
    assert torch.equal(whole[:, 1::2], between)


@pytest.mark.parametrize('dtype', HALF)
@pytest.mark.parametrize('wd', [0., .3])
@pytest.mark.parametrize(('rule', 'name', 'names'), [
    (rules.sgd, 'SGD', []), (rules.momentum, 'Momentum', ['grad_avg']), (rules.rmsprop, 'RMSProp', ['sqr_avg']),
    (rules.adam, 'Adam', ['avg', 'sqr_avg'])])
def test_half_precision_is_the_formula_in_float32_rounded_once(rule, name, names, wd, dtype):
    spec, lr = read_rule(rule), .01
    hypers = {k: v for k, v in spec.hypers.items() if k != 'lr'}
    p, g = torch.randn(50).to(dtype), torch.randn(50).to(dtype)
    states = [torch.rand(50).to(dtype) for _ in names]
    saved = {k: s.double().numpy() for k, s in zip(names, states, strict=True)}
    want = formulas.FORMULAS[name](p.double().numpy(), g.double().numpy(), saved, 7, lr=lr, wd=wd, **hypers)
    hypers |= dict(lr=lr, t=7, wd=wd, g_scale=1., clip_value=None, ema_decay=None, tail_start=None)
    eager_step(program(spec, Stages()), [p, *states], g, hypers, (False,)*(1+len(names)))
    for got, exact in [(p, want), *((s, saved[k]) for s, k in zip(states, names, strict=True))]:
        assert got.dtype == dtype
        near, limits = torch.tensor(exact).float(), torch.finfo(dtype)
        # one rounding of a value that float32 knows to 1e-6: the nearest half, or its neighbor where that is a tie
        assert torch.all((got.double() - near).abs() <= near.abs()*(limits.eps/2 + 1e-5) + limits.smallest_normal)
        assert (got == near.to(dtype)).double().mean() > .95


@pytest.mark.parametrize('dtype', HALF)
def test_rmsprops_first_step_in_half_precision_squares_the_gradient_in_float32(dtype):
    g = torch.tensor([1e-4, -3e-4, .7, 300., -2e-5], dtype=dtype)
    p = with_grad(torch.zeros(5, dtype=dtype), g)
    RMSProp([p], lr=1e-3).step()
    exact = formulas.rmsprop(np.zeros(5), g.double().numpy(), {}, 1, lr=1e-3)
    assert p.tolist() == pytest.approx(exact, rel=torch.finfo(dtype).eps)


@pytest.mark.parametrize('dtype', HALF)
@each_class
def test_half_precision_parameters_and_gradients_keep_their_dtype_and_state_is_float32(cls, dtype):
    p = with_grad(torch.randn(5, dtype=dtype))
    before, opt = p.grad.clone(), cls([p], lr=.1, wd=.1)
    for _ in range(2): opt.step()
    assert p.dtype == p.grad.dtype == dtype
    assert {x.dtype for k, x in opt.state[p].items() if k != 'step'} <= {torch.float32}
    saved = opt.state_dict()
    cls([p], lr=.1).load_state_dict(saved)
    assert {x.dtype for s in saved['state'].values() for k, x in s.items() if k != 'step'} <= {torch.float32}
    assert torch.equal(p.grad, before)
    assert p.isfinite().all()


def test_decay_shrinks_the_parameter_by_lr_times_wd_before_the_rule_sees_it():
    seen = []
    def rule(p, g, *, lr):
        seen.append(p.clone())
        return p - lr*g
    p, g = torch.tensor([2.], dtype=torch.float64), torch.tensor([1.], dtype=torch.float64)
    eager_step(program(read_rule(rule), Stages()), [p], g, dict(lr=.1, t=1, wd=.5, g_scale=1.), (False,))
    assert seen[0].item() == pytest.approx(2*(1-.05), rel=1e-15)
    assert p.item() == pytest.approx(2*(1-.05) - .1, rel=1e-15)


@pytest.mark.parametrize('wd', [0., .1])
def test_a_rule_may_return_an_argument_as_another_state(wd):
    def heavy_ball(p, g, prev, *, lr, mom=.9): return p - lr*g + mom*(p-prev), p
    p, q, before = with_grad(torch.ones(2, dtype=torch.float64)), 1., 0.
    opt = optimizer(heavy_ball)([p], lr=.1, wd=wd)
    for g in (.5, -.25, 2.):
        p.grad = torch.full_like(p, g)
        opt.step()
        q *= 1 - .1*wd
        q, before = q - .1*g + .9*(q-before), q
        assert p.tolist() == pytest.approx([q, q], rel=1e-14)
        assert opt.state[p]['prev'].tolist() == pytest.approx([before, before], rel=1e-14)


def test_a_rule_may_swap_two_states():
    @starts(a=lambda p, g: p*0 + 1)
    def swap(p, g, a, b, *, lr): return p, b, a
    p = with_grad(torch.zeros(2))
    opt = optimizer(swap)([p], lr=.1)
    opt.step()
    assert (opt.state[p]['a'].tolist(), opt.state[p]['b'].tolist()) == ([0., 0.], [1., 1.])
    opt.step()
    assert (opt.state[p]['a'].tolist(), opt.state[p]['b'].tolist()) == ([1., 1.], [0., 0.])


@pytest.mark.parametrize('wd', [0., .1])
@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_in_place_operations_in_a_rule_change_no_gradient(wd, dtype):
    def l2(p, g, *, lr):
        g += .5*p
        return p - lr*g
    p = with_grad(torch.ones(2, dtype=dtype), torch.ones(2, dtype=dtype))
    optimizer(l2)([p], lr=.5, wd=wd).step()
    assert p.grad.tolist() == [1., 1.]
    decayed = 1 - .5*wd
    assert p.tolist() == pytest.approx([decayed - .5*(1 + .5*decayed)]*2, rel=torch.finfo(dtype).eps)


def test_a_rule_may_return_a_tuple_of_one():
    p = with_grad(torch.ones(2), torch.ones(2))
    optimizer(lambda p, g, *, lr: (p - lr*g,), 'Mine')([p], lr=.5).step()
    assert p.tolist() == [.5, .5]
