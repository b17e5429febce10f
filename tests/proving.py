"Functions that make Learners, for fresh processes to import: some resume exactly, many do not."
import os
import time
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset, default_collate

from miniai.callbacks.record import RecorderCB
from miniai.data import DataLoaders
from miniai.events import Callback
from miniai.learner import TrainLearner
from miniai.metrics.accuracy import accuracy
from miniai.metrics.metrics import MetricsCB
from miniai.resume.checkpoint import CheckpointCB
from miniai.steps.schedule import BatchSchedCB


class OddSampler:
    "An order whose random source is unknown."
    def __len__(self): return 8
    def __iter__(self): return iter(torch.randperm(8).tolist())


class Quiet(MetricsCB):
    def _log(self, d): pass


def whole(cbs=(), workers=0, model=None, bs=2, **kwargs):
    "Four shuffled batches an epoch, dropout, momentum, 1cycle for two epochs, records."
    torch.manual_seed(0)
    data = TensorDataset(torch.arange(32.).reshape(8, 4)/32, torch.arange(8) % 3)
    train = DataLoader(data, bs, num_workers=workers, **(kwargs or dict(shuffle=True)))
    dls = DataLoaders(train, DataLoader(data, 2*bs, num_workers=workers))
    sched = BatchSchedCB(partial(optim.lr_scheduler.OneCycleLR, max_lr=.1, total_steps=8))
    given = [Quiet(accuracy=accuracy), RecorderCB(lr=lambda cb: cb.pg['lr']), sched, *cbs]
    model = model or nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(.5), nn.Linear(8, 3))
    return TrainLearner(model, dls, F.cross_entropy, .1, given, partial(optim.SGD, momentum=.9))


def with_workers():
    "Its loader can only be started by fork: its collate_fn cannot be pickled."
    return whole(workers=2, shuffle=True, collate_fn=lambda b: default_collate(b))


def with_an_odd_sampler(): return whole(sampler=OddSampler())
def has_one_batch(): return whole(bs=8)
def notes_the_time(): return whole([RecorderCB(clock=lambda cb: time.time())])
def saves_by_itself(): return whole([CheckpointCB('nowhere')])
def is_no_learner(): return nn.Linear(2, 3)
def fails(): raise OSError('the disk is\non fire')
def is_shot(): os.kill(os.getpid(), 11)


def leaves(code): raise SystemExit(code)


def ends_in_words():
    print('half of it', 'and the other half', sep='\n\n', flush=True)
    os._exit(3)


class DriftCB(Callback):
    "Multiplies the loss by more with each batch, counted by a number, or by an iterator that no checkpoint can hold."
    def __init__(self, counter=None): self.n, self.counter = 0, counter
    def after_loss(self, learn):
        self.n = next(self.counter) if self.counter else self.n + learn.training
        learn.loss = learn.loss*(1 + self.n/10)


def forgets(): return whole([DriftCB(count())])
def counts(): return whole([DriftCB(), DriftCB()])


class Counting(nn.Linear):
    "A layer that counts its batches in a plain attribute, and outputs less with each."
    calls = 0
    def forward(self, x):
        self.calls += self.training
        return super().forward(x)/(1 + self.calls)


def counts_in_a_module(): return whole(model=nn.Sequential(Counting(4, 3)))


def is_never_the_same():
    learn = whole()
    torch.manual_seed(int.from_bytes(os.urandom(7), 'big'))
    return learn
