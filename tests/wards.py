"Small networks and data in which tests plant faults, and what HealthCB says about them."
import torch
import torch.nn.functional as F
from torch import nn

from miniai import Adam, DataLoaders, HealthCB, TrainLearner

N, FEATURES, CLASSES = 320, 12, 4


def blobs(n=N, seed=1):
    "Points around a center per class, and their classes."
    g, centers = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    y = torch.arange(n) % CLASSES
    y = y[torch.randperm(n, generator=g)]
    return torch.randn(n, FEATURES, generator=g) + 2*torch.randn(CLASSES, FEATURES, generator=centers)[y], y


def in_batches(x, y, bs=32): return list(zip(x.split(bs), y.split(bs), strict=True))


def loaders(x=None, y=None, bs=32, valid=None):
    a, b = blobs()
    valid = in_batches(*blobs(128, seed=2), 64) if valid is None else valid
    return DataLoaders(in_batches(a/2 if x is None else x, b if y is None else y, bs),
                       [(x/2, y) for x, y in valid])


def net(act=nn.ReLU, depth=2, norm=None, width=16, outputs=CLASSES):
    torch.manual_seed(3)
    layers = []
    for i in range(depth):
        layers += [nn.Linear(width if i else FEATURES, width), *([norm(width)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


def check_up(model=None, dls=None, loss_func=F.cross_entropy, lr=0.01, epochs=6, cbs=(), opt_func=Adam, raises=None,
             every=1, cls=TrainLearner):
    "The HealthCB of a fit."
    health = HealthCB(every, quiet=True)
    learn = cls(net() if model is None else model, loaders() if dls is None else dls, loss_func, lr, [health, *cbs],
                opt_func)
    try: learn.fit(epochs)
    except Exception as e:
        if raises is None or not isinstance(e, raises): raise
    return health


def names(health): return {v.name for v in health.verdicts}
def verdict(health, name): return next(v for v in health.verdicts if v.name == name)
