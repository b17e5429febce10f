"Trains a small convolutional network on images, with augmentation and a one-cycle schedule."
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, Dataset

from miniai import (
    AdamW,
    BatchSchedCB,
    BatchTransformCB,
    Callback,
    DataLoaders,
    MetricsCB,
    MixUpCB,
    TrainLearner,
    accuracy,
    set_seed,
)
from miniai.augment import RandErase

SEED = 42
BS = 8
GAIN = 1.5
PENALTY = 0.01
CHANNELS = [4, 8]
DATA = '/data/v1'


def scale(x): return x*GAIN
def shift(x, by=0.1): return x + by
def noise(x, level): return x + level*torch.randn_like(x)


class Images(Dataset):
    mean = 0.5
    def __init__(self, n, seed, transforms=()):
        g = torch.Generator().manual_seed(seed)
        self.path = DATA
        self.x = torch.rand(n, 1, 8, 8, generator=g)
        self.y = [int(v*300) % 3 for v in self.x.mean((1, 2, 3)).tolist()]
        self.weights = np.linspace(0.5, 1, n, dtype=np.float32)
        self.transforms = transforms
    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        x = (self.x[i] - self.mean)*self.weights[i]
        for t in self.transforms: x = t(x)
        return x, self.y[i]


class PenaltyCB(Callback):
    "Adds a penalty on large outputs."
    power = 2
    def __init__(self, strength=0.1): self.strength = strength
    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss + self.strength*learn.preds.abs().pow(self.power).mean()


def loss(out, y): return F.cross_entropy(out, y, label_smoothing=0.1) + PENALTY*out.square().mean()


def model():
    a, b = CHANNELS
    return nn.Sequential(
        nn.Conv2d(1, a, 3, stride=2, padding=1), nn.BatchNorm2d(a, eps=1e-5), nn.ReLU(),
        nn.Conv2d(a, b, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(4*b, 3))


def make():
    set_seed(SEED)
    train = Images(48, 0, [scale, shift, partial(noise, level=0.1)])
    valid = Images(16, 1)
    dls = DataLoaders(DataLoader(train, BS, shuffle=True, drop_last=False, num_workers=0), DataLoader(valid, BS))
    erase = RandErase(0.2, 2)
    cbs = [
        MetricsCB(accuracy=accuracy),
        BatchTransformCB(lambda b: (b[0]*1.1, b[1]), on_val=False),
        BatchTransformCB(lambda b: (erase(b[0]), b[1]), on_val=False),
        MixUpCB(0.4),
        PenaltyCB(0.1),
        BatchSchedCB(partial(optim.lr_scheduler.OneCycleLR, max_lr=2e-2, total_steps=18)),
    ]
    opt = partial(AdamW, wd=0.01, clip_norm=1.0, ema=0.9)
    return TrainLearner(model(), dls, loss, 1e-2, cbs, opt)
