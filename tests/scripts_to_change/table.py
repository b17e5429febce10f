"Trains a small network on a table, with a sampler, a collate function and callbacks of its own."
from functools import partial

import torch
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler, default_collate

import miniai
from miniai import (
    AccumulateCB,
    Callback,
    DataLoaders,
    EarlyStoppingCB,
    EpochSchedCB,
    MetricsCB,
    TrainLearner,
    accuracy,
)


def table(n, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    y = x[:, :3].argmax(1)
    return x, y


def collate(samples, factor=1.0):
    x, y = default_collate(samples)
    return x*factor, y


class Net(nn.Module):
    "Two layers, and a constant that scales the output."
    scale = 2.0
    def __init__(self, width=16, slope=0.1):
        super().__init__()
        self.inp, self.out = nn.Linear(6, width), nn.Linear(width, 3)
        self.act, self.depth, self.slope = nn.ReLU(), 1, slope
    def forward(self, x):
        h = self.act(self.inp(x))
        for _ in range(self.depth): h = h + self.slope*h.tanh()
        return self.out(h)*self.scale


class ShrinkCB(Callback):
    "Multiplies gradients."
    def __init__(self, by): self.by = by
    def after_backward(self, learn):
        for p in learn.model.parameters():
            if p.grad is not None: p.grad *= self.by


class FlipCB(Callback):
    "Flips the sign of a feature."
    def before_batch(self, learn):
        x = learn.batch[0].clone()
        x[:, 5] *= -1
        learn.batch = x, learn.batch[1]


class AddCB(Callback):
    "Adds a constant to a feature."
    def before_batch(self, learn):
        x = learn.batch[0].clone()
        x[:, 5] += 0.5
        learn.batch = x, learn.batch[1]


def decay(epoch): return 0.5**epoch


def make():
    miniai.set_seed(1)
    x, y = table(48, seed=0)
    weights = [1.0]*24 + [2.0]*24
    sampler = WeightedRandomSampler(weights, 48, generator=torch.Generator().manual_seed(5))
    train = DataLoader(TensorDataset(x, y), 8, sampler=sampler, collate_fn=partial(collate, factor=0.9))
    dls = DataLoaders(train, DataLoader(TensorDataset(*table(16, seed=1)), 8))
    net = Net()
    cbs = [
        MetricsCB(accuracy=accuracy),
        FlipCB(),
        AddCB(),
        ShrinkCB(0.9),
        AccumulateCB(2),
        EarlyStoppingCB('accuracy', patience=3),
        EpochSchedCB(partial(optim.lr_scheduler.LambdaLR, lr_lambda=lambda e: decay(e)*1.0)),
    ]
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0]))
    opt = partial(optim.AdamW, weight_decay=0.01, betas=(0.9, 0.99), eps=1e-8)
    return TrainLearner(net, dls, loss, 1e-2, cbs, opt)
