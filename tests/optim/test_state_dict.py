"State dicts: saved and continued to the bit, and exchanged with torch's own classes."
import copy
import io
import pickle

import pytest
import torch
from torch import nn

from miniai.optim import SGD, Adam, AdamW, Momentum, NAdamW, RMSProp
from opts import each_class, everything, net, param, params, run, same, train


def in_memory(x):
    file = io.BytesIO()
    torch.save(x, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@each_class
def test_a_saved_state_continues_bit_for_bit(cls):
    def groups(m): return [dict(params=m[0].parameters(), wd=.1), dict(params=m[2].parameters(), lr=.02)]
    model = net()
    opt = cls(groups(model), lr=.01)
    train(model, opt, 5)
    opt.param_groups[0]['lr'] = .03
    other = net()
    other.load_state_dict(model.state_dict())
    opt2 = cls(groups(other), lr=1.)
    opt2.load_state_dict(in_memory(opt.state_dict()))
    assert [g['lr'] for g in opt2.param_groups] == [.03, .02]
    for m, o in ((model, opt), (other, opt2)): train(m, o, 5, seed=1)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert same(opt.state_dict()['state'], opt2.state_dict()['state'])
    assert {s['step'] for s in opt2.state.values()} == {10}


@each_class
def test_a_state_loaded_is_the_state_saved_with_nothing_added(cls):
    model = net()
    opt, opt2 = (cls(model.parameters(), lr=.01, wd=.1) for _ in range(2))
    train(model, opt, 2)
    saved = copy.deepcopy(opt.state_dict())
    opt2.load_state_dict(saved)
    assert same(opt2.state_dict(), saved)


@each_class
def test_a_state_of_other_groups_is_refused(cls):
    saved = cls([param(1)], lr=.1).state_dict()
    with pytest.raises(ValueError, match='different number of parameter groups'):
        cls([dict(params=[param(1)]), dict(params=[param(1)])], lr=.1).load_state_dict(saved)


@pytest.mark.parametrize(('cls', 'options'), [(SGD, {}), (Momentum, {}), (RMSProp, {}), (Adam, {}),
                                             (AdamW, dict(ema=.9, clip_norm=1., state='bf16', seed=3))])
@pytest.mark.parametrize('double', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_by_deepcopy_or_pickle_continues_bit_for_bit(cls, options, double):
    model = net()
    opt = cls(model.parameters(), lr=.01, wd=.1, **options)
    train(model, opt, 3)
    other, opt2 = double((model, opt))
    assert type(opt2) is cls
    for m, o in ((model, opt), (other, opt2)): train(m, o, 3, seed=1)
    assert all(map(torch.equal, model.parameters(), other.parameters()))
    assert same(opt.state_dict(), opt2.state_dict())
    assert all(p is q for p, q in zip(other.parameters(), opt2.param_groups[0]['params'], strict=True))


@each_class
def test_a_state_saved_in_channels_last_stays_so(cls):
    a, b = (nn.Parameter(torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)) for _ in range(2))
    a.grad = torch.randn_like(a)
    opt, opt2 = cls([a], lr=.1), cls([b], lr=.1)
    opt.step()
    opt2.load_state_dict(in_memory(opt.state_dict()))
    assert all(x.stride() == b.stride() for k, x in opt2.state[b].items() if k != 'step')


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_reloaded_optimizer_continues_to_the_same_bits(dtype):
    ps, kinds = params((5,), (4, 3), dtype=dtype), dict(lr=.1, ema=.9, state='bf16', rounding='stochastic', seed=3)
    opt = run(AdamW(ps, **kinds), ps, 3)
    saved, qs = copy.deepcopy(opt.state_dict()), [nn.Parameter(p.detach().clone()) for p in ps]
    other = AdamW(qs, **kinds)
    other.load_state_dict(saved)
    run(opt, ps, 3, 9), run(other, qs, 3, 9)
    assert same(everything(opt, ps), everything(other, qs))


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_an_average_keeps_its_precision_through_a_state_dict_beside_states_in_bfloat16(dtype):
    ps = params((50,), dtype=dtype)
    opt = run(AdamW(ps, lr=.1, ema=.9, state='bf16'), ps, 5)
    saved, other = opt.state_dict(), AdamW(ps, lr=.1, ema=.9, state='bf16')
    other.load_state_dict(saved)
    assert other.state[ps[0]]['ema'].dtype == torch.float32
    assert other.state[ps[0]]['exp_avg'].dtype == torch.bfloat16
    assert torch.equal(other.state[ps[0]]['ema'], opt.state[ps[0]]['ema'])


# Exchange with torch's own classes

def twin(p): return nn.Parameter(p.detach().clone())


def steps(opt, p, grads):
    for g in grads:
        p.grad = g.clone()
        opt.step()


def near(a, b): return torch.allclose(a, b, rtol=1e-12, atol=1e-14)


@pytest.fixture(autouse=True)
def doubles():
    "Torch keeps NAdam's product of momenta in the default dtype."
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


NADAM = dict(decoupled_weight_decay=True)

ADAM = dict(eps=0.)     # where eps is 0 it matters not that ours is inside the root


EXCHANGES = [
    (SGD, {}, torch.optim.SGD, {}),
    (Momentum, dict(mom=.8), torch.optim.SGD, dict(momentum=.8, dampening=.8)),
    (RMSProp, dict(sqr_mom=.9), torch.optim.RMSprop, dict(alpha=.9, eps=1e-5)),
    (Adam, dict(beta1=.8, beta2=.9, wd=.1, **ADAM), torch.optim.AdamW, dict(betas=(.8, .9), weight_decay=.1, **ADAM)),
    (Adam, dict(beta1=.8, beta2=.9, **ADAM), torch.optim.Adam, dict(betas=(.8, .9), **ADAM)),
    (NAdamW, dict(beta1=.8, wd=.1), torch.optim.NAdam, dict(betas=(.8, .999), weight_decay=.1, **NADAM))]


each_exchange = pytest.mark.parametrize(('cls', 'kw', 'theirs', 'their_kw'), EXCHANGES)


@each_exchange
def test_our_whole_state_dict_loads_in_torchs_class_and_steps(cls, kw, theirs, their_kw):
    p, gs = param(4), torch.randn(20, 4, dtype=torch.float64)
    opt = cls([p], lr=.1, **kw)
    steps(opt, p, gs[:5])
    q = twin(p)
    other = theirs([q], lr=.1, **their_kw)
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    steps(opt, p, gs[5:])
    steps(other, q, gs[5:])
    assert near(p, q)


@each_exchange
def test_torchs_whole_state_dict_loads_here_and_steps(cls, kw, theirs, their_kw):
    p, gs = param(4), torch.randn(20, 4, dtype=torch.float64)
    other = theirs([p], lr=.1, **their_kw)
    steps(other, p, gs[:5])
    q = twin(p)
    opt = cls([q], lr=.7, **kw)
    opt.load_state_dict(copy.deepcopy(other.state_dict()))
    steps(other, p, gs[5:])
    steps(opt, q, gs[5:])
    assert opt.param_groups[0]['lr'] == .1
    assert near(p, q)


@each_exchange
def test_states_have_torchs_names_and_its_step_counts_become_ints(cls, kw, theirs, their_kw):
    p, q = param(4), param(4)
    opt, other = cls([p], lr=.1, **kw), theirs([q], lr=.1, **their_kw)
    opt.step()
    other.step()
    assert set(opt.state[p]) == set(other.state[q]) | {'step'}
    opt.load_state_dict(copy.deepcopy(other.state_dict()))
    opt.step()
    assert type(opt.state[p].get('step', 2)) is int
    if 'step' in other.state[q]: assert opt.state[p]['step'] == 2


def test_momentum_is_torchs_dampened_momentum_from_the_second_step_on_and_back():
    p, gs = param(4), torch.randn(30, 4, dtype=torch.float64)
    avg, x = torch.zeros(4, dtype=torch.float64), p.detach().clone()
    ours = Momentum([p], lr=.1, mom=.8)
    steps(ours, p, gs[:1])
    theirs = torch.optim.SGD([p], lr=.1, momentum=.8, dampening=.8)
    theirs.state[p]['momentum_buffer'] = ours.state[p]['momentum_buffer'].clone()
    steps(theirs, p, gs[1:20])
    back = Momentum([p], lr=.1, mom=.8)
    back.load_state_dict(theirs.state_dict())
    steps(back, p, gs[20:])
    for g in gs:
        avg = .8*avg + .2*g
        x = x - .1*avg
    assert near(p, x)


# What loading refuses, changing nothing

def test_a_state_of_other_betas_or_another_kind_of_decay_or_no_step_is_refused():
    p = param(4)
    saved = torch.optim.NAdam([p], weight_decay=.1).state_dict()
    says = 'trained with L2 regularisation, this NAdamW has decoupled decay: create it with decoupled=False'
    with pytest.raises(ValueError, match=says): NAdamW([p]).load_state_dict(saved)
    NAdamW([p], decoupled=False).load_state_dict(saved)
    opt = NAdamW([p])
    opt.step()
    before = copy.deepcopy(opt.state_dict())
    for change, says in ((lambda d: d['param_groups'][0].update(betas=(.9,)), 'has 1 betas, NAdamW takes 2'),
                         (lambda d: d['state'][0].update(step='x'), "'step' of parameter 0 .* must be one number"),
                         (lambda d: d['state'][0].update(mu_product=[1.]), "'mu_product' .* must be one number")):
        broken = copy.deepcopy(before)
        change(broken)
        with pytest.raises(ValueError, match=says): opt.load_state_dict(broken)
        assert same(opt.state_dict(), before)


def test_a_state_dict_of_another_shape_or_dtype_is_refused_and_changes_nothing():
    ps = params((4,))
    opt = run(Momentum(ps, lr=.1), ps, 2)
    before = everything(opt, ps)
    for wrong, says in ((torch.zeros(5), 'shape'), (torch.zeros(4, dtype=torch.int64), 'dtype'),
                        (torch.zeros(4, dtype=torch.complex64), 'dtype'), (None, 'no')):
        saved = opt.state_dict()
        saved['state'] = {0: dict(saved['state'][0], momentum_buffer=wrong)}
        with pytest.raises(ValueError, match=says): opt.load_state_dict(saved)
        assert same(everything(opt, ps), before)


def test_l2_goes_to_torchs_class_as_l2():
    p = param(4)
    opt = NAdamW([p], wd=.1, decoupled=False)
    assert not opt.state_dict()['param_groups'][0]['decoupled_weight_decay']
    assert NAdamW([p]).state_dict()['param_groups'][0]['decoupled_weight_decay']


def test_numbers_of_bfloat16_parameters_are_exchanged_unrounded():
    p = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    opt = NAdamW([p])
    for _ in range(3): opt.step()
    other = NAdamW([p])
    other.load_state_dict(in_memory(opt.state_dict()))
    assert other.state[p]['mu_product'] == opt.state[p]['mu_product'] != float(torch.tensor(.0912143).bfloat16())
