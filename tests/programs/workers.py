"Programs whose DataLoaders have worker processes."
import random

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from miniai import Callback, SeededSamples
from programs import program
from programs.basics import learner, loaders_of, points
from programs.datasets import Draws, Points

worker_rng = random.Random(31)


@program(stop=('train', 1, 2))
def plain_workers():
    "two workers, nothing random in them"
    return learner(dls=loaders_of(Points(), num_workers=2))


@program('Draws|dataset|workers', stop=('train', 1, 2), expect='identical|warned')
def draws_in_workers():
    "a dataset that draws from the global generators in workers"
    return learner(dls=loaders_of(Draws(), num_workers=2))


@program(stop=('train', 1, 2))
def seeded_samples():
    "the same dataset in SeededSamples"
    return learner(dls=loaders_of(SeededSamples(Draws()), num_workers=2))


class ModuleRng(Points):
    def __getitem__(self, i): return self.x[i]*worker_rng.uniform(0.5, 1.5), self.y[i]


@program('ModuleRng|worker_rng|dataset|workers', stop=('train', 1, 2), expect='identical|warned')
def module_generator_in_workers():
    "a module-level random.Random in __getitem__, in workers: each epoch starts from its state in the main process"
    return learner(dls=loaders_of(ModuleRng(), num_workers=2))


class ClassRng(Points):
    rng = np.random.default_rng(32)
    def __getitem__(self, i): return self.x[i] + self.rng.normal(0, 0.2, 6).astype(np.float32), self.y[i]


@program('ClassRng|rng|dataset|workers', stop=('train', 1, 2), expect='identical|warned')
def class_generator_in_workers():
    "a numpy generator on the dataset's class, in workers"
    return learner(dls=loaders_of(ClassRng(), num_workers=2))


@program('Draws|workers|persistent', stop=('train', 1, 2), expect='identical|reported|warned')
def persistent_workers_draw():
    "persistent workers that draw"
    return learner(dls=loaders_of(Draws(), num_workers=2, persistent_workers=True))


@program('persistent workers', stop=('train', 1, 2), expect='identical|warned')
def persistent_workers():
    "persistent workers, nothing random in them"
    return learner(dls=loaders_of(Points(), num_workers=2, persistent_workers=True))


class CountsInWorker(Points):
    "A counter in the worker's copy of the dataset."
    seen = 0
    def __getitem__(self, i):
        self.seen += 1
        return self.x[i]*(1 + self.seen/100), self.y[i]


@program('CountsInWorker|seen|workers', stop=('train', 1, 2), expect='identical|reported|warned')
def counter_in_workers():
    "a counter in the workers' copies of the dataset, new each epoch"
    return learner(dls=loaders_of(CountsInWorker(), num_workers=2))


@program('CountsInWorker|seen|workers|persistent', stop=('train', 1, 2), expect='reported')
def counter_in_persistent_workers():
    "the same in persistent workers, where it goes on for all epochs"
    return learner(dls=loaders_of(CountsInWorker(), num_workers=2, persistent_workers=True))


class Shards(IterableDataset):
    "Each worker yields its half."
    def __iter__(self):
        x, y = points()
        info = get_worker_info()
        for i in range(info.id if info else 0, len(x), info.num_workers if info else 1): yield x[i], y[i]


@program('Shards|IterableDataset', stop=('train', 1, 2), expect='identical|warned')
def iterable_in_workers():
    "an IterableDataset in workers"
    return learner(dls=loaders_of(Shards(), shuffle=None, num_workers=2))


class DifficultyCB(Callback):
    def after_epoch(self, learn):
        if learn.training: learn.dls.train.dataset.scale += 0.5


class Scaled(Points):
    scale = 1.
    def __getitem__(self, i): return self.x[i]*self.scale, self.y[i]


@program('Scaled|scale', lambda learn: dict(scale=learn.dls.train.dataset.scale), stop=('train', 1, 2))
def curriculum_with_workers():
    "a dataset's attribute changed by epoch, read in workers"
    return learner(DifficultyCB(), dls=loaders_of(Scaled(), num_workers=2))


def seed_worker(worker_id):
    seed = torch.initial_seed() % 2**32
    np.random.seed(seed)
    random.seed(seed)


@program('Draws|dataset|workers', stop=('train', 1, 2), expect='identical|warned')
def worker_init():
    "worker_init_fn and generator as in torch's notes on reproducibility"
    g = torch.Generator().manual_seed(0)
    return learner(dls=loaders_of(Draws(), num_workers=2, worker_init_fn=seed_worker, generator=g))
