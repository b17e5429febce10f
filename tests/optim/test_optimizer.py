"Every optimizer is a real torch.optim.Optimizer: arguments, groups, what is refused, and what a step does."
import copy
import inspect
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai.optim import SGD, Adam, Momentum, RMSProp, RuleOptimizer, optimizer
from opts import CLASSES, each_class, net, param, same, train


def snapshot(opt):
    "Everything that a refused call must leave as it was."
    ps = [p for g in opt.param_groups for p in g['params']]
    state = {i: {k: copy.deepcopy(v) for k, v in opt.state[p].items()} for i, p in enumerate(ps) if p in opt.state}
    groups = [{k: v for k, v in g.items() if k != 'params'} for g in opt.param_groups]
    return [p.detach().clone() for p in ps], state, groups


# Arguments and groups

def test_arguments_are_the_notebooks_in_its_order():
    args = {SGD: 'params lr wd', Momentum: 'params lr wd mom', RMSProp: 'params lr wd sqr_mom eps',
            Adam: 'params lr wd beta1 beta2 eps'}
    options = ['decoupled', 'clip_norm', 'clip_value', 'skip_nonfinite', 'cautious', 'ema', 'state', 'rounding', 'seed']
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
def test_a_hyperparameter_given_by_two_names_is_refused(cls, twice):
    with pytest.raises(TypeError, match='same hyperparameter'): cls([dict(params=[param(1)], **twice)], lr=.1)


@pytest.mark.parametrize('betas', [(.9,), (.9, .99, .999), (), .9])
def test_betas_of_another_number_than_the_rules_are_refused(betas):
    with pytest.raises((TypeError, ValueError), match='betas'): Adam([dict(params=[param(1)], betas=betas)], lr=.1)


@each_class
@pytest.mark.parametrize(('wrong', 'says'), [
    (dict(lr=-.1), 'lr must be 0 or more, got -0.1'), (dict(lr=math.nan), 'lr must be 0 or more, got nan'),
    (dict(wd=-1.), 'wd must be 0 or more, got -1.0'), (dict(wd=math.nan), 'wd must be 0 or more, got nan')])
def test_a_negative_or_nan_rate_or_decay_is_refused_and_changes_nothing(cls, wrong, says):
    with pytest.raises(ValueError, match=f'{cls.__name__}: {says}'): cls([param(1)], **dict(lr=.1) | wrong)
    opt = cls([param(2)], lr=.1)
    opt.step()
    before = snapshot(opt)
    with pytest.raises(ValueError, match=says): opt.add_param_group(dict(params=[param(1)], **wrong))
    assert same(snapshot(opt), before)


@pytest.mark.parametrize(('cls', 'name'), [(Momentum, 'mom'), (RMSProp, 'sqr_mom'), (Adam, 'beta1'), (Adam, 'beta2')])
@pytest.mark.parametrize('value', [1., 1.5, -.1, math.nan])
def test_the_weight_of_an_average_must_lie_from_0_to_below_1(cls, name, value):
    says = f'{name} is the weight of an average and must be below 1' if value >= 1 else f'{name} must be 0 or more'
    with pytest.raises(ValueError, match=says): cls([param(1)], lr=.1, **{name: value})
    with pytest.raises(ValueError, match=says): cls([dict(params=[param(1)], **{name: value})], lr=.1)
    cls([param(1)], lr=.1, **{name: 0.})


@pytest.mark.parametrize('cls', [RMSProp, Adam])
def test_a_negative_eps_is_refused(cls):
    says = f'{cls.__name__}: eps must be 0 or more, got -1e-05'
    with pytest.raises(ValueError, match=says): cls([param(1)], lr=.1, eps=-1e-5)


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


# What is refused

@each_class
def test_a_complex_parameter_is_refused_with_the_way_out_and_changes_nothing(cls):
    z = nn.Parameter(torch.zeros(2, 3, dtype=torch.complex64))
    says = re.escape(f'{cls.__name__} has no complex arithmetic, and a parameter of shape (2, 3) is torch.complex64: '
                     'pass torch.view_as_real of it')
    with pytest.raises(TypeError, match=says): cls([param(1), z], lr=.1)
    opt = cls([param(2)], lr=.1)
    opt.step()
    before = snapshot(opt)
    with pytest.raises(TypeError, match=says): opt.add_param_group(dict(params=[param(1), z]))
    assert same(snapshot(opt), before)


@each_class
def test_a_sparse_gradient_is_refused_before_anything_changes(cls):
    emb, first = nn.Embedding(5, 2, sparse=True), param(3, dtype=torch.float32)
    opt = cls([dict(params=[first]), dict(params=emb.parameters())], lr=.1)
    opt.step()
    emb(torch.tensor([1, 1, 3])).sum().backward()
    before, grad = snapshot(opt), emb.weight.grad.clone()
    says = r'shape \(5, 2\) has a sparse gradient.*sparse=False.*torch.optim.SparseAdam'
    with pytest.raises(TypeError, match=says): opt.step()
    assert same(snapshot(opt), before)
    assert torch.equal(emb.weight.grad.to_dense(), grad.to_dense())


def test_the_base_class_alone_says_that_it_has_no_rule():
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
def test_a_rate_given_as_a_tensor_counts_as_its_value_at_each_step(cls):
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


shapes = st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=5)


@each_class
@given(shapes=shapes, data=st.data())
@settings(max_examples=25)
def test_neither_the_order_of_parameters_nor_their_grouping_changes_a_bit(cls, shapes, data):
    ps = [param(*s) for s in shapes]
    qs = [nn.Parameter(p.detach().clone()) for p in ps]
    order = data.draw(st.permutations(qs))
    cut = data.draw(st.integers(0, len(qs)))
    groups = [dict(params=x) for x in (order[:cut], order[cut:]) if x]
    one, many = cls(ps, lr=.1, wd=.2), cls(groups, lr=.1, wd=.2)
    for _ in range(3):
        for p, q in zip(ps, qs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        one.step()
        many.step()
    assert all(torch.equal(p, q) and same(one.state[p], many.state[q]) for p, q in zip(ps, qs, strict=True))
