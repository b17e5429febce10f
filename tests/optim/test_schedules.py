"Schedules: every scheduler of torch on our optimizers, gradient scaling, and schedules drawn before training."
import math
import pickle
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as ls

import formulas
from miniai.optim import SGD, Adam, Momentum, RMSProp, optimizer, plot_schedule, warmup_cosine
from miniai.optim.schedules import most_steps, trace_schedule
from opts import each_class, param

STEPS = 12
PEER = {SGD: torch.optim.SGD, RMSProp: torch.optim.SGD,
        Momentum: lambda ps, **kw: torch.optim.SGD(ps, momentum=.9, **kw),
        Adam: lambda ps, **kw: torch.optim.AdamW(ps, betas=(.9, .99), **kw)}


def cycles(opt): return opt.defaults.get('momentum', 0) > 0 or 'betas' in opt.defaults
def one_cycle(opt): return ls.OneCycleLR(opt, [.5, .25], total_steps=STEPS, cycle_momentum=cycles(opt))


MAKE = dict(
    LambdaLR=lambda o: ls.LambdaLR(o, [lambda i: 1/(1+i), lambda i: .9**i]),
    MultiplicativeLR=lambda o: ls.MultiplicativeLR(o, lambda i: .8),
    StepLR=lambda o: ls.StepLR(o, 3), MultiStepLR=lambda o: ls.MultiStepLR(o, [2, 5], gamma=.5),
    ConstantLR=lambda o: ls.ConstantLR(o, .3, total_iters=4), LinearLR=lambda o: ls.LinearLR(o, .1, total_iters=6),
    ExponentialLR=lambda o: ls.ExponentialLR(o, .7), PolynomialLR=lambda o: ls.PolynomialLR(o, 8, power=2.),
    SequentialLR=lambda o: ls.SequentialLR(o, [ls.LinearLR(o, .1, total_iters=4), ls.ExponentialLR(o, .9)], [4]),
    CosineAnnealingLR=lambda o: ls.CosineAnnealingLR(o, STEPS, eta_min=.01),
    ChainedScheduler=lambda o: ls.ChainedScheduler([ls.ConstantLR(o, .5, total_iters=3), ls.ExponentialLR(o, .9)], o),
    ReduceLROnPlateau=lambda o: ls.ReduceLROnPlateau(o, patience=2),
    CyclicLR=lambda o: ls.CyclicLR(o, .01, .5, step_size_up=3, cycle_momentum=cycles(o)),
    CosineAnnealingWarmRestarts=lambda o: ls.CosineAnnealingWarmRestarts(o, 4, T_mult=2), OneCycleLR=one_cycle)
each_scheduler = pytest.mark.parametrize('name', MAKE)


def advance(sched): return sched.step(1.) if isinstance(sched, ls.ReduceLROnPlateau) else sched.step()
def two_groups(): return [dict(params=[param(3)]), dict(params=[param(2)], lr=.3)]


def sequence(opt, make, steps=STEPS):
    "What the scheduler writes into both groups, from before the first step to after the last."
    sched, rows = make(opt), []
    for i in range(steps + 1):
        rows.append([(g['lr'], g.get('momentum'), g.get('betas')) for g in opt.param_groups])
        if i == steps: return rows
        opt.step()
        advance(sched)


def test_all_schedulers_of_torch_are_tested():
    public = {n for n in ls.__all__ if isinstance(getattr(ls, n), type)} - {'LRScheduler'}
    assert set(MAKE) == public


@each_scheduler
@each_class
def test_every_scheduler_writes_what_it_writes_on_torchs_own_optimizer(cls, name):
    ours, theirs = (sequence(f(two_groups(), lr=.1), MAKE[name]) for f in (cls, PEER[cls]))
    assert [[g[0] for g in row] for row in ours] == [[g[0] for g in row] for row in theirs]
    assert len({row[0][0] for row in ours}) > 1
    if cls is Momentum: assert [[g[1] for g in row] for row in ours] == [[g[1] for g in row] for row in theirs]
    if cls is Adam: assert [[g[2] for g in row] for row in ours] == [[g[2] for g in row] for row in theirs]


@pytest.mark.parametrize('name', ['OneCycleLR', 'CyclicLR'])
def test_the_cycling_schedulers_cycle_momentum_and_the_first_beta(name):
    for cls, pick in ((Momentum, lambda g: g[1]), (Adam, lambda g: g[2][0])):
        moved = [pick(row[0]) for row in sequence(cls(two_groups(), lr=.1), MAKE[name])]
        assert max(moved) > min(moved) + .04
    assert {row[0][2][1] for row in sequence(Adam(two_groups(), lr=.1), MAKE[name])} == {.99}


@pytest.mark.parametrize('cls', [SGD, RMSProp])
def test_one_cycle_needs_cycle_momentum_false_where_there_is_no_momentum(cls):
    opt = cls([param(2)], lr=.1)
    with pytest.raises(ValueError, match='cycle_momentum'): ls.OneCycleLR(opt, .5, total_steps=5)
    ls.OneCycleLR(opt, .5, total_steps=5, cycle_momentum=False)


@pytest.mark.parametrize('make', [lambda o: ls.OneCycleLR(o, .5, total_steps=5), lambda o: ls.CyclicLR(o, .01, .5)])
def test_a_lone_beta2_is_no_momentum_to_cycle(make):
    def rule(p, g, sqr_avg, *, lr, beta2=.99): return p - lr*g, beta2*sqr_avg + (1-beta2)*g*g
    opt = optimizer(rule)([param(2)], lr=.1)
    with pytest.raises(ValueError, match='cycle_momentum'): make(opt)
    assert opt.param_groups[0]['beta2'] == .99


@each_scheduler
@each_class
def test_a_step_uses_what_the_scheduler_wrote(cls, name):
    own, theirs = two_groups(), PEER[cls](two_groups(), lr=.1)
    p = own[0]['params'][0]
    opt, want, saved = cls(own, lr=.1), p.detach().double().numpy().copy(), {}
    sched, their_sched = MAKE[name](opt), MAKE[name](theirs)
    for t in range(1, STEPS+1):
        group, hypers = theirs.param_groups[0], {}
        if cls is Momentum: hypers = dict(mom=group['momentum'])
        if cls is Adam: hypers = dict(zip(('beta1', 'beta2'), group['betas'], strict=True))
        want = formulas.FORMULAS[cls.__name__](want, p.grad.numpy(), saved, t, lr=group['lr'], **hypers)
        for o, s in ((opt, sched), (theirs, their_sched)):
            o.step()
            advance(s)
    assert p.tolist() == pytest.approx(want, rel=1e-12)


@each_class
def test_a_scheduler_and_its_optimizer_continue_from_saved_state(cls):
    whole, first, second = (cls(two_groups(), lr=.1) for _ in range(3))
    rows = sequence(whole, one_cycle)
    sched = one_cycle(first)
    for _ in range(5):
        first.step()
        sched.step()
    other = one_cycle(second)
    other.load_state_dict(sched.state_dict())
    second.load_state_dict(first.state_dict())
    for row in rows[5:]:
        assert [(g['lr'], g.get('momentum'), g.get('betas')) for g in second.param_groups] == row
        if row is rows[-1]: return
        second.step()
        other.step()


# Gradient scaling

@each_class
def test_a_gradient_scaler_changes_nothing_but_skips_a_step_with_an_infinite_gradient(cls):
    p, q = param(4, dtype=torch.float32), nn.Parameter(torch.zeros(4))
    q.data, p.grad = p.detach().clone(), None
    x, plain, scaled = torch.randn(6, 4), cls([p], lr=.01, wd=.1), cls([q], lr=.01, wd=.1)
    scaler = torch.amp.GradScaler('cpu', init_scale=2.**10)
    for i in range(6):
        plain.zero_grad()
        scaled.zero_grad()
        scaler.scale(torch.sin(x[i]*q).sum()).backward()
        if i == 3:
            q.grad[1] = math.inf
            before, count = q.detach().clone(), scaled.state[q]['step']
        scaler.step(scaled)
        scaler.update()
        if i == 3:
            assert torch.equal(q, before)
            assert scaled.state[q]['step'] == count
            assert scaler.get_scale() == 2.**9
            continue
        torch.sin(x[i]*p).sum().backward()
        plain.step()
    assert torch.equal(p, q)
    assert (plain.state[p]['step'], scaled.state[q]['step']) == (5, 5)


# Drawn before training

def on(make, **kw): return lambda opt: make(opt, **kw)


def by_hand(sched, steps, opt_func, lr):
    opt = opt_func([param(1)], lr=lr)
    schedo, rows = sched(opt), []
    for _ in range(steps):
        rows.append(dict(opt.param_groups[0]))
        opt.step()
        schedo.step()
    return rows


ONE = on(ls.OneCycleLR, max_lr=.5, total_steps=10)
COSINE = on(ls.CosineAnnealingLR, T_max=10)


@pytest.mark.parametrize(('opt_func', 'key'), [(Momentum, 'momentum'), (torch.optim.AdamW, 'betas'), (Adam, 'betas')])
def test_a_traced_schedule_is_what_stepping_by_hand_gives(opt_func, key):
    traced, rows = trace_schedule(ONE, 10, opt_func, lr=.25), by_hand(ONE, 10, opt_func, .25)
    assert traced['lr'] == [r['lr'] for r in rows]
    if key == 'momentum': assert traced['momentum'] == [r['momentum'] for r in rows]
    if key == 'betas': assert list(zip(traced['beta1'], traced['beta2'], strict=True)) == [r['betas'] for r in rows]
    assert traced['weight_decay'] == [rows[0]['weight_decay']]*10
    assert {type(x) for xs in traced.values() for x in xs} == {float}


def test_a_cosine_schedule_is_half_a_cosine_from_the_rate_given():
    want = [2.*(1 + math.cos(math.pi*i/10))/2 for i in range(10)]
    assert trace_schedule(COSINE, 10, lr=2.)['lr'] == pytest.approx(want, rel=1e-12)
    assert trace_schedule(COSINE, 1)['lr'] == [1.]


def test_any_hyperparameter_of_a_user_written_scheduler_is_traced_and_drawn():
    class Decay:
        def __init__(self, opt): self.opt = opt
        def step(self): self.opt.param_groups[0]['weight_decay'] += .5
    assert trace_schedule(Decay, 3, SGD)['weight_decay'] == [0., .5, 1.]
    assert [ax.get_title() for ax in plot_schedule(Decay, 3, SGD).flat] == ['weight_decay']


def test_a_rate_that_is_a_tensor_is_traced_as_its_values():
    def tensor_rate(ps, lr): return torch.optim.AdamW(ps, lr=torch.tensor(lr, dtype=torch.float64))
    assert trace_schedule(on(ls.ExponentialLR, gamma=.5), 3, tensor_rate)['lr'] == [1., .5, .25]


def test_tracing_no_steps_gives_nothing_and_leaves_the_users_warnings_alone():
    assert trace_schedule(COSINE, 0) == {}
    opt = SGD([param(1)], lr=.1)
    sched = COSINE(opt)
    with pytest.warns(UserWarning, match='before `optimizer.step'): sched.step()


def pair(opt, first, second, at): return ls.SequentialLR(opt, [first(opt), second(opt)], [at])


LENGTHS = dict(
    endless=(COSINE, math.inf), one_cycle=(ONE, 10),
    ends_in_cycle=(lambda o: pair(o, COSINE, ONE, 4), 14),
    starts_in_short_cycle=(lambda o: pair(o, ONE, COSINE, 15), 10),
    starts_in_cycle=(lambda o: pair(o, ONE, COSINE, 5), math.inf),
    first_just_fits=(lambda o: pair(o, ONE, COSINE, 11), math.inf),
    cycle_in_the_middle=(lambda o: ls.SequentialLR(o, [COSINE(o), ONE(o), COSINE(o)], [5, 30]), 15),
    chained=(lambda o: ls.ChainedScheduler([COSINE(o), ONE(o)], o), 10), plateau=(ls.ReduceLROnPlateau, math.inf))


@pytest.mark.parametrize('kind', LENGTHS)
def test_most_steps_is_the_number_of_steps_before_the_scheduler_raises(kind):
    make, most = LENGTHS[kind]
    opt = Adam([param(1)], lr=.1)
    sched = make(opt)
    assert most_steps(sched) == most
    opt.step()
    for _ in range(min(most, 40)): advance(sched)
    if most < math.inf:
        with pytest.raises(ValueError, match='total'): advance(sched)


def test_a_schedule_shorter_than_the_steps_is_an_error():
    says = 'the schedule OneCycleLR allows 10 steps, fewer than 11'
    for look in (trace_schedule, plot_schedule):
        with pytest.raises(ValueError, match=says): look(ONE, 11)
    assert len(trace_schedule(ONE, 10)['lr']) == 10


def test_a_schedule_that_follows_the_loss_cannot_be_drawn():
    for look in (trace_schedule, plot_schedule):
        with pytest.raises(TypeError, match='ReduceLROnPlateau depends on the loss'): look(ls.ReduceLROnPlateau, 3)


def test_a_plot_has_a_panel_for_each_hyperparameter_that_moves():
    axs = plot_schedule(ONE, 10, lr=.1)
    traced = trace_schedule(ONE, 10, lr=.1)
    assert [ax.get_title() for ax in axs.flat] == ['lr', 'beta1']
    for ax in axs.flat:
        np.testing.assert_array_equal(ax.lines[0].get_ydata(), traced[ax.get_title()])
        assert list(ax.lines[0].get_xdata()) == list(range(10))
        assert ax.get_xlabel() == 'step'
    axs[0].figure.canvas.draw()


def test_a_plot_has_a_panel_for_each_name_given_and_for_lr_if_nothing_moves():
    asked = plot_schedule(ONE, 10, Momentum, names=['momentum', 'lr'])
    assert [ax.get_title() for ax in asked.flat] == ['momentum', 'lr']
    still = plot_schedule(on(ls.ConstantLR, factor=1.), 4)
    assert [ax.get_title() for ax in still.flat] == ['lr']
    assert list(still[0].lines[0].get_ydata()) == [1.]*4


def test_an_unknown_hyperparameter_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r'no hyperparameter mom, beta9; there are lr, .*weight_decay'):
        plot_schedule(COSINE, 3, SGD, names=['mom', 'lr', 'beta9'])
    with pytest.raises(ValueError, match='steps must be 1 or more, got 0'): plot_schedule(COSINE, 0)
    assert not plt.get_fignums()


@each_class
def test_a_schedule_is_drawn_on_every_class(cls):
    sched = on(ls.OneCycleLR, max_lr=1., total_steps=5, cycle_momentum=cls in (Momentum, Adam))
    titles = [ax.get_title() for ax in plot_schedule(sched, 5, cls).flat]
    assert titles == ['lr', *{Momentum: ['momentum'], Adam: ['beta1']}.get(cls, [])]


# Told their length

@pytest.mark.parametrize(('warmup', 'steps', 'rising'), [(.1, 40, 4), (0., 10, 0), (.5, 7, 4), (.1, 1, 0)])
@pytest.mark.parametrize('final', [0., .1])
def test_warmup_cosine_rises_to_the_rate_then_falls_along_half_a_cosine(warmup, steps, rising, final):
    up = [2.*(i + 1)/(rising + 1) for i in range(rising)]
    angles = np.linspace(0, np.pi, steps - rising + 1)[:-1]
    want = [*up, *2.*(final + (1 - final)*np.cos(angles/2)**2)]  # half a cosine: cos(a/2)^2 = (1 + cos a)/2
    assert trace_schedule(warmup_cosine(warmup, final), steps, lr=2.)['lr'] == pytest.approx(want, rel=1e-12)
    opt = Adam([param(1)], lr=2.)
    sched = warmup_cosine(warmup, final)(opt, steps)
    opt.step()
    for _ in range(steps + 3): sched.step()
    assert opt.param_groups[0]['lr'] == pytest.approx(2.*final, abs=1e-12)


def test_a_warmup_that_is_no_share_is_an_error_and_a_schedule_can_be_pickled():
    for bad in (-.1, 1., 500):
        with pytest.raises(ValueError, match='warmup, a share of all steps, must be in'): warmup_cosine(bad)
    again = pickle.loads(pickle.dumps(warmup_cosine(.2)))
    assert trace_schedule(again, 9) == trace_schedule(warmup_cosine(.2), 9)


def test_a_number_of_steps_that_is_given_stays():
    def sched(opt, steps=5): return ls.LinearLR(opt, .1, total_iters=steps)
    assert trace_schedule(sched, 9) == trace_schedule(partial(sched, steps=5), 9)
    assert trace_schedule(sched, 9)['lr'][5] == pytest.approx(1.)
