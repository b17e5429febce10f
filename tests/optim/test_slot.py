"Slots: where states start, and rules that have no trace."
import copy

import pytest
import torch
from torch import nn

from miniai.kernels.packed import unpacked
from miniai.optim import LAMB, AdamW, Muon, NAdamW, RMSProp, ScheduleFreeAdamW, optimizer, starts
from opts import force_eager, params, run, same, with_grad


def test_states_start_at_zero_or_where_the_rule_says_in_their_own_memory():
    @starts(slow=lambda p, g: p, grad=lambda p, g: g)
    def rule(p, g, avg, slow, grad, *, lr): return p, avg, slow, grad
    p = with_grad(torch.randn(3))
    start, g = p.detach().clone(), p.grad.clone()
    opt = optimizer(rule)([p], lr=.1, wd=.5)
    opt.step()
    state = {k: x for k, x in opt.state[p].items() if k != 'step'}
    assert list(state) == ['avg', 'slow', 'grad']
    assert torch.equal(state['avg'], torch.zeros(3))
    assert torch.equal(state['slow'], start)
    assert torch.equal(state['grad'], g)
    assert len({x.data_ptr() for x in (p, p.grad, *state.values())}) == 5


def test_a_state_that_starts_at_the_gradient_starts_at_the_gradient_that_the_rule_sees():
    @starts(first=lambda p, g: g)
    def rule(p, g, first, *, lr): return p, first
    p = with_grad(torch.full((3,), 2.), torch.full((3,), 8.))
    opt = optimizer(rule)([p], lr=.1, wd=.5, decoupled=False, clip_value=3.)
    opt.step()
    assert opt.state[p]['first'].tolist() == [4.]*3


def test_state_may_start_at_a_plain_number():
    @starts(scale=lambda p, g: 1.)
    def rule(p, g, scale, *, lr): return p - lr*scale*g, scale
    p = with_grad(torch.zeros(3), torch.ones(3))
    optimizer(rule)([p], lr=.5).step()
    assert p.tolist() == [-.5]*3


def test_a_rule_without_symbols_runs_eagerly_and_says_why():
    def clamped(p, g, *, lr): return p - lr*g.clamp(-1, 1)
    p, = params((5,))
    p.grad = torch.tensor([-3., -.5, 0., .5, 3.])
    want, opt = p.detach() - .1*p.grad.clamp(-1, 1), optimizer(clamped)([p], lr=.1)
    opt.step()
    assert torch.allclose(p, want)
    assert opt.path == "eager: 1 parameter, because clamped cannot be traced: 'Symbol' object has no attribute 'clamp'"


# States in 8 bits

BYTES = [(ScheduleFreeAdamW, {}), (AdamW, {}), (AdamW, dict(ema=.9, cautious=True, clip_norm=1.)), (RMSProp, {}),
         (NAdamW, {}), (Muon, {}), (LAMB, {}), (AdamW, dict(cautious='rescaled', hyperball=True))]


EXACT = 'ema', 'z'  # points of weights


def in_bytes(opt_class, shapes=((300,), (7, 5), (3, 4, 5, 6)), **options):
    ps = params(*shapes)
    if len(ps) == 3: ps[2].data = ps[2].data.to(memory_format=torch.channels_last)
    return ps, opt_class(ps, lr=.01, state='int8', **options)


@pytest.mark.parametrize(('opt_class', 'options'), BYTES)
def test_states_in_8_bits_take_a_quarter_of_the_memory_and_are_the_same_on_the_eager_path(opt_class, options):
    (ps, fused), (qs, eager) = in_bytes(opt_class, **options), in_bytes(opt_class, **options)
    with pytest.MonkeyPatch.context() as patch:
        run(fused, ps, 1)
        force_eager(patch)
        run(eager, qs, 1)
    for p, q in zip(ps, qs, strict=True):
        assert same(*(opt.state[x] | dict.fromkeys(EXACT, 0) for opt, x in ((fused, p), (eager, q))))
        assert torch.allclose(p, q, rtol=1e-6, atol=1e-6)
        sizes = {k: x.nbytes for k, x in fused.state[p].items() if isinstance(x, torch.Tensor) and k not in EXACT}
        assert set(sizes.values()) == {260*-(-p.numel()//256)}


@pytest.mark.parametrize(('opt_class', 'options'), BYTES)
def test_a_state_dict_has_them_as_float32_and_training_goes_on_from_it_to_the_bit(opt_class, options):
    (ps, opt), (qs, other) = in_bytes(opt_class, **options), in_bytes(opt_class, **options)
    run(opt, ps, 3)
    saved = copy.deepcopy(opt.state_dict())
    shapes = [p.shape for g in opt.param_groups for p in g['params']]
    for shape, state in zip(shapes, saved['state'].values(), strict=True):
        assert all((x.shape, x.dtype) == (shape, torch.float32) for x in state.values() if isinstance(x, torch.Tensor))
    for p, q in zip(ps, qs, strict=True): q.data.copy_(p.data)
    other.load_state_dict(saved)
    for o, xs in ((opt, ps), (other, qs)): run(o, xs, 3, seed=2)
    assert all(map(torch.equal, ps, qs))
    whole = params(*(p.shape for p in ps))
    opt_class(whole, lr=.01, **options).load_state_dict(saved)  # an optimizer of float32 states takes it too


def test_first_values_of_states_are_kept_in_8_bits_too():
    (p,), opt = in_bytes(RMSProp, [(300,)])
    p.grad = torch.full_like(p, 3.)
    opt.step()
    assert torch.equal(unpacked(opt.state[p]['square_avg'], p), torch.full_like(p, 9.))


def test_what_8_bits_do_not_allow_is_an_error():
    with pytest.raises(ValueError, match="state must be 'bf16', 'int8' or None, got 'int4'"):
        AdamW(params((2,)), state='int4')


def test_training_with_8_bits_reaches_what_32_bits_reach():
    found = {}
    for state in (None, 'int8'):
        generator = torch.Generator().manual_seed(0)
        x, p = torch.randn(400, 300, generator=generator), nn.Parameter(torch.zeros(300))
        y, opt = x @ torch.randn(300, generator=generator), AdamW([p], lr=.03, wd=0., state=state)
        for step in range(300):
            opt.param_groups[0]['lr'] = .03*(1 - step/300)
            (x @ p - y).square().mean().backward()
            opt.step()
            opt.zero_grad()
        found[state] = (x @ p.detach() - y).square().mean().item()/y.square().mean().item()
    assert found[None] < .01
    assert found['int8'] < 1.1*found[None]
