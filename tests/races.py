"A tiny task and rules for races of a moment, in this process or in others: `python races.py FOLDER`."
import sys
from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from miniai.racing.race import race
from miniai.racing.tasks import Task, parts_of

STEPS = 16


def model(seed):
    torch.manual_seed(seed)
    return nn.Linear(3, 1)


def data(seed):
    g = torch.Generator().manual_seed(5)
    x = torch.randn(60, 3, generator=g)
    y = x @ torch.tensor([[1.], [-2.], [3.]]) + torch.randn(60, 1, generator=g)/3
    return parts_of(x, y, (.2, .2, .2), 6, seed)


def tiny(): return Task('tiny', model, data, F.mse_loss, STEPS)
def descent(p, g, *, lr): return p - lr*g
def raises(p, g, *, lr): raise RuntimeError('this rule is broken')
def nan(p, g, *, lr): return p - lr*g*float('nan')
class FailsLater(torch.optim.SGD):
    "Gradient descent that raises at its fifth step."
    def step(self, closure=None):
        self.steps = getattr(self, 'steps', 0) + 1
        if self.steps == 5: raise ValueError('not at step 5')
        return super().step(closure)


def broken(): raise KeyError('this task is broken')
def fails(): return replace(tiny(), loss=lambda preds, y: F.mse_loss(preds, y[:1, :, None, None]).view(7))
def needs_1000(p, g, *, lr): return p - 1e-4*lr*g
for rule in (descent, raises, nan, needs_1000): rule.space = dict(lr=(1e-2, 1.))

run = partial(race, tasks=[tiny()], baselines=['nesterov'], trials=2, seeds=3, tell=lambda text: None)
if __name__ == '__main__': run(descent, out=sys.argv[1])
