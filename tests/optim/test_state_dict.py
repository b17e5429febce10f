"State dicts: saved and continued to the bit, and exchanged with torch's own classes."
import copy
import io
import pickle

import pytest
import torch
from torch import nn

from miniai.optim import SGD, Adagrad, Adam, AdamW, HeavyBall, Lion, Momentum, NAdamW, Nesterov, RAdam, RMSProp
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
    (NAdamW, dict(beta1=.8, wd=.1), torch.optim.NAdam, dict(betas=(.8, .999), weight_decay=.1, **NADAM)),
    (RAdam, dict(beta2=.9, wd=.1), torch.optim.RAdam, dict(betas=(.9, .9), weight_decay=.1, **NADAM))]


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


# Other mathematics

T = torch.optim
OTHERS = {
    'maximize=True, and SGD has maximize=False': (lambda ps: T.SGD(ps, maximize=True), lambda ps: SGD(ps, .1)),
    'momentum=0.9, and SGD has momentum=0.0': (lambda ps: T.SGD(ps, momentum=.9), lambda ps: SGD(ps, .1)),
    'nesterov=True, and HeavyBall has nesterov=False':
        (lambda ps: T.SGD(ps, momentum=.9, nesterov=True), lambda ps: HeavyBall(ps, .1)),
    'nesterov=False, and Nesterov has nesterov=True': (lambda ps: T.SGD(ps, momentum=.9), lambda ps: Nesterov(ps, .1)),
    'dampening=0.5, and HeavyBall has dampening=0.0':
        (lambda ps: T.SGD(ps, momentum=.9, dampening=.5), lambda ps: HeavyBall(ps, .1)),
    'dampening=0, and Momentum has dampening=0.9': (lambda ps: T.SGD(ps, momentum=.9), lambda ps: Momentum(ps, .1)),
    'L2 regularisation, this HeavyBall has decoupled decay':
        (lambda ps: T.SGD(ps, momentum=.9, weight_decay=.1), lambda ps: HeavyBall(ps, .1)),
    'centered=True, and RMSProp has': (lambda ps: T.RMSprop(ps, centered=True), lambda ps: RMSProp(ps, .1)),
    'momentum=0.9, and RMSProp has': (lambda ps: T.RMSprop(ps, momentum=.9), lambda ps: RMSProp(ps, .1)),
    'RMSprop.*L2': (lambda ps: T.RMSprop(ps, weight_decay=.1), lambda ps: RMSProp(ps, .1)),
    'no alpha, centered, momentum: it was saved': (lambda ps: T.Adadelta(ps), lambda ps: RMSProp(ps, .1)),
    'Adagrad.*L2': (lambda ps: T.Adagrad(ps, weight_decay=.1), lambda ps: Adagrad(ps, .1)),
    'amsgrad=True, and AdamW has': (lambda ps: T.AdamW(ps, amsgrad=True), lambda ps: AdamW(ps)),
    'no amsgrad: it was saved by a class': (lambda ps: T.RAdam(ps), lambda ps: AdamW(ps)),
    'no amsgrad': (lambda ps: T.NAdam(ps, decoupled_weight_decay=True), lambda ps: AdamW(ps)),
    'no momentum_decay': (lambda ps: T.AdamW(ps), lambda ps: NAdamW(ps)),
    "has amsgrad, eps: it was saved by a class whose mathematics are not Lion's":
        (lambda ps: T.AdamW(ps), lambda ps: Lion(ps, .1)),
    'has eps: it was saved by a class': (lambda ps: T.Adamax(ps), lambda ps: Lion(ps, .1)),
    'no dampening, momentum, nesterov, weight_decay: it was': (lambda ps: T.Rprop(ps), lambda ps: Momentum(ps, .1)),
    'L2 regularisation, this AdamW has': (lambda ps: T.Adam(ps, weight_decay=.1), lambda ps: AdamW(ps)),
    "eps=1e-08, and torch's Adam has it outside the root": (lambda ps: T.Adam(ps), lambda ps: Adam(ps, .1)),
    'the rule Adam, here it has AdamW': (lambda ps: Adam(ps, .1), lambda ps: AdamW(ps)),
    'the rule Momentum, here it has HeavyBall': (lambda ps: Momentum(ps, .1), lambda ps: HeavyBall(ps, .1)),
    'the rule HeavyBall, here it has Nesterov': (lambda ps: HeavyBall(ps, .1), lambda ps: Nesterov(ps, .1)),
    'decoupled decay, this HeavyBall has L2':
        (lambda ps: HeavyBall(ps, .1, wd=.1), lambda ps: HeavyBall(ps, .1, decoupled=False))}


@pytest.mark.parametrize('says', OTHERS)
@pytest.mark.parametrize('stepped', [True, False])
def test_a_state_dict_of_other_mathematics_is_refused_by_name_and_changes_nothing(says, stepped):
    p, q, (theirs, ours) = param(4), param(4), OTHERS[says]
    source, opt = theirs([p]), ours([q])
    if stepped: source.step()
    opt.step()
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(ValueError, match=says.removeprefix('RMSprop.*').removeprefix('Adagrad.*')):
        opt.load_state_dict(source.state_dict())
    assert same(opt.state_dict(), before)


def test_torchs_muon_is_refused_also_where_the_names_of_its_states_are_known():
    p = torch.nn.Parameter(torch.ones(2, 2))
    theirs = T.Muon([p])
    p.grad = torch.ones(2, 2)
    theirs.step()
    for ours in (Nesterov, AdamW, Lion):
        with pytest.raises(ValueError, match=f'ns_steps: it was saved by a class .* not {ours.__name__}'):
            ours([p], lr=.1).load_state_dict(theirs.state_dict())


def test_torchs_alpha_is_the_weight_of_the_average_square():
    p, gs = param(4), torch.randn(20, 4, dtype=torch.float64)
    theirs = T.RMSprop([p], lr=.1, alpha=.5)
    steps(theirs, p, gs[:5])
    q = twin(p)
    ours = RMSProp([q], lr=.1)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    steps(theirs, p, gs[5:])
    steps(ours, q, gs[5:])
    assert near(p, q)


def test_decay_of_torchs_momentum_loads_where_it_is_l2():
    p, gs = param(4), torch.randn(20, 4, dtype=torch.float64)
    theirs = T.SGD([p], lr=.1, momentum=.9, weight_decay=.3)
    steps(theirs, p, gs[:5])
    q = twin(p)
    ours = HeavyBall([q], lr=.1, decoupled=False)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    steps(theirs, p, gs[5:])
    steps(ours, q, gs[5:])
    assert near(p, q)


def test_a_state_dict_says_whose_it_is_and_a_subclass_with_the_same_rule_takes_it():
    class Mine(AdamW): pass
    p = param(4)
    saved = AdamW([p]).state_dict()
    assert saved['param_groups'][0]['rule'] == 'AdamW'
    Mine([p]).load_state_dict(saved)
    AdamW([p]).load_state_dict(Mine([p]).state_dict())
    del saved['param_groups'][0]['rule']  # as saved by miniai before 0.3
    AdamW([p]).load_state_dict(saved)


def test_a_state_that_went_through_torchs_class_is_checked_again():
    p = param(4)
    theirs = T.Adam([p], eps=1e-5, betas=(.9, .99))
    theirs.load_state_dict(Adam([p], lr=.1).state_dict())
    with pytest.raises(ValueError, match='outside the root'): Adam([p], lr=.1).load_state_dict(theirs.state_dict())
