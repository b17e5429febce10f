"A small run with everything that could keep it from resuming exactly, and what tests of resuming share."
import hashlib
import random
from contextlib import suppress
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from miniai import BatchSchedCB, Callback, DataLoaders, MetricsCB, RecorderCB, TrainLearner, accuracy
from miniai.accel import AccumulateCB
from miniai.activations import set_seed
from miniai.augment import RandCrop
from miniai.data import SeededSamples
from miniai.learner import CancelFitException
from miniai.optim import AdamW
from miniai.resume.checkpoint import CheckpointCB
from miniai.resume.state import run_state
from miniai.steps.average import AverageCB


class Noisy:
    "Images and labels; an image gets new random noise each time it is asked for."
    def __init__(self, n=40):
        g = torch.Generator().manual_seed(5)
        self.x, self.y = torch.randn(n, 1, 8, 8, generator=g), torch.randint(0, 3, (n,), generator=g)

    def __len__(self): return len(self.x)
    def __getitem__(self, i):
        return self.x[i] + .1*torch.randn(1, 8, 8) + .1*float(np.random.randn() + random.random()), self.y[i]


class CropCB(Callback):
    "Crops training batches, with its own random generator."
    def __init__(self): self.crop = RandCrop(1, generator=torch.Generator().manual_seed(9))
    def before_batch(self, learn):
        if learn.training: learn.batch = self.crop(learn.batch[0]), learn.batch[1]


class Quiet(MetricsCB):
    def _log(self, d): pass


class Stopped(RuntimeError): pass


class Watcher(Callback):
    "A callback of a test that is not part of the run."
    only_shows = True


class StopCB(Watcher):
    "Ends a fit with an error after one batch of training or validation."
    order = float('inf')
    def __init__(self, epoch, batch, training=True): self.at = epoch, batch, training
    def cleanup_batch(self, learn):
        if (learn.epoch, learn.iter, learn.training) == self.at: raise Stopped('stopped by a test')


class CancelCB(Watcher):
    "Cancels a fit after one batch of training or validation."
    def __init__(self, epoch, batch, training=True): self.at = epoch, batch, training
    def after_batch(self, learn):
        if (learn.epoch, learn.iter, learn.training) == self.at: raise CancelFitException()


class AtCB(Watcher):
    "Calls `f()` at one event of an epoch, a pass and a batch."
    def __init__(self, event, f, epoch, training=True, batch=None, order=0):
        self.at, self.f, self.order = (epoch, training, batch), f, order
        setattr(self, event, self._call)

    def _call(self, learn):
        epoch, training, batch = self.at
        if (learn.epoch, learn.training) == (epoch, training) and batch in (None, learn.iter): self.f()


def fit_until_stopped(learn, n_epochs=2, **kwargs):
    with suppress(Stopped):
        learn.fit(n_epochs, **kwargs)
        raise AssertionError('the run was not stopped')


def assert_resumes_exactly(make, folder, stops=((0, 2), (1, 1)), n_epochs=2, **fit):
    """`make(folder, *cbs)` returns a Learner. Run it without interruption; then stop it after each of some batches,
    resume it under another seed, and compare everything."""
    whole = make(folder/'whole')
    whole.fit(n_epochs, **fit)
    for at in stops:
        fit_until_stopped(make(folder/str(at), StopCB(*at)), n_epochs, **fit)
        resumed = make(folder/str(at))
        torch.manual_seed(99)
        resumed.fit(n_epochs, **fit, resume=True)
        assert digest(resumed) == digest(whole), f'stopped after {at}'


def checkpoints(folder):
    "The checkpoints in a folder: epoch, phase and batch, as in their names."
    return sorted(p.name[11:].removesuffix('.safetensors') for p in folder.glob('checkpoint-*'))


def loaders(kind):
    ds = Noisy()
    if kind == 'memory':
        dls = DataLoaders.from_arrays(ds.x, ds.y, valid=.2, bs=5, seed=3)
        dls.valid.bs = 4
        return dls
    workers = int(kind)
    ds = SeededSamples(ds) if workers else ds
    return DataLoaders(DataLoader(ds, 5, shuffle=True, num_workers=workers), DataLoader(ds, 10, num_workers=workers))


def net():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(.2), nn.Flatten(),
                         nn.Linear(144, 3))


def run(folder=None, kind='memory', cbs=(), n_epochs=2, model=None, sched_steps=None, **saving):
    "A Learner with shuffling, dropout, BatchNorm, random crops, AdamW, 1cycle, accumulation and averaged weights."
    set_seed(0)
    dls, model = loaders(kind), model or net()
    steps = sched_steps or n_epochs*len(dls.train)
    sched = BatchSchedCB(partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=steps))
    saves = [CheckpointCB(folder, **(dict(batches=1, keep=1000) | saving))] if folder else []
    given = [Quiet(accuracy=accuracy), RecorderCB(lr=lambda cb: cb.pg['lr']), sched, AverageCB(), AccumulateCB(3)]
    opt_func = partial(AdamW, ema=.9, state='bf16')
    return TrainLearner(model, dls, F.cross_entropy, 1e-3, [*given, CropCB(), *saves, *cbs], opt_func)


def digest(learn):
    "A sha256 of a run's whole state: weights, gradients, optimizer, records, history, all random states."
    h = hashlib.sha256()
    def walk(x):
        if isinstance(x, torch.Tensor): h.update(x.detach().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(x, dict): walk([[k, v] for k, v in x.items() if k != 'seconds'])
        elif isinstance(x, list | tuple):
            for v in x: walk(v)
        else: h.update(repr(x).encode())
    walk(run_state(learn))
    return h.hexdigest()
