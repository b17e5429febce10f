"The optimizer classes: the notebook's mathematics over many steps, small problems trained, user-written rules."
import inspect
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import formulas
import miniai.optim
import miniai.sgd
from miniai import BatchSchedCB, MetricsCB, TrainLearner, accuracy, fashion_mnist, image_loaders
from miniai.activations import set_seed
from miniai.init import get_model, init_weights
from miniai.models.layers import act_gr
from miniai.optim import SGD, Adam, RuleOptimizer, optimizer, rules, sign
from opts import each_class, param

GROUP = dict(lr='lr', wd='weight_decay', mom='momentum', sqr_mom='sqr_mom', eps='eps')
SHAPES = [(), (0,), (1,), (7,), (5, 3), (2, 0, 3), (2, 3, 4, 4)]


def move(group, hypers):
    for h, x in hypers.items():
        if h in GROUP: group[GROUP[h]] = x
    if 'beta1' in hypers: group['betas'] = (hypers['beta1'], hypers['beta2'])


def starting_points(rng, dtype):
    xs = [torch.tensor(rng.normal(size=s), dtype=dtype) for s in [*SHAPES, (2, 3, 4, 4)]]
    xs[-1] = xs[-1].to(memory_format=torch.channels_last)
    return [nn.Parameter(x) for x in xs]


def errors(cls, name, dtype, seed=0, steps=100):
    "For each shape, the largest relative error of `cls` against the notebook's formula, with everything moving."
    rng = np.random.default_rng(seed)
    ps = starting_points(rng, dtype)
    want, saved = [p.detach().double().numpy().copy() for p in ps], [{} for _ in ps]
    opt, worst = cls(ps, lr=1.), [0.]*len(ps)
    for t in range(1, steps+1):
        hypers = formulas.random_hypers(rng, name)
        move(opt.param_groups[0], hypers)
        for i, p in enumerate(ps):
            p.grad = torch.empty_like(p).copy_(torch.tensor(rng.normal(size=p.shape), dtype=dtype))
            want[i] = formulas.FORMULAS[name](want[i], p.grad.double().numpy(), saved[i], t, **hypers)
        opt.step()
        worst = [max(w, formulas.relative_error(p.detach(), x)) for w, p, x in zip(worst, ps, want, strict=True)]
    assert all(opt.state[p]['step'] == steps for p in ps)
    return worst


@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@each_class
def test_100_steps_are_the_notebooks_formula_with_decay_and_every_hyperparameter_moving(cls, dtype, limit):
    assert max(errors(cls, cls.__name__, dtype)) < limit


@each_class
def test_every_group_is_stepped_by_its_own_hyperparameters(cls):
    name, rng = cls.__name__, np.random.default_rng(0)
    ps = [param(3) for _ in range(3)]
    hypers = [formulas.random_hypers(rng, name) for _ in ps]
    opt = cls([dict(params=[p], **h) for p, h in zip(ps, hypers, strict=True)], lr=1.)
    want, saved = [p.detach().numpy().copy() for p in ps], [{} for _ in ps]
    for t in range(1, 6):
        opt.step()
        for i, p in enumerate(ps):
            want[i] = formulas.FORMULAS[name](want[i], p.grad.numpy(), saved[i], t, **hypers[i])
    assert max(formulas.relative_error(p.detach(), x) for p, x in zip(ps, want, strict=True)) < 1e-12


@pytest.mark.parametrize('mistake', ['coupled decay', 'no decay', 'late decay', 'late lr', 'no state'])
@each_class
def test_the_comparison_finds_a_wrong_class(cls, mistake):
    late = []
    class Wrong(cls):
        def step(self, closure=None):
            group, ps = self.param_groups[0], [p for p in self.param_groups[0]['params'] if p.numel()]
            kept = dict(group)
            if mistake != 'no state': group.update({} if mistake == 'late lr' else dict(weight_decay=0.))
            if mistake == 'coupled decay':
                for p in ps: p.grad = p.grad + kept['weight_decay']*p.detach()
            if mistake == 'late lr':
                late.append(group['lr'])
                group['lr'] = late[max(len(late)-2, 0)]
            if mistake == 'no state':
                for s in self.state.values():
                    for k, x in s.items():
                        if k != 'step': x.zero_()
            super().step(closure)
            if mistake == 'late decay':
                for p in ps: p.data *= 1 - kept['lr']*kept['weight_decay']
            group.update(kept)
    if cls is SGD and mistake in ('no state', 'coupled decay'): return  # these make no difference to plain SGD
    assert max(errors(Wrong, cls.__name__, torch.float64, steps=10)) > 1e-5


@each_class
def test_without_decay_the_parameter_is_not_touched_before_the_rule(cls):
    p = param(5)
    p.grad = torch.zeros_like(p)
    before = p.detach().clone()
    cls([p], lr=.1).step()
    assert torch.equal(p, before)
    cls([p], lr=.1, wd=.5).step()
    assert torch.equal(p, before*(1-.1*.5))


def rosenbrock(x, y): return (1-x)**2 + 100*(y-x**2)**2
def its_gradient(x, y): return [-2*(1-x) - 400*x*(y-x**2), 200*(y-x**2)]


VALLEY = dict(SGD=(1e-3, .05), Momentum=(1e-3, .05), HeavyBall=(1e-3, 1e-10), Nesterov=(1e-3, 1e-10),
              RMSProp=(1e-3, .01), Adagrad=(.3, .01), Adam=(1e-2, 1e-4), AdamW=(1e-2, 1e-8), NAdamW=(1e-2, 1e-4),
              Lion=(1e-3, 1e-3), RAdam=(3e-3, 1e-3), ADOPT=(1e-2, 1e-8), AdEMAMix=(1e-2, 1e-3))
# The others are torch's, step by step
IMAGES = dict(SGD=.3, Momentum=1., RMSProp=3e-3, Adam=.01, Lion=1e-3, ADOPT=3e-3, AdEMAMix=3e-3)


@pytest.mark.parametrize('name', IMAGES)
def test_rules_that_torch_does_not_have_reach_80_percent_on_fashion_mnists_sample_in_two_epochs(name):
    set_seed(1)
    dls = image_loaders(fashion_mnist(source='sample', quiet=True), bs=128, seed=1)
    model = get_model(act_gr, norm=nn.BatchNorm2d).apply(partial(init_weights, leaky=.1))
    cosine = BatchSchedCB(partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=2*len(dls.train)))
    learn = TrainLearner(model, dls, nn.functional.cross_entropy, lr=IMAGES[name],
                         cbs=[MetricsCB(accuracy=accuracy), cosine], opt_func=getattr(miniai.optim, name))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    learn.fit(2)
    torch.set_num_threads(before)
    assert learn.history[-1]['accuracy'] >= .8


@pytest.mark.parametrize('name', VALLEY)
def test_every_rule_descends_rosenbrocks_valley(name):
    lr, limit = VALLEY[name]
    w = nn.Parameter(torch.tensor([-1., 1.], dtype=torch.float64))
    opt = getattr(miniai.optim, name)([w], lr=lr, wd=0.)
    assert rosenbrock(*w.tolist()) == 4
    for _ in range(3000):
        w.grad = torch.tensor(its_gradient(*w.tolist()), dtype=torch.float64)
        opt.step()
    assert rosenbrock(*w.tolist()) < limit


@each_class
def test_a_class_has_its_rule_and_a_docstring_and_is_in_both_modules(cls):
    assert cls.rule is getattr(rules, cls.__name__.lower())
    assert cls.spec.rule is cls.rule
    assert f'{cls.__name__}(params, lr, wd=0.' in cls.__doc__
    assert getattr(miniai.optim, cls.__name__) is getattr(miniai.sgd, cls.__name__) is cls
    assert {cls.__name__} <= set(miniai.optim.__all__) & set(miniai.sgd.__all__)
    assert issubclass(cls, torch.optim.Optimizer)


@each_class
def test_a_printed_optimizer_shows_its_name_and_hyperparameters(cls):
    shown = repr(cls([param(1)], lr=.25, wd=.5))
    assert shown.startswith(f'{cls.__name__} (')
    assert 'lr: 0.25' in shown
    assert 'weight_decay: 0.5' in shown


# User-written rules

def lion(p, g, avg, *, lr, beta1=.9, beta2=.99):
    "Lion (Chen et al. 2023)."
    step = sign(beta1*avg + (1-beta1)*g)
    return p - lr*step, beta2*avg + (1-beta2)*g


class Lion(RuleOptimizer):
    rule = lion


def test_a_subclass_with_the_notebooks_opt_step_is_an_error():
    with pytest.raises(TypeError, match='defines opt_step, which is never called: write the update as a rule'):
        type('Mine', (SGD,), dict(opt_step=lambda self, p: None))


def test_a_rule_becomes_an_optimizer_by_class_or_by_call():
    start, gs = torch.randn(4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    p, avg = start.numpy().copy(), 0.
    for g in gs.numpy():
        u = .8*avg + .2*g
        p, avg = p*(1-.1*.3) - .1*((u > 0)*1. - (u < 0)*1.), .95*avg + .05*g
    Called = optimizer(lion)
    for cls in (Lion, Called):
        assert list(inspect.signature(cls).parameters)[:6] == ['params', 'lr', 'wd', 'beta1', 'beta2', 'decoupled']
        x = nn.Parameter(start.clone())
        opt = cls([x], .1, .3, .8, beta2=.95)
        for g in gs:
            x.grad = g.clone()
            opt.step()
        assert x.tolist() == pytest.approx(p, rel=1e-12)
        assert opt.state[x]['avg'].tolist() == pytest.approx(avg, rel=1e-12)
    assert (Called.__name__, Called.__doc__, Called.__module__) == ('Lion', lion.__doc__, __name__)


def test_optimizer_takes_a_name_or_capitalises_the_rules():
    def my_rule(p, g, *, lr): return p - lr*g
    assert optimizer(my_rule).__name__ == 'MyRule'
    assert optimizer(my_rule, 'Mine').__name__ == 'Mine'
    assert optimizer(partial(rules.momentum, mom=.5), 'Half')([param(1)], lr=.1).param_groups[0]['momentum'] == .5
    assert issubclass(optimizer(partial(rules.momentum, mom=.5)), RuleOptimizer)


def test_a_rule_may_have_a_default_rate_and_hyperparameters_without_default():
    def rated(p, g, *, lr=.5): return p - lr*g
    assert optimizer(rated)([param(1)]).param_groups[0]['lr'] == .5
    def scaled(p, g, *, lr, scale): return p - lr*scale*g
    p = param(2)
    want = p.detach() - .1*3*p.grad
    with pytest.raises(TypeError, match='scale'): optimizer(scaled)([p], lr=.1)
    optimizer(scaled)([p], lr=.1, scale=3.).step()
    assert torch.allclose(p, want, rtol=1e-14)


def test_a_subclass_without_a_rule_inherits_one():
    class Mine(Adam): pass
    assert Mine.spec is Adam.spec
    assert Mine([param(1)], .1).param_groups[0]['betas'] == (.9, .99)


def test_a_rule_gets_the_parameters_step_count_from_1_and_the_groups_current_hyperparameters():
    def rule(p, g, *, t, lr, mom=.5, beta1=.25): return 0*p + 1000*t + 100*lr + 10*mom + beta1
    p = param(1)
    opt = optimizer(rule)([p], lr=1)
    opt.step()
    assert p.item() == 1000 + 100 + 5 + .25
    opt.param_groups[0].update(lr=2, momentum=torch.tensor(.75), betas=[.125])
    opt.step()
    assert p.item() == 2000 + 200 + 7.5 + .125
