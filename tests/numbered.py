"A run whose samples are numbered, to see which ones any number of processes has in a batch."
from itertools import chain

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.accel import AccumulateCB
from miniai.activations import ActivationStats
from miniai.data.loaders import DataLoaders
from miniai.data.memory import MemoryLoader
from miniai.distributed import DistributedCB, world
from miniai.distributed.ranks import gathered
from miniai.distributed.whole import whole_copy
from miniai.learner import DeviceCB, TrainLearner
from miniai.metrics.accuracy import accuracy
from miniai.metrics.best import BestCB
from miniai.metrics.whole import Whole
from miniai.optim import AdamW
from miniai.resume.checkpoint import CheckpointCB
from resuming import Quiet, StopCB, Watcher, fit_until_stopped


class SeenCB(Watcher):
    "The numbers of the samples of each batch, of all processes in order."
    order = 1e7
    def __init__(self): self.seen = []
    def after_batch(self, learn):
        mine = learn.batch[0][:, 0].tolist() if learn.counts else []
        self.seen.append((learn.epoch, learn.training, learn.iter, [*chain(*gathered(mine))]))


def largest(preds, y): return (preds.max(1).values*(y + 1)).sum().item()


def numbered(folder, *cbs, metrics=None, opt_func=AdamW, **saving):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=g, dtype=torch.float64), torch.randint(0, 3, (60,), generator=g)
    x[:, 0] = torch.arange(60)
    dls = DataLoaders(MemoryLoader(x[:37], y[:37], bs=8, shuffle=True), MemoryLoader(x[37:], y[37:], bs=10))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()
    saver = CheckpointCB(folder, **(dict(minutes=1e-9, keep=100) | saving))
    shown = Quiet(accuracy, largest=Whole(largest), **metrics or {})
    return TrainLearner(model, dls, F.cross_entropy, 0.01, [shown, AccumulateCB(2), BestCB(), saver, *cbs], opt_func)


def assert_close(row, one):
    assert row == {k: v if isinstance(v, str) else pytest.approx(v, abs=1e-12) for k, v in one.items()}


def in_zero(params, lr):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # gives a DeprecationWarning
    return ZeroRedundancyOptimizer(params, AdamW, lr=lr)


def weights_of(learn): return torch.cat([p.detach().flatten() for p in whole_copy(learn.model).parameters()])


def part_of_run(folder, stop, how='ddp', **options):
    "Resume the run, or start it, and stop it after the batch `stop`. What it saw, its figures, weights, statistics."
    if how == 'zero': how, options = 'ddp', options | dict(opt_func=in_zero)
    seen, stats = SeenCB(), ActivationStats(lambda m: isinstance(m, nn.ReLU))
    cbs = [seen, stats, DistributedCB(how) if world() > 1 else DeviceCB('cpu'), *([StopCB(*stop)] if stop else [])]
    learn = numbered(folder, *cbs, **options)
    if stop: fit_until_stopped(learn, 3, resume=True)
    else: learn.fit(3, resume=True)
    figures = [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history]
    return seen.seen, figures, weights_of(learn), [torch.stack(column) for column in stats.hooks[0].stats]
