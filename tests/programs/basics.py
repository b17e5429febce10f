"The small data, networks and Learners that the programs have in common."
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from miniai import DataLoaders, MetricsCB, TrainLearner, accuracy

BS, N_TRAIN, N_VALID = 8, 48, 16


class QuietMetrics(MetricsCB):
    def _log(self, d): pass


def points(n=N_TRAIN, seed=0):
    "Points with 6 features in 3 classes."
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=g)
    return x, x[:, :3].argmax(1)


def images(n=N_TRAIN, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 8, 8, generator=g)
    return x, (x.mean((1, 2, 3))*300).long() % 3


def loaders(make_data=points, bs=BS, **kwargs):
    train, valid = TensorDataset(*make_data()), TensorDataset(*make_data(N_VALID, seed=1))
    return DataLoaders(DataLoader(train, bs, shuffle=True, **kwargs), DataLoader(valid, bs))


def loaders_of(dataset, bs=BS, shuffle=True, **kwargs):
    "Loaders for a training set of your own; the usual points for validation."
    return DataLoaders(DataLoader(dataset, bs, shuffle=shuffle, **kwargs),
                       DataLoader(TensorDataset(*points(N_VALID, seed=1)), bs))


def mlp(width=16): return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))
def mlp_with_dropout(p=0.2): return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(p), nn.Linear(16, 3))


def convnet():
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


def learner(cbs=(), model=None, dls=None, loss=F.cross_entropy, lr=0.05, opt=optim.SGD, cls=TrainLearner):
    cbs = list(cbs) if isinstance(cbs, list | tuple) else [cbs]
    return cls(model or mlp(), dls or loaders(), loss, lr, [QuietMetrics(accuracy=accuracy), *cbs], opt)


def callback(learn, kind):
    "The Learner's callback of a class."
    return next(cb for cb in learn.cbs if isinstance(cb, kind))
