"Programs whose callbacks keep numbers, flags and records."
import time
from collections import namedtuple
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from miniai import Callback, CancelFitException
from programs import program
from programs.basics import callback, learner


class WarmupCB(Callback):
    "Raises the rate by hand over the first steps."
    def __init__(self, steps=9): self.n, self.total = 0, steps
    def before_batch(self, learn):
        if not learn.training: return
        self.n += 1
        learn.opt.param_groups[0]['lr'] = 0.1*min(1, self.n/self.total)


@program('WarmupCB|n', lambda learn: dict(n=callback(learn, WarmupCB).n))
def counter():
    "a counter that sets the learning rate"
    return learner(WarmupCB())


class CenterCB(Callback):
    "Subtracts a running mean of the inputs."
    def __init__(self): self.mean = torch.zeros(6)
    def before_batch(self, learn):
        x, y = learn.batch
        if learn.training: self.mean = 0.9*self.mean + 0.1*x.mean(0)
        learn.batch = x - self.mean, y


@program('CenterCB|mean', lambda learn: dict(mean=callback(learn, CenterCB).mean))
def tensor():
    "a tensor that is replaced at each batch"
    return learner(CenterCB())


class FeatureStatsCB(Callback):
    "Running statistics as numpy arrays, changed in place."
    def __init__(self): self.mu, self.var, self.count = np.zeros(6), np.ones(6, dtype=np.float32), np.int64(0)
    def before_batch(self, learn):
        x, y = learn.batch
        if learn.training:
            self.count += 1
            self.mu += (x.numpy().mean(0) - self.mu)/self.count
            self.var[:] = 0.9*self.var + 0.1*x.numpy().var(0)
        learn.batch = ((x - torch.from_numpy(self.mu))/torch.from_numpy(self.var).sqrt()).float(), y


@program('FeatureStatsCB|mu|var|count',
         lambda learn: {k: getattr(callback(learn, FeatureStatsCB), k) for k in ('mu', 'var', 'count')})
def numpy_arrays():
    "numpy arrays and a numpy scalar"
    return learner(FeatureStatsCB())


class AutoClipCB(Callback):
    "AutoClip (Seetharaman et al. 2020): clips at a percentile of all norms so far."
    def __init__(self, percentile=30): self.percentile, self.norms = percentile, []
    def after_backward(self, learn):
        params = list(learn.model.parameters())
        self.norms.append(nn.utils.get_total_norm(p.grad for p in params).item())
        clip_grad_norm_(params, np.percentile(self.norms, self.percentile))


@program('AutoClipCB|norms', lambda learn: dict(norms=callback(learn, AutoClipCB).norms))
def clip_by_history():
    "gradient clipping by a history of norms in a list"
    return learner(AutoClipCB())


class SlottedCB:
    "A callback without a base class, with slots."
    __slots__ = ('order', 'scale', 'seen')
    def __init__(self): self.order, self.scale, self.seen = 0, 1.0, 0
    def after_loss(self, learn):
        if not learn.training: return
        self.seen += len(learn.batch[0])
        self.scale *= 0.95
        learn.loss = learn.loss*self.scale


@program('SlottedCB|scale|seen',
         lambda learn: dict(scale=callback(learn, SlottedCB).scale, seen=callback(learn, SlottedCB).seen))
def slots():
    "a callback with __slots__"
    return learner(SlottedCB())


class HalvesCB(Callback):
    "Counts on the class, not the instance."
    batches = 0
    def after_loss(self, learn):
        if not learn.training: return
        HalvesCB.batches += 1
        if HalvesCB.batches > 8: learn.loss = learn.loss/2


@program('HalvesCB|batches', lambda learn: dict(batches=HalvesCB.batches), expect='identical|reported')
def class_attribute():
    "a counter that is a class attribute"
    return learner(HalvesCB())


@dataclass
class NoiseConfig:
    start: float = 0.5
    decay: float = 0.8
    levels: list = field(default_factory=list)


class NoiseCB(Callback):
    "Adds less and less noise; the level is kept in its config."
    def __init__(self, config): self.config = config
    def before_batch(self, learn):
        if not learn.training: return
        c = self.config
        c.levels.append(c.start)
        learn.batch = learn.batch[0] + c.start*torch.randn_like(learn.batch[0]), learn.batch[1]
        c.start *= c.decay


@program('NoiseCB|NoiseConfig|config', lambda learn: dict(config=vars(callback(learn, NoiseCB).config)))
def dataclass_config():
    "a dataclass with mutable fields"
    return learner(NoiseCB(NoiseConfig()))


Best = namedtuple('Best', 'epoch loss')


class BestCB(Callback):
    "Keeps the best batch loss as a namedtuple, and trains harder while above it."
    def __init__(self): self.best = Best(-1, 10.)
    def after_loss(self, learn):
        if not learn.training: return
        loss = learn.loss.item()
        if loss < self.best.loss: self.best = Best(learn.epoch, loss)
        else: learn.loss = learn.loss*1.5


@program('BestCB|best', lambda learn: dict(best=callback(learn, BestCB).best))
def named_tuple():
    "a namedtuple that is replaced"
    return learner(BestCB())


class Stage(Enum):
    WARM, MAIN = 'warm', 'main'


class StagesCB(Callback):
    "Changes its stage, an Enum, when the loss has fallen."
    def __init__(self): self.stage, self.since = Stage.WARM, 0
    def after_loss(self, learn):
        if not learn.training: return
        self.since += 1
        if self.stage is Stage.WARM and self.since >= 3: self.stage = Stage.MAIN
        learn.loss = learn.loss*(0.1 if self.stage is Stage.WARM else 1)


@program('StagesCB|stage|Stage', lambda learn: dict(stage=callback(learn, StagesCB).stage))
def enum():
    "an Enum attribute"
    return learner(StagesCB())


class ClockCB(Callback):
    "Measures the time of the run."
    def __init__(self): self.start, self.took = time.time(), []
    def before_epoch(self, learn): self.epoch_start = time.perf_counter()
    def after_epoch(self, learn): self.took.append(time.perf_counter() - self.epoch_start)


@program()
def clock():
    "times as attributes, which differ in every run"
    return learner(ClockCB())


class LossLogCB(Callback):
    "Appends losses to a list on the Learner, and stops if they grow."
    def after_batch(self, learn):
        if not learn.training: return
        learn.losses.append(learn.loss.item())
        if len(learn.losses) > 6 and learn.losses[-1] > 5*learn.losses[0]: raise CancelFitException


@program('losses', lambda learn: dict(losses=learn.losses))
def list_on_learner():
    "a list of losses on the Learner"
    learn = learner(LossLogCB())
    learn.losses = []
    return learn


class LossScaleCB(Callback):
    "Loss scaling by hand with a plain float on the Learner."
    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss*learn.loss_scale
    def after_backward(self, learn):
        for p in learn.model.parameters(): p.grad /= learn.loss_scale - 0.5
        learn.loss_scale *= 1.5


@program('loss_scale', lambda learn: dict(scale=learn.loss_scale))
def float_on_learner():
    "a float on the Learner that grows"
    learn = learner(LossScaleCB())
    learn.loss_scale = 2.0
    return learn


class PatienceCB(Callback):
    "Halves the rate when the validation loss has not improved; a flag and a best value."
    def __init__(self): self.best, self.bad, self.improved = float('inf'), 0, False
    def before_epoch(self, learn): self.sum = 0.
    def after_batch(self, learn): self.sum += learn.loss.item()
    def after_epoch(self, learn):
        if learn.training: return
        self.improved = self.sum < self.best*0.5
        if self.improved: self.best, self.bad = self.sum, 0
        else: self.bad += 1
        if self.bad: learn.opt.param_groups[0]['lr'] *= 0.5


@program('PatienceCB|best|bad|improved|sum', lambda learn: dict(best=callback(learn, PatienceCB).best),
         stop=('valid', 1, 0))
def patience():
    "best value, flag and a sum over the epoch"
    return learner(PatienceCB())
