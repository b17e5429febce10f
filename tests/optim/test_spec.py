"What a rule's signature says, and what it is told where it is no rule."
import re
from functools import partial

import pytest
import torch

from miniai.optim import RuleOptimizer, optimizer, rules, scalars, sqrt, starts
from miniai.optim.spec import REQUIRED, read_rule


def test_names_after_p_and_g_are_state_and_keyword_only_names_hyperparameters_in_order():
    def rule(p, g, a, b, *, lr, k=2., beta1=.5): return p, a, b
    spec = read_rule(rule)
    assert spec.rule is rule
    assert spec.states == ('a', 'b')
    assert list(spec.hypers.items()) == [('lr', REQUIRED), ('k', 2.), ('beta1', .5)]
    assert not spec.uses_t
    assert spec.starts == {}


def test_t_is_the_step_count_and_no_hyperparameter():
    spec = read_rule(rules.adam)
    assert spec.uses_t
    assert 't' not in spec.hypers


def test_betas_are_the_numbered_ones_in_the_rules_order():
    def rule(p, g, *, lr, beta1=.1, beta2=.2, beta=.3, beta3=.4): return p
    assert read_rule(rule).betas == ('beta1', 'beta2', 'beta3')
    assert read_rule(rules.sgd).betas == ()


def test_a_group_keeps_hyperparameters_by_torchs_names_where_torch_has_one():
    spec = read_rule(rules.adam)
    keys = dict(lr='lr', beta1='betas', beta2='betas', eps='eps', mom='momentum', wd='weight_decay')
    assert {h: spec.group_key(h) for h in keys} == keys


def test_hypers_come_out_of_a_group_as_python_floats():
    found = read_rule(rules.adam).hypers_of(dict(lr=1, betas=[0, 1], eps=2, other='x'))
    assert found == dict(lr=1., beta1=0., beta2=1., eps=2.)
    assert {type(x) for x in found.values()} == {float}
    assert read_rule(rules.momentum).hypers_of(dict(lr=1, momentum=.5)) == dict(lr=1., mom=.5)


def test_starts_are_read_from_the_rule():
    def first(p, g): return g
    @starts(a=first)
    def rule(p, g, a, *, lr): return p, a
    assert read_rule(rule).starts == dict(a=first)


def test_a_partial_of_a_rule_is_a_rule_with_another_default():
    assert read_rule(partial(rules.momentum, mom=.5)).hypers['mom'] == .5


def no_p(x, g, *, lr): return x
def only_p(p, *, lr): return p
def swapped(g, p, *, lr): return p
def no_lr(p, g): return p
def lr_by_place(p, g, lr): return p
def defaulted(p, g, avg=0., *, lr): return p, avg
def star(p, g, *states, lr): return p
def double_star(p, g, *, lr, **kw): return p
def slash(p, g, /, *, lr): return p
def with_wd(p, g, *, lr, wd=.1): return p
def with_step(p, g, step, *, lr): return p, step
def with_weight_decay(p, g, *, lr, weight_decay=.1): return p


@starts(nothing=lambda p, g: p)
def odd_start(p, g, avg, *, lr): return p, avg


WRONG = [
    (3, "a rule must be a function rule(p, g, …, *, lr, …), got 3"),
    (None, "a rule must be a function rule(p, g, …, *, lr, …), got None"),
    (no_p, "rule no_p(x, g, *, lr): the first two arguments must be p and g, the parameter and its gradient"),
    (only_p, "the first two arguments must be p and g"),
    (swapped, "the first two arguments must be p and g"),
    (no_lr, "rule no_lr(p, g): it needs a keyword-only lr, the learning rate: rule(p, g, *, lr)"),
    (lr_by_place, "it needs a keyword-only lr"),
    (defaulted, "avg has a default, as hyperparameters do: write them after a lone *"),
    (star, "states is positional-only or variadic; "
           "state comes as positional names, hyperparameters as keyword-only ones"),
    (double_star, "kw is positional-only or variadic"),
    (slash, "p, g is positional-only or variadic"),
    (with_wd, "decay and the step count are the optimizer's: leave out wd, and take the count as a keyword-only t"),
    (with_weight_decay, "decay and the step count are the optimizer's"),
    (with_step, "decay and the step count are the optimizer's"),
    (odd_start, "starts() names nothing, which is none of its states ['avg']"),
]
each_wrong = pytest.mark.parametrize(('rule', 'says'), WRONG)


@each_wrong
def test_what_is_no_rule_is_told_why(rule, says):
    with pytest.raises(TypeError, match=re.escape(says)): read_rule(rule)


@each_wrong
def test_an_optimizer_of_what_is_no_rule_is_refused_in_the_same_words(rule, says):
    with pytest.raises(TypeError, match=re.escape(says)): optimizer(rule)


@each_wrong
def test_a_class_of_what_is_no_rule_is_refused_where_it_is_written(rule, says):
    with pytest.raises(TypeError, match=re.escape(says)): type('Mine', (RuleOptimizer,), dict(rule=rule))


def test_states_that_are_one_number_come_last_and_are_kept_apart():
    @scalars(k=2.)
    def rule(p, g, a, k, *, lr): return p - lr*k*g, a, k/2
    spec = read_rule(rule)
    assert (spec.states, spec.scalars, spec.untraced) == (('a',), dict(k=2.), '')
    @scalars(k=2.)
    def early(p, g, k, a, *, lr): return p, k, a
    with pytest.raises(TypeError, match='states that are one number, k, come last'): read_rule(early)
    @scalars(b=1.)
    def unknown(p, g, a, *, lr): return p, a
    with pytest.raises(TypeError, match=r"scalars\(\) names b, which is none of its states"): read_rule(unknown)


def test_a_number_that_comes_from_an_element_is_told_so():
    @scalars(k=1.)
    def rule(p, g, k, *, lr): return p - lr*g, k*g
    says = r"rule rule: its state k, which scalars\(\) says is one number a parameter, comes from an element"
    with pytest.raises(TypeError, match=says): read_rule(rule)


def test_a_rule_that_branches_is_named():
    def mine(p, g, *, lr): return p if g > 0 else p - lr*g
    with pytest.raises(TypeError, match='rule mine: a rule may not branch on an element'): read_rule(mine)


def test_scalars_are_matched_by_name_whatever_their_order_and_must_be_numbers():
    @scalars(b=10., a=1.)
    def rule(p, g, a, b, *, lr): return p - lr*b, a*2, b
    assert list(read_rule(rule).scalars.items()) == [('a', 1.), ('b', 10.)]
    with pytest.raises(TypeError, match=r"scalars\(\) takes numbers that states start at, got {'a': 'x'}"):
        scalars(a='x')


def test_a_partial_of_a_rule_keeps_what_its_decorators_said():
    assert read_rule(partial(rules.nadamw, beta1=.8)).scalars == dict(mu_product=1.)
    assert set(read_rule(partial(partial(rules.rmsprop, eps=1.), sqr_mom=.5)).starts) == {'sqr_avg'}


@pytest.mark.parametrize('name', ['g_scale', 'share', 'ema', 'ema_decay', 'clip_value', 'clip_norm', 'state', 'seed'])
def test_names_that_the_optimizer_uses_itself_are_refused_as_states_and_hyperparameters(name):
    state, hyper = (eval(f'lambda {args}: p') for args in (f'p, g, {name}, *, lr', f'p, g, *, lr, {name}=1.'))
    for rule in (state, hyper):
        with pytest.raises(TypeError, match=f"{name} is a name of the optimizer's own: call it something else"):
            read_rule(rule)


@pytest.mark.parametrize('rule', [
    lambda p, g, *, lr: p - lr*((g > 0) + (p > -5)), lambda p, g, *, lr: p - lr*abs(g > 0),
    lambda p, g, *, lr: p - lr*-(g > 0), lambda p, g, *, lr: p - lr*sqrt(g > 0), lambda p, g, *, lr: p - lr*(g > 0)**2])
def test_arithmetic_with_a_comparison_is_refused_and_where_is_named(rule):
    with pytest.raises(TypeError, match='may not compute with a comparison: write where'): read_rule(rule)


def test_a_long_computation_over_hyperparameters_is_written_once_a_step_of_it():
    def rule(p, g, *, lr, n=1.):
        y, c = lr, lr
        for _ in range(150): y, c = y*(1.5 - 0.5*n*y*y), c*n + lr
        return p - y*g*c
    assert read_rule(rule).untraced == ''
    p, q = (torch.nn.Parameter(torch.full((3,), 2., dtype=torch.float64)) for _ in range(2))
    p.grad = torch.ones_like(p)
    optimizer(rule)([p], lr=.1, n=.5).step()
    assert p.tolist() == pytest.approx(rule(q, p.grad, lr=.1, n=.5).tolist(), rel=1e-12)
