"Programs with their own samplers."
import random

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, TensorDataset, WeightedRandomSampler

from miniai import Callback, DataLoaders
from programs import program
from programs.basics import learner, loaders, loaders_of, points
from programs.datasets import Points


class ShuffleSampler(Sampler):
    "Shuffles with its own random.Random."
    def __init__(self, n): self.n, self.rng = n, random.Random(41)
    def __len__(self): return self.n
    def __iter__(self):
        order = list(range(self.n))
        self.rng.shuffle(order)
        return iter(order)


@program('ShuffleSampler|rng', stop=('train', 1, 2), expect='identical|warned')
def sampler_python_random():
    "a sampler with its own random.Random"
    return learner(dls=loaders_of(Points(), shuffle=None, sampler=ShuffleSampler(48)))


class NumpySampler(Sampler):
    "Draws as it goes, with a numpy generator."
    def __init__(self, n): self.n, self.rng = n, np.random.default_rng(42)
    def __len__(self): return self.n
    def __iter__(self):
        for _ in range(self.n): yield int(self.rng.integers(self.n))


@program('NumpySampler|rng', stop=('train', 1, 2), expect='identical|warned')
def sampler_numpy():
    "a sampler that draws one index at a time with numpy"
    return learner(dls=loaders_of(Points(), shuffle=None, sampler=NumpySampler(48)))


class HardExamplesCB(Callback):
    "Hard-example mining: raises the weights of samples that were wrong."
    def after_batch(self, learn):
        if not learn.training: return
        sampler, ds = learn.dls.train.sampler, learn.dls.train.dataset
        wrong = learn.preds.argmax(1) != learn.batch[1]
        for x in learn.batch[0][wrong]: sampler.weights[(ds.x == x).all(1)] *= 1.5


@program('WeightedRandomSampler|weights', lambda learn: dict(w=learn.dls.train.sampler.weights), stop=('train', 1, 2))
def hard_example_mining():
    "weights of a WeightedRandomSampler changed by a callback"
    sampler = WeightedRandomSampler(torch.ones(48), 48)
    return learner(HardExamplesCB(), dls=loaders_of(Points(), shuffle=None, sampler=sampler))


@program(stop=('train', 1, 2))
def sampler_with_generator():
    "a RandomSampler with a generator"
    sampler = RandomSampler(range(48), generator=torch.Generator().manual_seed(43))
    return learner(dls=loaders_of(Points(), shuffle=None, sampler=sampler))


class Buckets:
    "A batch sampler: batches of similar length, in random order."
    def __init__(self, lengths, bs, seed=0):
        self.order, self.bs, self.seed, self.epoch = np.argsort(lengths, kind='stable').tolist(), bs, seed, 0
    def __len__(self): return len(self.order)//self.bs
    def __iter__(self):
        rng = random.Random(self.seed + self.epoch)
        self.epoch += 1
        batches = [self.order[i:i + self.bs] for i in range(0, len(self.order), self.bs)]
        rng.shuffle(batches)
        yield from batches


@program('Buckets|epoch', lambda learn: dict(epoch=learn.dls.train.batch_sampler.epoch), stop=('train', 1, 2),
         expect='identical|warned')
def bucket_batches():
    "a batch sampler that makes buckets by length and counts epochs"
    x, y = points()
    train = DataLoader(TensorDataset(x, y), batch_sampler=Buckets(x.sum(1).tolist(), 8))
    return learner(dls=DataLoaders(train, loaders().valid))


class SelfPacedSampler(Sampler):
    "Starts with the easiest samples and adds more: the share is set by a callback."
    def __init__(self, scores): self.ranked, self.share = scores.argsort(), 0.5
    def __len__(self): return int(len(self.ranked)*self.share)
    def __iter__(self): return iter(self.ranked[:len(self)][torch.randperm(len(self))].tolist())


class PaceCB(Callback):
    def after_epoch(self, learn):
        if learn.training: learn.dls.train.sampler.share = min(1., learn.dls.train.sampler.share + 0.34)


@program('SelfPacedSampler|share', lambda learn: dict(s=learn.dls.train.sampler.share), stop=('train', 1, 1),
         expect='identical|warned')
def self_paced():
    "a sampler whose length a callback changes"
    sampler = SelfPacedSampler(points()[0].norm(dim=1))
    return learner(PaceCB(), dls=loaders_of(Points(), shuffle=None, sampler=sampler))


class LossSampler(Sampler):
    "Keeps a dict of losses by index, filled by a callback, and visits the worst first."
    def __init__(self, n): self.n, self.losses = n, {}
    def __len__(self): return self.n
    def __iter__(self): return iter(sorted(range(self.n), key=lambda i: (-self.losses.get(i, 9.), i)))


class Indexed(Points):
    def __getitem__(self, i): return self.x[i], self.y[i], i


class KeepLossesCB(Callback):
    def before_batch(self, learn):
        if learn.training: *learn.batch, self.i = learn.batch
    def after_batch(self, learn):
        if not learn.training: return
        losses = torch.nn.functional.cross_entropy(learn.preds, learn.batch[1], reduction='none')
        learn.dls.train.sampler.losses.update(zip(self.i.tolist(), losses.tolist(), strict=True))


@program('LossSampler|losses', lambda learn: dict(losses=learn.dls.train.sampler.losses), stop=('train', 1, 2),
         expect='identical|warned|reported')
def worst_first():
    "a sampler ordered by a dict of losses that a callback fills"
    return learner(KeepLossesCB(), dls=loaders_of(Indexed(), shuffle=None, sampler=LossSampler(48)))


@program(stop=('train', 1, 2))
def two_samplers():
    "torch's BatchSampler around a RandomSampler, drop_last"
    train = DataLoader(Points(), batch_sampler=BatchSampler(RandomSampler(range(48)), 9, drop_last=True))
    return learner(dls=DataLoaders(train, loaders().valid))
