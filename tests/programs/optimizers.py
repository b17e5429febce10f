"Programs with particular optimizers."
from functools import partial

import torch
from torch import nn, optim

from miniai import AdamW, AverageCB, Callback, TrainLearner, optimizer
from miniai import Momentum as MiniMomentum
from miniai.learner import MomentumLearner
from miniai.optim import sign
from programs import program
from programs.basics import callback, convnet, images, learner, loaders, mlp


@program()
def torch_adamw():
    "torch's AdamW"
    return learner(opt=partial(optim.AdamW, weight_decay=0.1), lr=1e-2)


@program()
def torch_momentum():
    "torch's SGD with Nesterov momentum"
    return learner(opt=partial(optim.SGD, momentum=0.9, nesterov=True))


@program('ema|AverageCB')
def miniai_ema():
    "miniai's AdamW with ema and AverageCB"
    return learner(AverageCB(), opt=partial(AdamW, ema=0.9), lr=1e-2)


@program()
def miniai_bf16_state():
    "miniai's AdamW with state='bf16' and clipping"
    return learner(opt=partial(AdamW, state='bf16', clip_norm=0.5), lr=1e-2)


class BadBatchCB(Callback):
    "Every fifth batch has a gradient that is not finite."
    n = 0
    def after_backward(self, learn):
        self.n += 1
        if self.n % 5 == 0: learn.model[0].weight.grad[0, 0] = float('nan')


@program('BadBatchCB|n', lambda learn: dict(skipped=learn.opt.skipped))
def miniai_skip_nonfinite():
    "miniai's Momentum with skip_nonfinite"
    return learner(BadBatchCB(), opt=partial(MiniMomentum, skip_nonfinite=True))


def signum(p, g, avg, *, lr, mom=0.9):
    avg = mom*avg + (1-mom)*g
    return p - lr*sign(avg), avg


@program()
def own_rule():
    "a rule of the user's, by optimizer(rule)"
    return learner(opt=optimizer(signum), lr=1e-2)


class LBFGSLearner(TrainLearner):
    "LBFGS takes a closure."
    def backward(self): pass
    def step(self):
        def closure():
            self.opt.zero_grad()
            loss = self.loss_func(self.model(self.batch[0]), self.batch[1])
            loss.backward()
            return loss
        self.opt.step(closure)


@program('LBFGS')
def lbfgs():
    "LBFGS in a Learner subclass"
    return learner(cls=LBFGSLearner, opt=lambda ps, lr: optim.LBFGS(ps, lr=0.1, max_iter=3, history_size=4))


class SAMLearner(TrainLearner):
    "Sharpness-aware minimisation: two passes per step; rho grows."
    rho = 0.01
    def step(self):
        params = list(self.model.parameters())
        scale = self.rho/(nn.utils.get_total_norm(p.grad for p in params) + 1e-12)
        moves = [p.grad*scale for p in params]
        with torch.no_grad(): [p.add_(m) for p, m in zip(params, moves, strict=True)]
        self.opt.zero_grad()
        self.loss_func(self.model(self.batch[0]), self.batch[1]).backward()
        with torch.no_grad(): [p.sub_(m) for p, m in zip(params, moves, strict=True)]
        self.opt.step()
        self.rho *= 1.3


@program('SAMLearner|rho', lambda learn: dict(rho=learn.rho))
def sam():
    "a SAM-like Learner subclass whose rho grows"
    return learner(cls=SAMLearner)


@program(stop=('train', 1, 2))
def momentum_learner():
    "MomentumLearner, which keeps gradients"
    return learner(cls=MomentumLearner)


class Lion2(optim.Optimizer):
    "An optimizer that the user wrote, with a plain counter outside its state."
    def __init__(self, params, lr):
        super().__init__(params, dict(lr=lr, beta=0.9))
        self.steps = 0

    @torch.no_grad()
    def step(self):
        self.steps += 1
        for g in self.param_groups:
            for p in g['params']:
                m = self.state[p].setdefault('m', torch.zeros_like(p))
                m.lerp_(p.grad, 1 - g['beta'])
                p.sub_(m.sign(), alpha=g['lr']/self.steps**0.5)


@program('Lion2|steps', lambda learn: dict(steps=learn.opt.steps))
def own_optimizer():
    "the user's own torch optimizer with a counter outside its state"
    return learner(opt=Lion2)


class PlainSGD:
    "An optimizer as in a first lesson: no base class, momentum buffers in a list."
    def __init__(self, params, lr):
        self.params, self.lr = list(params), lr
        self.bufs = [torch.zeros_like(p) for p in self.params]
    @torch.no_grad()
    def step(self):
        for p, b in zip(self.params, self.bufs, strict=True):
            b.mul_(0.9).add_(p.grad)
            p -= self.lr*b
    def zero_grad(self):
        for p in self.params: p.grad = None


@program('PlainSGD|bufs', lambda learn: dict(bufs=learn.opt.bufs), expect='identical|reported')
def plain_optimizer():
    "an optimizer without a base class, with buffers in a list"
    return learner(opt=PlainSGD)


class EveryOtherCB(Callback):
    "Adds up gradients by hand over two batches, in tensors of its own."
    def before_fit(self, learn): self.sums, self.n = [torch.zeros_like(p) for p in learn.model.parameters()], 0
    def after_backward(self, learn):
        for s, p in zip(self.sums, learn.model.parameters(), strict=True):
            s += p.grad
            p.grad.copy_(s/(self.n % 2 + 1))
        self.n += 1
        if self.n % 2 == 0: [s.zero_() for s in self.sums]


@program('EveryOtherCB|sums|n', lambda learn: dict(n=callback(learn, EveryOtherCB).n), stop=('train', 1, 2))
def accumulated_by_hand():
    "sums of gradients kept by a callback"
    return learner(EveryOtherCB())


@program()
def parameter_groups():
    "groups with different rates, and convolutions"
    def opt(params, lr):
        params = list(params)
        return optim.Adam([dict(params=params[:2], lr=lr/10), dict(params=params[2:])], lr)
    return learner(model=convnet(), dls=loaders(images), opt=opt, lr=1e-2)


class GroupDecayCB(Callback):
    "Changes weight decay and betas while training."
    def after_step(self, learn):
        g = learn.opt.param_groups[0]
        g['weight_decay'] += 0.01
        g['betas'] = (g['betas'][0]*0.99, g['betas'][1])


@program()
def changed_groups():
    "weight decay and betas changed while training"
    return learner(GroupDecayCB(), opt=optim.AdamW, lr=1e-2)


@program('opt')
def kept_optimizer():
    "opt_func=None: the optimizer is made once and set on the Learner"
    model = mlp()
    learn = learner(model=model, opt=None)
    learn.opt = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return learn
