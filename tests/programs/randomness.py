"Programs that draw random numbers in callbacks, models and losses."
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from miniai import BatchTransformCB, Callback
from programs import program
from programs.basics import learner

noise_rng = np.random.default_rng(11)  # a module's generator, used by functions below
flip_rng = random.Random(12)


class NoisyLayer(nn.Module):
    "A layer with its own torch generator."
    def __init__(self, n_in, n_out):
        super().__init__()
        self.lin, self.rng = nn.Linear(n_in, n_out), torch.Generator().manual_seed(2)
    def forward(self, x): return self.lin(x) + 0.1*torch.randn(len(x), self.lin.out_features, generator=self.rng)


@program('NoisyLayer|rng', lambda learn: dict(rng=learn.model[0].rng))
def torch_generator_in_model():
    "a torch generator inside a layer"
    return learner(model=nn.Sequential(NoisyLayer(6, 16), nn.ReLU(), nn.Linear(16, 3)))


class MaskedMLP(nn.Module):
    "Masks hidden units with a numpy generator."
    def __init__(self):
        super().__init__()
        self.a, self.b, self.np_rng = nn.Linear(6, 16), nn.Linear(16, 3), np.random.default_rng(3)
    def forward(self, x):
        h = self.a(x).relu()
        if self.training: h = h*torch.from_numpy(self.np_rng.random(16) > 0.2).float()
        return self.b(h)


@program('MaskedMLP|np_rng', lambda learn: dict(rng=learn.model.np_rng))
def numpy_generator_in_model():
    "a numpy generator inside the model"
    return learner(model=MaskedMLP())


class SampledLoss(nn.Module):
    "Takes the loss of a random part of the batch, drawn by random.Random."
    def __init__(self):
        super().__init__()
        self.py_rng = random.Random(5)
    def forward(self, out, y):
        i = self.py_rng.sample(range(len(y)), len(y)//2)
        return F.cross_entropy(out[i], y[i])


@program('SampledLoss|py_rng', lambda learn: dict(rng=learn.loss_func.py_rng))
def python_generator_in_loss():
    "random.Random inside a loss module"
    return learner(loss=SampledLoss())


class JitterLoss:
    "A loss that is not a module, with a numpy RandomState."
    def __init__(self): self.rs = np.random.RandomState(6)
    def __call__(self, out, y): return F.cross_entropy(out*float(self.rs.uniform(0.5, 1.5)), y)


@program('JitterLoss|rs')
def random_state_in_loss():
    "a numpy RandomState in a callable loss"
    return learner(loss=JitterLoss())


class GumbelLayer(nn.Module):
    "Gumbel noise from a generator on the class, shared by all layers."
    rng = torch.Generator().manual_seed(8)
    def forward(self, x):
        if not self.training: return x
        u = torch.rand(x.shape, generator=self.rng).clamp(1e-6, 1 - 1e-6)
        return x - 0.1*(-u.log()).log()


@program('GumbelLayer|rng')
def generator_on_module_class():
    "Gumbel noise from a generator on the module's class"
    return learner(model=nn.Sequential(nn.Linear(6, 16), nn.ReLU(), GumbelLayer(), nn.Linear(16, 3), GumbelLayer()))


class StochasticDepth(nn.Module):
    def __init__(self, block, p=0.3):
        super().__init__()
        self.block, self.p = block, p
    def forward(self, x):
        if self.training and torch.rand(()) < self.p: return x
        return x + self.block(x)


@program()
def stochastic_depth():
    "stochastic depth from torch.rand"
    blocks = [StochasticDepth(nn.Sequential(nn.Linear(16, 16), nn.ReLU())) for _ in range(3)]
    return learner(model=nn.Sequential(nn.Linear(6, 16), *blocks, nn.Linear(16, 3)))


class NumpyNoise(nn.Module):
    def forward(self, x): return x + 0.1*np.random.randn() if self.training else x


@program()
def np_random_in_forward():
    "np.random in forward"
    return learner(model=nn.Sequential(NumpyNoise(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)))


class FlipCoinCB(Callback):
    "Flips the sign of the inputs at random, by Python's global generator."
    def before_batch(self, learn):
        if learn.training and random.random() < 0.5: learn.batch = -learn.batch[0], learn.batch[1]


@program()
def python_random_in_callback():
    "Python's global generator in a callback"
    return learner(FlipCoinCB())


def add_noise(b): return b[0] + torch.from_numpy(noise_rng.normal(0, 0.3, b[0].shape)).float(), b[1]


@program('add_noise|noise_rng')
def module_generator_in_transform():
    "a module-level numpy generator used by a batch transform"
    return learner(BatchTransformCB(add_noise, on_val=False))


class FlipFeaturesCB(Callback):
    "Uses a module-level random.Random."
    def before_batch(self, learn):
        if not learn.training: return
        sign = torch.tensor([flip_rng.choice([-1., 1.]) for _ in range(6)])
        learn.batch = learn.batch[0]*sign, learn.batch[1]


@program('FlipFeaturesCB|flip_rng')
def module_generator_in_callback():
    "a module-level random.Random used by a callback's method"
    return learner(FlipFeaturesCB())


def jitter_with(generator):
    "A transform that closes over its generator."
    def jitter(b): return b[0] + 0.3*torch.randn(b[0].shape, generator=generator), b[1]
    return jitter


@program('jitter|generator')
def generator_in_closure():
    "a torch generator in a closure"
    return learner(BatchTransformCB(jitter_with(torch.Generator().manual_seed(9)), on_val=False))


def dropped(b, generator=torch.Generator().manual_seed(10)):  # noqa: B008
    return b[0]*(torch.rand(b[0].shape, generator=generator) > 0.2), b[1]


@program('dropped|generator')
def generator_as_default_argument():
    "a generator as a function's default argument"
    return learner(BatchTransformCB(dropped, on_val=False))


class RandomCropper:
    "A pipeline of transforms, each with a generator."
    def __init__(self, seeds): self.steps = [(k, np.random.default_rng(s)) for k, s in enumerate(seeds)]
    def __call__(self, b):
        x = b[0].clone()
        for k, rng in self.steps: x[:, k] *= float(rng.uniform(0.5, 1.5))
        return x, b[1]


@program('RandomCropper|steps')
def generators_in_tuples():
    "numpy generators inside tuples in a list of a transform"
    return learner(BatchTransformCB(RandomCropper([1, 2, 3]), on_val=False))


class ReseedCB(Callback):
    "Seeds torch at each epoch."
    def before_epoch(self, learn): torch.manual_seed(100 + learn.epoch)


@program('ReseedCB')
def reseeded_each_epoch():
    "torch.manual_seed in before_epoch"
    return learner(ReseedCB(), model=nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.5), nn.Linear(16, 3)))


class DrawsInBeforeFitCB(Callback):
    "Draws a random direction once per run, in before_fit."
    def before_fit(self, learn): self.direction = torch.randn(6)
    def before_batch(self, learn):
        if learn.training: learn.batch = learn.batch[0] + 0.3*self.direction, learn.batch[1]


@program('DrawsInBeforeFitCB|direction',
         lambda learn: dict(d=next(c.direction for c in learn.cbs if hasattr(c, 'direction'))))
def random_direction():
    "a random tensor drawn in before_fit"
    return learner(DrawsInBeforeFitCB())
