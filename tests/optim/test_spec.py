"A rule's signature: states, hyperparameters and defaults, and errors for functions that are not rules."
import re
from functools import partial

import pytest
import torch

from miniai.optim import RuleOptimizer, evaluated, optimizer, rules, scalars, starts
from miniai.optim.spec import REQUIRED, by_names, read_rule


def test_names_after_p_and_g_are_state_and_keyword_only_names_hyperparameters_in_order():
    def rule(p, g, a, b, *, lr, k=2., beta1=.5): return p, a, b
    spec = read_rule(rule)
    assert spec.rule is rule
    assert spec.states == ('a', 'b')
    assert list(spec.hypers.items()) == [('lr', REQUIRED), ('k', 2.), ('beta1', .5)]
    assert spec.supplied == ()
    assert spec.starts == {}


def test_t_is_the_step_count_not_a_hyperparameter():
    spec = read_rule(rules.adam)
    assert spec.supplied == ('t',)
    assert 't' not in spec.hypers


def test_betas_are_the_numbered_ones_in_the_rules_order():
    def rule(p, g, *, lr, beta1=.1, beta2=.2, beta=.3, beta3=.4): return p
    assert read_rule(rule).betas == ('beta1', 'beta2', 'beta3')
    assert read_rule(rules.sgd).betas == ()


def test_betas_are_in_numerical_order_and_need_a_first_one():
    def mixed_up(p, g, *, lr, beta10=.1, beta2=.2, beta1=.3): return p
    def lone(p, g, *, lr, beta2=.99): return p
    assert read_rule(mixed_up).betas == ('beta1', 'beta2', 'beta10')
    assert read_rule(lone).betas == ()
    assert read_rule(lone).group_key('beta2') == 'beta2'


def test_a_group_keeps_hyperparameters_under_torchs_names():
    spec = read_rule(rules.adam)
    keys = dict(lr='lr', beta1='betas', beta2='betas', eps='eps', mom='momentum', wd='weight_decay')
    assert {h: spec.group_key(h) for h in keys} == keys


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
def with_wd(p, g, wd, *, lr): return p, wd
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
    (defaulted, "avg has a default, so it is a hyperparameter: write it after a lone *"),
    (star, "states is positional-only or variadic; "
           "write states as positional arguments and hyperparameters as keyword-only ones"),
    (double_star, "kw is positional-only or variadic"),
    (slash, "p, g is positional-only or variadic"),
    (with_wd, "the optimizer handles decay and counts steps: remove wd, and take the step count as a keyword-only t"),
    (with_weight_decay, "the optimizer handles decay and counts steps"),
    (with_step, "the optimizer handles decay and counts steps"),
    (odd_start, "starts() names nothing, but the states are ['avg']"),
]
@pytest.mark.parametrize(('rule', 'says'), WRONG)
def test_a_function_that_is_not_a_rule_is_an_error_that_says_why(rule, says):
    for make in (read_rule, optimizer, lambda rule: type('Mine', (RuleOptimizer,), dict(rule=rule))):
        with pytest.raises(TypeError, match=re.escape(says)): make(rule)


def test_a_rule_that_takes_wd_applies_decay_itself():
    def rule(p, g, *, lr, wd): return p - lr*g - wd
    spec = read_rule(rule)
    assert (spec.decays, spec.supplied, spec.hypers) == (True, ('wd',), dict(lr=spec.hypers['lr']))
    assert not read_rule(rules.adamw).decays
    p = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    for decoupled, want in ((True, 1 - .1*2 - .5), (False, 1 - .1*2 - .5 - .1*(2 + .5*(1 - .7)))):
        p.grad = torch.full_like(p, 2.)
        optimizer(rule)([p], .1, wd=.5, decoupled=decoupled).step()
        assert p.tolist() == pytest.approx([want]*2)


def test_a_rules_evaluation_point_takes_what_its_function_names():
    @evaluated(lambda p, a, mom: p + mom*a)
    def rule(p, g, a, *, lr, mom=.5): return p - lr*g, a
    spec = read_rule(partial(rule, mom=.2))
    assert by_names(spec.evaluated, dict(p=1., a=2., mom=.5, lr=7.)) == 2.
    assert read_rule(rules.adamw).evaluated is None


def test_scalars_are_the_last_states_and_kept_apart():
    @scalars(k=2.)
    def rule(p, g, a, k, *, lr): return p - lr*k*g, a, k/2
    spec = read_rule(rule)
    assert (spec.states, spec.scalars, spec.untraced) == (('a',), dict(k=2.), '')
    @scalars(k=2.)
    def early(p, g, k, a, *, lr): return p, k, a
    with pytest.raises(TypeError, match=r'states that scalars\(\) names must come last: k'): read_rule(early)
    @scalars(b=1.)
    def unknown(p, g, a, *, lr): return p, a
    with pytest.raises(TypeError, match=r"scalars\(\) names b, but the states are"): read_rule(unknown)


def test_a_scalar_that_depends_on_an_element_is_an_error():
    @scalars(k=1.)
    def rule(p, g, k, *, lr): return p - lr*g, k*g
    says = r"rule rule: its state k, named by scalars\(\), must be one number per parameter, but depends on an element"
    with pytest.raises(TypeError, match=says): read_rule(rule)


def test_scalars_are_matched_by_name_and_must_be_numbers():
    @scalars(b=10., a=1.)
    def rule(p, g, a, b, *, lr): return p - lr*b, a*2, b
    assert list(read_rule(rule).scalars.items()) == [('a', 1.), ('b', 10.)]
    with pytest.raises(TypeError, match=r"scalars\(\) takes numbers, the first values of states, got {'a': 'x'}"):
        scalars(a='x')


def test_a_partial_of_a_rule_keeps_its_starts_and_scalars():
    assert read_rule(partial(rules.nadamw, beta1=.8)).scalars == dict(mu_product=1.)
    assert set(read_rule(partial(partial(rules.rmsprop, eps=1.), sqr_mom=.5)).starts) == {'sqr_avg'}


@pytest.mark.parametrize('name', ['g_scale', 'ema', 'ema_decay', 'tail', 'radius', 'hyperball', 'clip_value',
                                  'clip_norm', 'state', 'seed', 'rule'])
def test_names_that_the_optimizer_uses_are_errors_as_states_and_hyperparameters(name):
    state, hyper = (eval(f'lambda {args}: p') for args in (f'p, g, {name}, *, lr', f'p, g, *, lr, {name}=1.'))
    for rule in (state, hyper):
        with pytest.raises(TypeError, match=f"the optimizer uses the name {name} itself: choose another one"):
            read_rule(rule)


def test_a_key_is_for_random_numbers_and_keeps_a_rule_from_being_traced():
    def rule(p, g, *, key, lr): return p - lr*g*key
    spec = read_rule(rule)
    assert spec.supplied == ('key',)
    assert list(spec.hypers) == ['lr']
    assert spec.untraced == 'rule cannot be traced: it draws random numbers'
