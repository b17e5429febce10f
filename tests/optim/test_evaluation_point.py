"Optimizers with an evaluation point: Schedule-Free against its paper's three sequences, and averages by ema."
import copy
import pickle
from functools import partial

import pytest
import torch
from torch import nn

from miniai.optim import AdamW, Muon, ScheduleFreeAdamW, ScheduleFreeSGD, rules
from miniai.optim.optimizer import inner_optimizer
from opts import eager, net, params, run, same, train
from ranks import needs_distributed, run_ranks

SHAPES = (3, 4), (5,), (), (2, 3, 3, 3), (4, 2)
CLASSES = [ScheduleFreeSGD, ScheduleFreeAdamW]
OWN = {ScheduleFreeSGD: dict(lr=.3, mom=.8), ScheduleFreeAdamW: dict(lr=.02, beta1=.85, beta2=.95, r=.5)}
each_class = pytest.mark.parametrize('cls', CLASSES)
assert eager  # a fixture


class Sequences:
    "The paper's x, y and z of one parameter, each kept by itself, in double precision."
    def __init__(self, p, adam, beta, beta2=.95, r=0., warmup=4, power=2.):
        self.x = self.y = self.z = p.detach().double().clone()
        self.adam, self.beta, self.beta2, self.r, self.warmup, self.power = adam, beta, beta2, r, warmup, power
        self.t, self.v, self.highest, self.weights = 0, torch.zeros_like(self.x), 0., 0.

    def step(self, g, lr, wd):
        self.t += 1
        g, rate = g.double(), lr*min(1, self.t/self.warmup)
        self.v = self.beta2*self.v + (1 - self.beta2)*g.square()
        if self.adam: g = g/((self.v/(1 - self.beta2**self.t)).sqrt() + 1e-8)
        self.highest = max(self.highest, rate)
        weight = self.t**self.r * self.highest**self.power
        self.weights += weight
        self.z = self.z - rate*(g + wd*self.y)
        self.x = torch.lerp(self.x, self.z, weight/self.weights)
        self.y = torch.lerp(self.z, self.x, self.beta)


def distance(ps, seqs, name):
    return max(float((p - getattr(s, name)).detach().abs().max()) for p, s in zip(ps, seqs, strict=True))


def compare(cls, dtype, steps=100):
    "The largest differences from the paper's y, and of the evaluation point from its x."
    ps, g = params(*SHAPES, dtype=dtype), torch.Generator().manual_seed(2)
    decay = [.1]*3 + [0.]*2
    adam = cls is ScheduleFreeAdamW
    seqs = [Sequences(p, adam, *((.85, .95, .5) if adam else (.8,))) for p in ps]
    opt = cls([dict(params=ps[:3], wd=.1), dict(params=ps[3:])], warmup_steps=4, **OWN[cls])
    worst = [0., 0.]
    for t in range(steps):
        lr = OWN[cls]['lr']*(1 + t % 3)/(3 + t/20)
        for group in opt.param_groups: group['lr'] = lr
        for i, (p, seq) in enumerate(zip(ps, seqs, strict=True)):
            p.grad = torch.randn(p.shape, generator=g).to(dtype) if (t + i) % 7 else None
            if p.grad is not None: seq.step(p.grad, lr, decay[i])
        opt.step()
        worst[0] = max(worst[0], distance(ps, seqs, 'y'))
        with opt.averaged(): worst[1] = max(worst[1], distance(ps, seqs, 'x'))
    return worst


@each_class
@pytest.mark.parametrize(('dtype', 'limit'), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_100_steps_are_the_papers_sequences_with_groups_missing_gradients_and_a_moving_rate(cls, dtype, limit):
    assert max(compare(cls, dtype)) < limit


@each_class
@pytest.mark.usefixtures('eager')
def test_the_eager_path_takes_them_too(cls): assert max(compare(cls, torch.float64, steps=10)) < 1e-10


@each_class
def test_without_gradients_for_some_the_weights_are_those_of_the_parameters_own_steps(cls):
    "The authors' code counts steps, and sums weights, for a whole group."
    a, b = params((3,), (3,))
    opt = cls([a, b], lr=.1)
    for i in range(4):
        a.grad, b.grad = torch.ones(3), torch.ones(3) if i % 2 else None
        opt.step()
    assert [opt.state[p]['weight_sum'] for p in (a, b)] == pytest.approx([.04, .02])


@pytest.mark.parametrize('rule', [rules.schedule_free_sgd, rules.schedule_free_adamw])
def test_a_rule_on_python_floats_gives_what_it_gives_on_tensors(rule):
    n = 2 if rule is rules.schedule_free_sgd else 3
    p, *s = (1.5, 1.5, .0)[:n] + (0., 0.)
    x, *xs = (torch.tensor(v, dtype=torch.float64) for v in (1.5, 1.5, 0.)[:n])
    xs += [0., 0.]
    for t in range(1, 20):
        p, *s = rule(p, .1*t, *s, t=t, lr=.1, wd=.3, warmup_steps=3)
        x, *xs = rule(x, torch.tensor(.1*t, dtype=torch.float64), *xs, t=t, lr=.1, wd=.3, warmup_steps=3)
        assert all(type(v) is float for v in (p, *s))
        assert [p, *s] == pytest.approx([float(v) for v in (x, *xs)], rel=1e-13)


@each_class
def test_decay_as_l2_is_added_to_the_gradient_instead(cls):
    ps, qs = params((3, 4), dtype=torch.float64), params((3, 4), dtype=torch.float64)
    opt, other = cls(ps, wd=.2, decoupled=False, **OWN[cls]), cls(qs, **OWN[cls])
    for _ in range(5):
        for p, q in zip(ps, qs, strict=True):
            p.grad = torch.cos(p.detach())
            q.grad = torch.cos(q.detach()) + .2*q.detach()
        opt.step()
        other.step()
    assert torch.allclose(ps[0], qs[0], rtol=1e-12)


# The two points

MAKE = [partial(cls, **OWN[cls]) for cls in CLASSES] + [partial(AdamW, ema=.9), partial(Muon, ema=.9)]
each_optimizer = pytest.mark.parametrize('make', MAKE)


@each_optimizer
def test_eval_shows_the_evaluation_point_and_train_puts_the_weights_back_to_the_bit(make):
    ps = params((3, 4), (5,), (2, 2))
    opt = run(make(ps), ps[:2], 3)
    before, averages = [p.detach().clone() for p in ps], opt.averages()
    for _ in range(2): opt.eval()
    assert opt.shows_averages
    assert all(torch.equal(p, averages[p].to(p.dtype)) for p in ps[:2])
    assert not torch.equal(ps[0], before[0])
    assert torch.equal(ps[2], before[2])  # it has not been stepped
    assert same(opt.averages(), averages)
    for _ in range(2): opt.train()
    assert not opt.shows_averages
    assert same([p.detach() for p in ps], before)


def test_an_optimizer_without_evaluation_point_takes_train_and_eval_too():
    ps = params((3,))
    opt = run(AdamW(ps), ps, 2)
    before = ps[0].detach().clone()
    opt.eval()
    assert torch.equal(ps[0], before)
    run(opt, ps, 1)
    opt.train()


@each_optimizer
def test_a_step_while_the_evaluation_point_is_shown_is_an_error_and_changes_nothing(make):
    ps = params((3, 4))
    opt = run(make(ps), ps, 2)
    opt.eval()
    before = copy.deepcopy(opt.state_dict())
    with pytest.raises(RuntimeError, match=r'where opt.eval\(\) put them: call opt.train\(\) before the next batch'):
        opt.step()
    assert same(opt.state_dict(), before)


class Wrapper:
    "A wrapper as Lightning makes them: of a class that inherits from the optimizer's, with attributes read from it."
    def __init__(self, opt):
        self._inside = opt
        self.__class__ = type('Wrapped', (Wrapper, type(opt)), {})

    def __getattr__(self, nm): return getattr(self._inside, nm)


@each_optimizer
def test_what_a_wrapper_shows_the_optimizer_knows(make):
    ps = params((3, 4))
    opt = run(make(ps), ps, 2)
    wrapper, before, state = Wrapper(opt), ps[0].detach().clone(), copy.deepcopy(opt.state_dict())
    wrapper.eval()
    assert opt.shows_averages
    assert not torch.equal(ps[0], before)
    assert torch.equal(opt.state_dict()['state'][0]['training_point'], before)
    with pytest.raises(RuntimeError, match=r'call opt.train\(\)'): opt.step()
    opt.train()
    assert not wrapper.shows_averages
    assert torch.equal(ps[0], before)
    assert same(wrapper.state_dict(), state)


def test_a_wrapper_knows_how_many_steps_were_skipped():
    ps = params((3,))
    opt = AdamW(ps, skip_nonfinite=True)
    wrapper, ps[0].grad = Wrapper(opt), torch.full((3,), torch.inf)
    opt.step()
    assert wrapper.skipped == 1


@each_optimizer
@pytest.mark.parametrize('shown', [False, True])
@pytest.mark.parametrize('how', ['state_dict', 'pickle', 'copy'])
def test_a_run_goes_on_exactly_from_what_was_saved_at_either_point(make, shown, how):
    torch.manual_seed(0)
    model = net()
    opt = make(model.parameters())
    train(model, opt, 4)
    if shown: opt.eval()
    if how == 'state_dict':
        other = net()
        other.load_state_dict(model.state_dict())
        again = make(other.parameters())
        again.load_state_dict(copy.deepcopy(opt.state_dict()))
    else: other, again = pickle.loads(pickle.dumps((model, opt))) if how == 'pickle' else copy.deepcopy((model, opt))
    assert again.shows_averages is shown
    for m, o in ((model, opt), (other, again)):
        o.train()
        train(m, o, 3, seed=1)
        o.eval()
    assert same(model.state_dict(), other.state_dict())
    assert same(opt.state_dict(), again.state_dict())


def test_half_precision_shows_the_point_that_float32_states_give():
    ps = params((3, 4), dtype=torch.bfloat16)
    opt = run(ScheduleFreeSGD(ps, lr=.1), ps, 3)
    p, z = ps[0].detach().float(), opt.state[ps[0]]['z']
    assert z.dtype is torch.float32
    with opt.averaged(): assert torch.equal(ps[0], ((p - (1 - .9)*z)/.9).bfloat16())


def test_a_group_with_another_rule_keeps_its_parameters():
    a, b = params((3,), (4,))
    opt = run(ScheduleFreeAdamW([dict(params=[a]), dict(params=[b], rule=AdamW)]), [a, b], 3)
    before = [p.detach().clone() for p in (a, b)]
    with opt.averaged(): assert [torch.equal(p, x) for p, x in zip((a, b), before, strict=True)] == [False, True]


@pytest.mark.parametrize('option', [dict(ema=.9), dict(cautious=True), dict(cautious='rescaled')])
def test_stages_that_move_the_parameter_after_the_rule_are_refused(option):
    name = next(iter(option))
    with pytest.raises(ValueError, match=f'which {name} would make wrong: create it without {name}'):
        ScheduleFreeSGD(params((3,)), **option)


@each_class
def test_momentum_of_0_is_refused(cls):
    first = dict(mom=0.) if cls is ScheduleFreeSGD else dict(beta1=0.)
    with pytest.raises(ValueError, match='must be above 0'): cls(params((3,)), **first)


def in_parts(kind):
    "Weights at both points, after steps of 2 processes or, without a group, of one."
    ps = params((3, 4), (5,), (2, 2), dtype=torch.float64)
    model = nn.Module()
    for i, p in enumerate(ps): model.register_parameter(f'p{i}', p)
    opt = made = None
    if kind == 'fsdp':
        from torch.distributed.fsdp import fully_shard
        fully_shard(model)
    if kind == 'zero':
        from torch.distributed.optim import ZeroRedundancyOptimizer
        made = ZeroRedundancyOptimizer(ps, partial(ScheduleFreeAdamW, warmup_steps=2), lr=.05)
    opt = made or ScheduleFreeAdamW(model.parameters(), lr=.05, warmup_steps=2)
    inner, g, found = inner_optimizer(opt), torch.Generator().manual_seed(3), []
    for step in range(6):
        for p in model.parameters():
            grad = torch.randn(p.shape, generator=g, dtype=torch.float64)
            if kind == 'fsdp':
                from torch.distributed.tensor import distribute_tensor
                grad = distribute_tensor(grad, p.device_mesh, p.placements)
            p.grad = grad
        opt.step()
        if step % 3 < 2: continue
        inner.eval(model)
        found += [getattr(p, 'full_tensor', p.clone)().detach() for p in model.parameters()]
        inner.train(model)
    return found + [getattr(p, 'full_tensor', p.clone)().detach() for p in model.parameters()]


@needs_distributed
@pytest.mark.parametrize('kind', ['fsdp', 'zero'])
def test_two_processes_have_both_points_of_one(kind):
    wanted = in_parts(None)
    for found in run_ranks(in_parts, 2, kind):
        for x, y in zip(found, wanted, strict=True): assert torch.allclose(x, y, rtol=0, atol=1e-13)


def shown_in_zero():
    from torch.distributed.optim import ZeroRedundancyOptimizer
    ps = params((3, 4), (5,))
    opt = ZeroRedundancyOptimizer(ps, ScheduleFreeSGD, lr=.1)
    run(opt, ps, 2)
    inner_optimizer(opt).eval()
    with pytest.raises(RuntimeError, match=r'call train\(\) of the optimizer in ZeroRedundancyOptimizer'):
        opt.optim.state_dict()


@needs_distributed
def test_in_zero_the_state_is_saved_at_the_training_point_only(): run_ranks(shown_in_zero, 2)
