"Every optimizer is a real torch.optim.Optimizer: arguments, groups, errors, and what a step does."
import copy
import inspect
import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

from miniai.optim import (
    SGD,
    Adafactor,
    Adam,
    AdamW,
    Lion,
    Momentum,
    NAdamW,
    RMSProp,
    RuleOptimizer,
    groups_table,
    optimizer,
)
from miniai.optim.optimizer import inner_optimizer
from opts import CLASSES, each_class, everything, net, param, params, run, same, train
from oracle import OPTIONS, Oracle, drawn, error, flat, give_gradients, move, starting


def snapshot(opt):
    "Everything that a failed call must leave as it was."
    ps = [p for g in opt.param_groups for p in g['params']]
    state = {i: {k: copy.deepcopy(v) for k, v in opt.state[p].items()} for i, p in enumerate(ps) if p in opt.state}
    groups = [{k: v for k, v in g.items() if k != 'params'} for g in opt.param_groups]
    return [p.detach().clone() for p in ps], state, groups


# Arguments and groups

def test_arguments_are_the_notebooks_in_its_order():
    args = {SGD: 'params lr wd', Momentum: 'params lr wd mom', RMSProp: 'params lr wd sqr_mom eps',
            Adam: 'params lr wd beta1 beta2 eps'}
    options = ['decoupled', 'clip_norm', 'clip_value', 'skip_nonfinite', 'cautious', 'ema', 'tail', 'nesterov',
               'cautious_decay', 'hyperball', 'state', 'rounding', 'seed']
    for cls, names in args.items():
        given = inspect.signature(cls).parameters
        assert list(given) == names.split() + options
        assert all(given[o].kind is inspect.Parameter.KEYWORD_ONLY for o in options)
    opt = Adam([param(1)], .1, .2, .3, .4, .5)
    assert {k: v for k, v in opt.param_groups[0].items() if k != 'params'} == \
        dict(lr=.1, weight_decay=.2, betas=(.3, .4), eps=.5)


def test_defaults_and_every_group_keep_torchs_names():
    ps, rest = [param(1)], dict(weight_decay=0.)
    assert SGD(ps, .1).defaults == dict(lr=.1, **rest)
    assert Momentum(ps, .1).defaults == dict(lr=.1, momentum=.9, **rest)
    assert RMSProp(ps, .1).defaults == dict(lr=.1, sqr_mom=.99, eps=1e-5, **rest)
    assert Adam(ps, .1).defaults == dict(lr=.1, betas=(.9, .99), eps=1e-5, **rest)
    for cls in CLASSES:
        opt = cls(ps, lr=.1)
        assert opt.param_groups == [opt.defaults | dict(params=ps)]


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match='lr'): SGD([param(1)])
    with pytest.raises(TypeError, match='momm'): Momentum([param(1)], lr=.1, momm=.9)
    with pytest.raises(TypeError, match='too many'): SGD([param(1)], .1, 0., .9)
    with pytest.raises(ValueError, match='empty parameter list'): SGD([], lr=.1)
    with pytest.raises(TypeError, match='iterable of Tensors'): SGD(param(1), lr=.1)


def test_groups_take_their_own_hyperparameters_by_both_sets_of_names():
    a, b, c = param(1), param(1), param(1)
    groups = [dict(params=[a], wd=.1, beta1=.5), dict(params=b, weight_decay=.2, betas=(.6, .7)),
              dict(params=[c], lr=3.)]
    opt = Adam(groups, lr=1.)
    assert [g['lr'] for g in opt.param_groups] == [1., 1., 3.]
    assert [g['weight_decay'] for g in opt.param_groups] == [.1, .2, 0.]
    assert [g['betas'] for g in opt.param_groups] == [(.5, .99), (.6, .7), (.9, .99)]
    assert not any({'wd', 'beta1', 'beta2'} & set(g) for g in opt.param_groups)
    opt = Momentum([dict(params=[a], mom=.5), dict(params=[b], momentum=.6), dict(params=[c])], lr=1., mom=.7)
    assert [g['momentum'] for g in opt.param_groups] == [.5, .6, .7]
    assert not any('mom' in g for g in opt.param_groups)


@pytest.mark.parametrize(('cls', 'twice'), [(Momentum, dict(mom=.5, momentum=.5)), (SGD, dict(wd=.1, weight_decay=.1)),
                                            (Adam, dict(beta1=.5, betas=(.5, .9)))])
def test_a_hyperparameter_given_by_two_names_is_an_error(cls, twice):
    with pytest.raises(TypeError, match='same hyperparameter'): cls([dict(params=[param(1)], **twice)], lr=.1)


@pytest.mark.parametrize('betas', [(.9,), (.9, .99, .999), (), .9])
def test_a_wrong_number_of_betas_is_an_error(betas):
    with pytest.raises((TypeError, ValueError), match='betas'): Adam([dict(params=[param(1)], betas=betas)], lr=.1)


@each_class
@pytest.mark.parametrize(('wrong', 'says'), [
    (dict(lr=-.1), 'lr must be 0 or more, got -0.1'), (dict(lr=math.nan), 'lr must be 0 or more, got nan'),
    (dict(wd=-1.), 'wd must be 0 or more, got -1.0'), (dict(wd=math.nan), 'wd must be 0 or more, got nan')])
def test_a_negative_or_nan_rate_or_decay_is_an_error_and_changes_nothing(cls, wrong, says):
    with pytest.raises(ValueError, match=f'{cls.__name__}: {says}'): cls([param(1)], **dict(lr=.1) | wrong)
    opt = cls([param(2)], lr=.1)
    opt.step()
    before = snapshot(opt)
    with pytest.raises(ValueError, match=says): opt.add_param_group(dict(params=[param(1)], **wrong))
    assert same(snapshot(opt), before)


@each_class
@pytest.mark.parametrize('name', ['lr', 'wd'])
@pytest.mark.parametrize('value', ['1e-3', None])  # YAML reads 1e-3 as text
def test_text_instead_of_a_number_is_an_error_when_an_optimizer_or_a_group_is_made(cls, name, value):
    says = re.escape(f'{cls.__name__}: {name} must be a number, got {value!r}')
    with pytest.raises(TypeError, match=says): cls([param(1)], **dict(lr=.1) | {name: value})
    opt = cls([param(2)], lr=.1)
    with pytest.raises(TypeError, match=says): opt.add_param_group({'params': [param(1)], name: value})
    assert len(opt.param_groups) == 1
    with pytest.raises(TypeError, match='AdamW: beta2 must be a number'): AdamW([param(1)], beta2='0.9')


@pytest.mark.parametrize(('cls', 'name'), [(Momentum, 'mom'), (RMSProp, 'sqr_mom'), (Adam, 'beta1'), (Adam, 'beta2')])
@pytest.mark.parametrize('value', [1., 1.5, -.1, math.nan])
def test_the_weight_of_an_average_must_be_in_0_to_1(cls, name, value):
    says = f'{name} is the weight of an average and must be below 1' if value >= 1 else f'{name} must be 0 or more'
    with pytest.raises(ValueError, match=says): cls([param(1)], lr=.1, **{name: value})
    with pytest.raises(ValueError, match=says): cls([dict(params=[param(1)], **{name: value})], lr=.1)
    cls([param(1)], lr=.1, **{name: 0.})


@pytest.mark.parametrize(('cls', 'wrong', 'says'), [
    (RMSProp, dict(eps=-1e-5), 'RMSProp: eps must be 0 or more, got -1e-05'),
    (Adam, dict(eps=-1e-5), 'Adam: eps must be 0 or more, got -1e-05'),
    (Adafactor, dict(eps1=-1e-30), 'eps1 must be 0 or more'), (Adafactor, dict(eps2=-1.), 'eps2 must be 0 or more'),
    (NAdamW, dict(momentum_decay=-1), 'momentum_decay must be 0 or more, got -1')])
def test_a_negative_eps_or_rate_of_decay_is_an_error(cls, wrong, says):
    with pytest.raises(ValueError, match=says): cls([param(1)], lr=.1, **wrong)


@pytest.mark.parametrize(('wrong', 'says'), [
    (dict(clip_norm=0.), 'clip_norm must be above 0'), (dict(clip_norm=-1.), 'clip_norm'),
    (dict(clip_value=0.), 'clip_value'),
    (dict(clip_norm=math.nan), 'clip_norm'), (dict(ema=1.), 'ema must be in'), (dict(ema=-.1), 'ema'),
    (dict(state='fp8'), "state must be 'bf16', 'int8' or None"),
    (dict(cautious='scaled'), "cautious must be True, False or 'rescaled', got 'scaled'"),
    (dict(rounding='up'), "rounding must be 'nearest' or 'stochastic'")])
def test_an_invalid_option_is_an_error_that_names_it(wrong, says):
    with pytest.raises(ValueError, match=says): Adam([param(1)], lr=.1, **wrong)


def test_a_rules_own_hyperparameter_may_be_negative():
    def powered(p, g, *, lr, power=-.5): return p - lr*g*abs(g)**power
    p = param(2)
    want = p.detach() - .1*p.grad*p.grad.abs()**-.5
    optimizer(powered)([p], lr=.1).step()
    assert torch.allclose(p, want, rtol=1e-14)


def test_a_group_must_be_a_dict_with_tensors_seen_once():
    p = param(1)
    opt = SGD([p], lr=.1)
    with pytest.raises(TypeError, match="a parameter group must be a dict with 'params'"): opt.add_param_group([p])
    with pytest.raises(ValueError, match='more than one parameter group'): opt.add_param_group(dict(params=[p]))
    with pytest.raises(TypeError, match='only optimize Tensors'): opt.add_param_group(dict(params=[3.]))
    assert len(opt.param_groups) == 1


@each_class
def test_a_group_added_later_starts_its_own_count_and_leaves_the_dict_given_alone(cls):
    a, b = param(2), param(3)
    opt, given_dict = cls([a], lr=.1), dict(params=[b], lr=.2, wd=.3)
    opt.step()
    opt.add_param_group(given_dict)
    assert given_dict == dict(params=[b], lr=.2, wd=.3)
    opt.step()
    assert [opt.state[p]['step'] for p in (a, b)] == [2, 1]
    assert [opt.param_groups[1][k] for k in ('lr', 'weight_decay')] == [.2, .3]


def test_named_parameters_are_taken_and_their_names_kept():
    model = net()
    opt = Adam(model.named_parameters(), lr=.1)
    train(model, opt, 2)
    assert opt.param_groups[0]['param_names'] == [n for n, _ in model.named_parameters()]


# Errors

@each_class
def test_a_complex_parameter_is_an_error_and_changes_nothing(cls):
    z = nn.Parameter(torch.zeros(2, 3, dtype=torch.complex64))
    says = re.escape(f'{cls.__name__} does not support complex numbers, but a parameter of shape (2, 3) is '
                     'torch.complex64: pass torch.view_as_real of it')
    with pytest.raises(TypeError, match=says): cls([param(1), z], lr=.1)
    opt = cls([param(2)], lr=.1)
    opt.step()
    before = snapshot(opt)
    with pytest.raises(TypeError, match=says): opt.add_param_group(dict(params=[param(1), z]))
    assert same(snapshot(opt), before)


@each_class
def test_a_sparse_gradient_is_an_error_before_anything_changes(cls):
    emb, first = nn.Embedding(5, 2, sparse=True), param(3, dtype=torch.float32)
    opt = cls([dict(params=[first]), dict(params=emb.parameters())], lr=.1)
    opt.step()
    emb(torch.tensor([1, 1, 3])).sum().backward()
    before, grad = snapshot(opt), emb.weight.grad.clone()
    says = r'shape \(5, 2\) has a sparse gradient.*sparse=False.*torch.optim.SparseAdam'
    with pytest.raises(TypeError, match=says): opt.step()
    assert same(snapshot(opt), before)
    assert torch.equal(emb.weight.grad.to_dense(), grad.to_dense())


def test_a_class_without_a_rule_is_an_error():
    says = 'RuleOptimizer has no rule: subclass RuleOptimizer with rule'
    with pytest.raises(TypeError, match=says): RuleOptimizer([param(1)], lr=.1)
    class Empty(RuleOptimizer): pass
    with pytest.raises(TypeError, match=re.escape('or call optimizer(rule)')): Empty([param(1)], lr=.1)


# A step

@each_class
def test_gradients_are_never_changed(cls):
    ps = [param(3), param(2, 2)]
    before, grads = [p.grad.clone() for p in ps], [p.grad for p in ps]
    opt = cls(ps, lr=.1, wd=.1)
    for _ in range(3): opt.step()
    assert all(p.grad is g and torch.equal(g, b) for p, g, b in zip(ps, grads, before, strict=True))


@each_class
def test_a_parameter_without_a_gradient_is_untouched_and_its_count_stands_still(cls):
    a, b, never = param(3), param(3), param(3, grad=False)
    opt, start = cls([a, b, never], lr=.1, wd=.1), never.detach().clone()
    opt.step()
    b_before, state = b.detach().clone(), copy.deepcopy(opt.state[b])
    grad, b.grad = b.grad, None
    for _ in range(2): opt.step()
    assert torch.equal(b, b_before)
    assert same(opt.state[b], state)
    assert torch.equal(never, start)
    assert never not in opt.state
    b.grad = grad
    opt.step()
    assert [opt.state[p]['step'] for p in (a, b)] == [4, 2]


@each_class
def test_a_closure_is_called_once_with_gradients_on_before_the_step_and_its_value_returned(cls):
    p, seen = param(2, grad=False), []
    opt = cls([p], lr=.1)
    def closure():
        seen.append((torch.is_grad_enabled(), p.detach().clone()))
        opt.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss
    start = p.detach().clone()
    with torch.no_grad(): loss = opt.step(closure)
    assert len(seen) == 1
    assert seen[0][0]
    assert torch.equal(seen[0][1], start)
    assert loss.item() == (start**2).sum().item()
    assert not torch.equal(p, start)
    assert opt.step() is None


@each_class
def test_hooks_are_called_once_before_and_once_after_each_step(cls):
    class Sub(cls): pass
    for kind in (cls, Sub):
        p, calls = param(2), []
        opt = kind([p], lr=.1)
        start = p.detach().clone()
        pre = opt.register_step_pre_hook(lambda *_, p=p, s=start, c=calls: c.append(('pre', torch.equal(p, s))))
        opt.register_step_post_hook(lambda *_, p=p, s=start, c=calls: c.append(('post', torch.equal(p, s))))
        opt.step()
        assert calls == [('pre', True), ('post', False)]
        pre.remove()
        opt.step()
        assert calls[2:] == [('post', False)]


@each_class
def test_zero_grad_sets_gradients_to_none_or_to_zero(cls):
    p = param(2)
    opt = cls([p], lr=.1)
    opt.zero_grad(set_to_none=False)
    assert p.grad.tolist() == [0., 0.]
    opt.zero_grad()
    assert p.grad is None


@each_class
def test_a_rate_may_be_a_tensor_whose_value_changes(cls):
    a, b = param(3), param(3)
    b.data, b.grad, rate = a.detach().clone(), a.grad.clone(), torch.tensor(.25, dtype=torch.float64)
    with_tensor, with_float = cls([a], lr=rate, wd=.1), cls([b], lr=.25, wd=.1)
    for x in (.25, .125):
        rate.fill_(x)
        with_float.param_groups[0]['lr'] = x
        with_tensor.step()
        with_float.step()
    assert torch.equal(a, b)


@each_class
def test_tied_weights_are_stepped_once(cls):
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    opt = cls(model.parameters(), lr=.1)
    train(model, opt, 2)
    assert len(opt.param_groups[0]['params']) == 1
    assert opt.state[model[0].weight]['step'] == 2
    assert model[0].weight is model[1].weight


# Two rules in one optimizer

def mixed(cls, ps, **options):
    "The first two parameters by `cls`, the other ones by AdamW with a rate and a beta of their own."
    return cls([dict(params=ps[:2]), dict(params=ps[2:], rule=AdamW, lr=.02, beta1=.8)], lr=.01, wd=.1, **options)


def apart(cls, ps, **options):
    return [cls(ps[:2], lr=.01, wd=.1, **options), AdamW(ps[2:], lr=.02, wd=.1, beta1=.8, **options)]


def four(dtype=torch.float32, seed=0):
    return params((5, 3), (7,), (4,), (2, 3), dtype=dtype, seed=seed)


@pytest.mark.parametrize('options', [{}, dict(ema=.9, clip_value=.5), dict(cautious='rescaled', decoupled=False)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize('cls', [SGD, Momentum, RMSProp, Lion, NAdamW])
def test_two_rules_in_one_optimizer_are_two_optimizers_to_the_bit(cls, options, dtype, path):
    ps, qs = four(dtype), four(dtype)
    opt, two = mixed(cls, ps, **options), apart(cls, qs, **options)
    for seed in range(4):
        run(opt, ps, 1, seed)
        for p, q in zip(ps, qs, strict=True): q.grad = p.grad.clone()
        for o in two: o.step()
    assert same([p.detach() for p in ps], [q.detach() for q in qs])
    owners = [two[0], two[0], two[1], two[1]]
    assert same([dict(opt.state[p]) for p in ps], [dict(o.state[q]) for o, q in zip(owners, qs, strict=True)])
    assert [line.split(':')[0] for line in opt.path.splitlines()] == [f'{cls.__name__}, {path}', f'AdamW, {path}']


@pytest.mark.parametrize('options', ['plain', 'l2', 'value', 'ema', 'cautious'])
def test_each_of_two_rules_is_its_equation_on_python_floats(options):
    worst = mixed_errors(Momentum, AdamW, OPTIONS[options])
    assert worst <= 1e-12


def mixed_errors(cls, other, options, steps=30):
    rng = np.random.default_rng(0)
    a, b = starting(rng, torch.float64), starting(rng, torch.float64)
    opt = cls([dict(params=a), dict(params=b, rule=other)], lr=1., **options)
    oracles = [[Oracle(c, options, x) for x in flat(ps).tolist()] for c, ps in ((cls, a), (other, b))]
    for _ in range(steps):
        for c, ps, group, hs in zip((cls, other), (a, b), opt.param_groups, oracles, strict=True):
            hypers = drawn(rng, c)
            move(group, hypers)
            give_gradients(rng, ps)
            for h, g in zip(hs, flat(p.grad for p in ps).tolist(), strict=True): h.step(g, hypers)
        opt.step()
    return max(error(flat(ps), [h.p for h in hs]) for ps, hs in zip((a, b), oracles, strict=True))


def test_clipping_by_norm_takes_the_norm_over_the_groups_of_all_rules():
    ps, qs = four(), four()
    opt, two = mixed(Momentum, ps, clip_norm=.5), apart(Momentum, qs)
    run(opt, ps, 1)
    for p, q in zip(ps, qs, strict=True): q.grad = p.grad.clone()
    nn.utils.clip_grad_norm_(qs, .5)
    for o in two: o.step()
    assert all(torch.allclose(p, q, rtol=1e-5) for p, q in zip(ps, qs, strict=True))


def test_a_group_has_the_hyperparameters_of_its_own_rule_and_shares_only_lr_and_wd():
    def scaled(p, g, *, lr, scale): return p - lr*scale*g
    opt = Momentum([dict(params=[param(1)]), dict(params=[param(2)], rule=AdamW),
                    dict(params=[param(3)], rule=Lion, lr=3.), dict(params=[param(1)], rule=Momentum)],
                   lr=.5, wd=.25, mom=.7)
    groups = [{k: v for k, v in g.items() if k != 'params'} for g in opt.param_groups]
    momentum = dict(lr=.5, weight_decay=.25, momentum=.7)
    assert groups == [momentum, dict(rule=AdamW, lr=.5, weight_decay=.25, betas=(.9, .999), eps=1e-8),
                      dict(rule=Lion, lr=3., weight_decay=.25, betas=(.9, .99)), momentum]
    opt.step()
    names = [set(opt.state[g['params'][0]]) - {'step'} for g in opt.param_groups]
    assert names == [{'momentum_buffer'}, {'exp_avg', 'exp_avg_sq'}, {'exp_avg'}, {'momentum_buffer'}]
    rows = [row.split()[3:5] for row in groups_table(opt).splitlines()]
    assert rows[:3] == [['rule', 'lr'], ['Momentum', '0.5'], ['AdamW', '0.5']]
    assert 'AdamW' in groups_table(opt)
    before = snapshot(opt)
    for wrong, says in ((dict(beta1=1.), 'AdamW: beta1 is the weight of an average'), (dict(betas=(.9,)), '2 numbers'),
                        (dict(lr=-1.), 'AdamW: lr must be 0 or more')):
        with pytest.raises(ValueError, match=says): opt.add_param_group(dict(params=[param(1)], rule=AdamW) | wrong)
    for rule in ('AdamW', torch.optim.AdamW, RuleOptimizer, None):
        with pytest.raises(TypeError, match="a group's rule must be an optimizer class"):
            opt.add_param_group(dict(params=[param(1)], rule=rule))
    with pytest.raises(TypeError, match='Scaled has no default for scale: give it in the group'):
        opt.add_param_group(dict(params=[param(1)], rule=optimizer(scaled)))
    assert same(snapshot(opt), before)


@pytest.mark.parametrize('double', [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_an_optimizer_of_two_rules_is_copied_and_continues_to_the_same_bits(double):
    ps = four()
    opt = run(mixed(NAdamW, ps, ema=.9, state='bf16'), ps, 3)
    other = double(opt)
    qs = [q for g in other.param_groups for q in g['params']]
    run(opt, ps, 3, 9), run(other, qs, 3, 9)
    assert same(everything(opt, ps), everything(other, qs))


def test_the_state_dict_of_two_rules_names_them_and_loads_only_where_they_are_the_same():
    ps, qs = four(), four()
    opt, other = run(mixed(Lion, ps), ps, 3), mixed(Lion, qs)
    saved = copy.deepcopy(opt.state_dict())
    assert [g['rule'] for g in saved['param_groups']] == ['Lion', 'AdamW']
    other.load_state_dict(saved)
    assert [g.get('rule') for g in other.param_groups] == [None, AdamW]
    for p, q in zip(ps, qs, strict=True): q.data = p.detach().clone()
    run(opt, ps, 3, 9), run(other, qs, 3, 9)
    assert same(everything(opt, ps), everything(other, qs))
    one = Lion([dict(params=qs[:2]), dict(params=qs[2:])], lr=.1)
    with pytest.raises(ValueError, match='group 1 of the state_dict has the rule AdamW, here it has Lion'):
        one.load_state_dict(saved)
    with pytest.raises(ValueError, match='group 1 of the state_dict has the rule Lion, here it has AdamW'):
        other.load_state_dict(one.state_dict())


def test_a_group_may_change_its_rule_between_steps():
    ps = four()
    opt = run(Momentum([dict(params=ps[:2]), dict(params=ps[2:])], lr=.1), ps, 2)
    opt.param_groups[1] |= dict(rule=SGD)
    before = ps[2].detach().clone()
    run(opt, ps, 1)
    assert torch.allclose(ps[2], before - .1*ps[2].grad)
    assert 'SGD, fused: 2 parameters' in opt.path


# Other libraries

def test_libraries_may_clip_gradients_because_a_gradscaler_unscales_them_before_the_step():
    "Lightning and Fabric refuse to clip for optimizers with this mark, which torch's fused ones have."
    assert not getattr(AdamW([param(1)]), '_step_supports_amp_scaling', False)


def test_the_optimizer_inside_wrappers_is_found():
    class Wrapper:
        def __init__(self, opt): self.optimizer = opt
        def step(self): self.optimizer.step()
    opt, other = AdamW([param(1)]), object()
    assert inner_optimizer(Wrapper(Wrapper(opt))) is Wrapper(opt).optimizer is inner_optimizer(opt) is opt
    assert inner_optimizer(other) is other


def halving(p, g, *, t, lr): return p*.5 - lr*g


Halving = optimizer(halving, 'AnotherName')


def test_an_optimizer_made_from_a_rule_is_pickled_even_as_the_rule_of_a_group():
    ps = [param(3), param(2)]
    opt = SGD([dict(params=ps[:1]), dict(params=ps[1:], rule=Halving)], .1)
    for one in (opt, Halving(ps, .1)):
        other = pickle.loads(pickle.dumps(one))
        assert [type(other).__name__, len(other.param_groups)] == [type(one).__name__, len(one.param_groups)]
        p = other.param_groups[-1]['params'][-1]
        want, p.grad = p.detach()*.5 - .1, torch.ones_like(p)
        other.step()
        torch.testing.assert_close(p.detach(), want)
