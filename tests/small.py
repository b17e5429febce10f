"Small models, data and callbacks that the tests share."
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn

from miniai.datasets import DataLoaders
from miniai.learner import TrainLearner

AROUND = [f'{when}_{what}' for what in ('fit', 'epoch', 'batch') for when in ('before', 'after', 'cleanup')]
WITHIN = ['after_predict', 'after_loss', 'after_backward', 'after_step']


def batches(n=4, bs=6, seed=1):
    g = torch.Generator().manual_seed(seed)
    return [(torch.randn(bs, 4, generator=g), torch.randint(0, 3, (bs,), generator=g)) for _ in range(n)]


def loaders(n_train=4, n_valid=2): return DataLoaders(batches(n_train), batches(n_valid, seed=2))
def mlp(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def learner(cbs=None, cls=TrainLearner, model=None, dls=None, loss_func=F.cross_entropy, lr=0.1, **kwargs):
    torch.manual_seed(3)
    return cls(model or mlp(), loaders() if dls is None else dls, loss_func, lr=lr, cbs=cbs, **kwargs)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(4, 3)

    def forward(self, a, b): return self.lin(a + b)


def two_inputs(): return DataLoaders(*[[(x, x.flip(0), y) for x, y in batches(n)] for n in (3, 1)])


def weights(learn): return {k: v.clone() for k, v in learn.model.state_dict().items()}
def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
def hooks_on(model): return sum(len(m._forward_hooks) for m in model.modules())


def everything(learn):
    "What a dry run must not change: weights, buffers, gradients, modes, and the optimizer's hyperparameters and state."
    grads = [None if p.grad is None else p.grad.clone() for p in learn.model.parameters()]
    opt = learn.opt.state_dict() if learn.opt else None
    return weights(learn), grads, [m.training for m in learn.model.modules()], opt


def equal(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple): return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def copied(x):
    if isinstance(x, torch.Tensor): return x.clone()
    if isinstance(x, dict): return {k: copied(v) for k, v in x.items()}
    return type(x)(map(copied, x)) if isinstance(x, list | tuple) else x


class Heard:
    "A callback without a base class. It logs the events that it hears, and calls `act[event]` if there is one."
    def __init__(self, act=None, order=0, log=None, events=None):
        self.log, self.act, self.order = [] if log is None else log, act or {}, order
        for e in events or AROUND + WITHIN: setattr(self, e, MethodType(_hearing(e), self))


def _hearing(event):
    def hear(self, learn):
        self.log.append(event)
        if event in self.act: self.act[event](learn)
    return hear


class Gradients:
    "Keeps the gradients of each step."
    def before_fit(self, learn): self.steps = []
    def after_backward(self, learn): self.steps.append([p.grad.clone() for p in learn.model.parameters()])


class Unsized:
    "A loader that does not know its length."
    def __init__(self, bs): self.bs = bs
    def __iter__(self): return iter(self.bs)


class OffCPU(torch.Tensor):
    "A tensor that claims not to be on the CPU: an accelerator for machines without one."
    is_cpu = False


def off_cpu(x): return x.as_subclass(OffCPU)


def raising(e):
    def f(*args): raise e
    return f
