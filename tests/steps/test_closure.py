"Closure optimizers: LBFGS and SAM in the Learner do what they do in a plain loop."
import copy
import math
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import LBFGS, Optimizer, lr_scheduler

from miniai import (
    AccumulateCB,
    BatchSchedCB,
    Callback,
    Learner,
    MetricsCB,
    MixedPrecision,
    TrainCB,
    TrainLearner,
    optim,
)
from miniai.callbacks.accelerate import AccelerateCB
from small import learner, loaders, same, weights


class SAM(Optimizer):
    "Sharpness-aware minimisation (Foret et al. 2020), whose closure is optional by its signature only."
    def __init__(self, params, lr, rho=.05): super().__init__(params, dict(lr=lr, rho=rho))

    def step(self, closure=None):
        assert closure is not None
        ps = [p for p in self.param_groups[0]['params'] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in ps]).norm()
        moves = [p.grad*self.param_groups[0]['rho']/norm for p in ps]
        with torch.no_grad(): torch._foreach_add_(ps, moves)
        self.zero_grad()
        with torch.enable_grad(): closure()
        with torch.no_grad():
            torch._foreach_sub_(ps, moves)
            for p in ps: p -= self.param_groups[0]['lr']*p.grad


def net(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(.2), nn.Linear(8, 3))


def by_hand(opt_func, lr, clip=math.inf, gamma=1., first_outside=False):
    "The plain loop of torch's documentation. SAM's begins with a backward pass outside the step."
    torch.manual_seed(3)
    model, losses = net(), []
    torch.manual_seed(4)
    opt = opt_func(model.parameters(), lr=lr)
    sched = lr_scheduler.ExponentialLR(opt, gamma)
    for _ in range(2):
        for x, y in loaders().train:
            def closure():
                opt.zero_grad()
                loss = F.cross_entropy(model(x), y)  # noqa: B023
                losses.append(loss.item())
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), clip)
                return loss
            if first_outside: closure()
            opt.step(closure)
            sched.step()
    return model.state_dict(), losses


class ClipCB(Callback):
    def __init__(self, clip): self.clip = clip
    def after_backward(self, learn): nn.utils.clip_grad_norm_(learn.model.parameters(), self.clip)


class SeedCB(Callback):
    def before_fit(self, learn): torch.manual_seed(4)


class LossesCB(Callback):
    def __init__(self): self.losses = []
    def after_loss(self, learn): self.losses.append(learn.loss.item())


def trained(opt_func, lr, cbs=(), cls=TrainLearner):
    torch.manual_seed(3)
    learn = cls(net(), loaders(), F.cross_entropy, lr=lr, cbs=[SeedCB(), *cbs], opt_func=opt_func)
    learn.fit(2, valid=False)
    return learn


WOLFE = partial(LBFGS, line_search_fn='strong_wolfe', max_iter=5)
OPTIMIZERS = dict(lbfgs=(LBFGS, .1), wolfe=(WOLFE, 1.), sam=(SAM, .1))


@pytest.mark.parametrize('name', OPTIMIZERS)
@pytest.mark.parametrize(('cls', 'cbs'), [(TrainLearner, []), (Learner, [TrainCB()]),
                                          (Learner, [AccelerateCB(mixed_precision='no')])])
@pytest.mark.parametrize('clip', [math.inf, .05])
def test_each_step_is_that_of_the_plain_loop_to_the_bit(name, cls, cbs, clip):
    (opt_func, lr), seen = OPTIMIZERS[name], LossesCB()
    want, losses = by_hand(opt_func, lr, clip, first_outside=name == 'sam')
    learn = trained(opt_func, lr, [*cbs, ClipCB(clip), seen], cls)
    assert seen.losses == losses
    assert same(weights(learn), want)


def test_a_schedule_moves_the_rate_of_a_closure_optimizer():
    learn = trained(LBFGS, .1, [BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=.5))])
    assert same(weights(learn), by_hand(LBFGS, .1, gamma=.5)[0])
    assert learn.opt.param_groups[0]['lr'] == .1*.5**8


def test_the_loss_of_a_batch_is_the_one_before_its_step():
    first = LossesCB()
    class FirstCB(Callback):
        def after_batch(self, learn): first.losses.append(learn.loss.item())
    metrics = MetricsCB()
    learn = trained(LBFGS, .1, [FirstCB(), metrics])
    losses = torch.tensor(first.losses[4:])
    assert learn.history[-1]['loss'] == pytest.approx(losses.mean().item())
    assert first.losses[0] == by_hand(LBFGS, .1)[1][0]


@pytest.mark.parametrize('cb', [AccumulateCB(2), MixedPrecision(dtype=torch.bfloat16)])
def test_callbacks_that_a_closure_cannot_repeat_are_refused_by_name(cb):
    cls = Learner if isinstance(cb, MixedPrecision) else TrainLearner
    with pytest.raises(ValueError, match=f'LBFGS evaluates a batch several times in a step, which {type(cb).__name__}'):
        trained(LBFGS, .1, [cb], cls)


@pytest.mark.parametrize('opt_func', [torch.optim.Adam, optim.AdamW, LBFGS, SAM])
def test_nothing_stays_on_the_optimizer_and_torchs_and_ours_get_nothing(opt_func):
    seen = []
    class LookCB(Callback):
        def before_batch(self, learn): seen.append('step' in vars(learn.opt))
    learn = trained(opt_func, .1, [LookCB()])
    assert set(seen) == {opt_func in (LBFGS, SAM)}
    assert 'step' not in vars(learn.opt)
    pickle.dumps(copy.deepcopy(learn.opt))


def test_a_users_own_call_with_a_closure_gets_that_closure():
    class Own(TrainLearner):
        def step(self):
            def closure():
                self.opt.zero_grad()
                loss = F.cross_entropy(self.model(self.batch[0]), self.batch[1])
                loss.backward()
                return loss
            self.opt.step(closure)
    learn = learner(cls=Own, lr=.1, opt_func=LBFGS)
    plain = learner(lr=.1, opt_func=LBFGS)
    for one in (learn, plain): one.fit(1)
    assert same(weights(learn), weights(plain))
