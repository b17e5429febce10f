"Programs whose datasets and loaders change or draw, all in the main process."
import random
from functools import partial

import numpy as np
import torch
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
    random_split,
)

from miniai import BatchTransformCB, Callback, DataLoaders, Learner, TrainCB
from miniai.augment import rand_crop
from programs import program
from programs.basics import callback, convnet, images, learner, loaders_of, mlp, points

crop_rng = random.Random(21)


class Points(Dataset):
    def __init__(self): self.x, self.y = points()
    def __len__(self): return len(self.x)
    def __getitem__(self, i): return self.x[i], self.y[i]


class Difficulty(Points):
    "Noise whose level a callback raises."
    level = 0.
    def __getitem__(self, i): return self.x[i]*(1 + self.level), self.y[i]


class HarderCB(Callback):
    def after_epoch(self, learn):
        if learn.training: learn.dls.train.dataset.level += 0.5


@program('Difficulty|level', lambda learn: dict(level=learn.dls.train.dataset.level), stop=('train', 1, 2))
def curriculum():
    "a dataset's attribute changed after each epoch"
    return learner(HarderCB(), dls=loaders_of(Difficulty()))


class HarderEachBatchCB(Callback):
    def after_batch(self, learn):
        if learn.training: learn.dls.train.dataset.level += 0.1


@program('Difficulty|level', lambda learn: dict(level=learn.dls.train.dataset.level), stop=('train', 0, 3))
def curriculum_by_batch():
    "a dataset's attribute changed after each batch"
    return learner(HarderEachBatchCB(), dls=loaders_of(Difficulty()))


class Lazy(Points):
    "Decodes a sample once, with noise, and keeps it."
    def __init__(self):
        super().__init__()
        self.cache = {}
    def __getitem__(self, i):
        if i not in self.cache: self.cache[i] = self.x[i] + 0.2*torch.randn(6)
        return self.cache[i], self.y[i]


@program('Lazy|cache', lambda learn: dict(cache=dict(sorted(learn.dls.train.dataset.cache.items()))),
         stop=('train', 1, 2))
def lazy_cache():
    "a dataset that keeps samples as it makes them, with noise"
    return learner(dls=loaders_of(Lazy()))


class LazyPlain(Points):
    "Keeps samples as it makes them; they are always the same."
    def __init__(self):
        super().__init__()
        self.cache = {}
    def __getitem__(self, i):
        if i not in self.cache: self.cache[i] = self.x[i].tanh()
        return self.cache[i], self.y[i]


@program('LazyPlain|cache', stop=('train', 1, 2))
def harmless_cache():
    "a dataset that keeps samples, always the same ones"
    return learner(dls=loaders_of(LazyPlain()))


class Draws(Points):
    def __getitem__(self, i):
        noise = torch.randn(6) + float(np.random.randn()) + random.gauss(0, 1)
        return self.x[i] + 0.1*noise, self.y[i]


@program(stop=('train', 1, 2))
def dataset_draws():
    "a dataset that draws from the three global generators"
    return learner(dls=loaders_of(Draws()))


class Cropped(Points):
    def __getitem__(self, i): return self.x[i]*crop_rng.uniform(0.5, 1.5), self.y[i]


@program('Cropped|crop_rng', stop=('train', 1, 2))
def module_generator_in_dataset():
    "a module-level random.Random in __getitem__"
    return learner(dls=loaders_of(Cropped()))


class ClassNoise(Points):
    rng = np.random.default_rng(22)
    def __getitem__(self, i): return self.x[i] + self.rng.normal(0, 0.2, 6).astype(np.float32), self.y[i]


@program('ClassNoise|rng', stop=('train', 1, 2))
def class_generator_in_dataset():
    "a numpy generator on the dataset's class"
    return learner(dls=loaders_of(ClassNoise()))


class Visits(Points):
    "Weakens a sample each time it is visited."
    def __init__(self):
        super().__init__()
        self.visits = torch.zeros(len(self), dtype=torch.long)
    def __getitem__(self, i):
        self.visits[i] += 1
        return self.x[i]/self.visits[i], self.y[i]


@program('Visits|visits', lambda learn: dict(visits=learn.dls.train.dataset.visits), stop=('train', 1, 2))
def visit_counts():
    "a dataset that counts visits in a tensor"
    return learner(dls=loaders_of(Visits()))


def collate_with_noise(samples, scale):
    x, y = default_collate(samples)
    return x + scale*torch.randn_like(x), y


@program(stop=('train', 1, 2))
def partial_collate():
    "a functools.partial as collate_fn that draws"
    return learner(dls=loaders_of(Points(), collate_fn=partial(collate_with_noise, scale=0.2)))


class GrowingPad:
    "A collate_fn with state: scales by the number of batches made."
    def __init__(self): self.made = 0
    def __call__(self, samples):
        self.made += 1
        x, y = default_collate(samples)
        return x*(1 + self.made/10), y


@program('GrowingPad|made', stop=('train', 1, 2))
def stateful_collate():
    "a collate_fn that counts"
    return learner(dls=loaders_of(Points(), collate_fn=GrowingPad()))


@program()
def subset_and_concat():
    "random_split, Subset and ConcatDataset"
    kept, rest = random_split(Points(), [40, 8], generator=torch.Generator().manual_seed(1))
    return learner(dls=loaders_of(ConcatDataset([kept, Subset(rest, range(4))])))


class Pseudolabels(Callback):
    "Replaces labels in the dataset by confident predictions."
    def after_batch(self, learn):
        if not learn.training: return
        ds = learn.dls.train.dataset
        p, y = learn.preds.softmax(1).max(1)
        for x, prob, label in zip(learn.batch[0], p, y, strict=True):
            if prob > 0.4: ds.y[(ds.x == x).all(1)] = label


@program('y|labels', lambda learn: dict(y=learn.dls.train.dataset.y), stop=('train', 1, 2))
def pseudo_labels():
    "labels in the dataset, changed by a callback"
    return learner(Pseudolabels(), dls=loaders_of(Points()), lr=0.3)


class Stream(IterableDataset):
    "An endless source with its own generator, cut to an epoch's length."
    def __init__(self): self.rng = np.random.default_rng(23)
    def __iter__(self):
        for _ in range(48):
            x = self.rng.normal(size=6).astype(np.float32)
            yield x, int(x[:3].argmax())


@program('Stream|IterableDataset|rng', stop=('train', 1, 2), expect='identical|warned')
def iterable_dataset():
    "an IterableDataset with a generator"
    return learner(dls=loaders_of(Stream(), shuffle=None))


class OwnLoader:
    "A loader of the user's own: an object with __iter__ and a position of its own."
    def __init__(self, bs=8): self.x, self.y, self.bs, self.epoch = *points(), bs, 0
    def __len__(self): return len(self.x)//self.bs
    def __iter__(self):
        order = torch.randperm(len(self.x), generator=torch.Generator().manual_seed(self.epoch))
        self.epoch += 1
        for i in order.split(self.bs): yield self.x[i], self.y[i]


@program('OwnLoader|epoch', lambda learn: dict(epoch=learn.dls.train.epoch), stop=('train', 1, 2))
def own_loader():
    "a loader with its own __iter__, which counts epochs"
    return learner(dls=DataLoaders(OwnLoader(), OwnLoader()))


@program(stop=('train', 1, 3))
def batches_in_memory():
    "miniai's loaders in memory with random crops"
    x, y = images(60)
    dls = DataLoaders.from_arrays(x, y, valid=0.2, bs=8, seed=3)
    return learner(BatchTransformCB(lambda b: (rand_crop(b[0], 1), b[1]), on_val=False), convnet(), dls)


@program(stop=('train', 1, 2))
def lists_of_batches():
    "lists of batches as loaders"
    x, y = points()
    return learner(dls=DataLoaders(list(zip(x.split(8), y.split(8), strict=True)), [points(16, 1)]))


class EpochDataset(Points):
    "set_epoch, called by a callback, as for a DistributedSampler."
    epoch = 0
    def set_epoch(self, epoch): self.epoch = epoch
    def __getitem__(self, i):
        g = torch.Generator().manual_seed(1000*self.epoch + i)
        return self.x[i] + 0.2*torch.randn(6, generator=g), self.y[i]


class SetEpochCB(Callback):
    def before_epoch(self, learn):
        if learn.training: learn.dls.train.dataset.set_epoch(learn.epoch)


@program('EpochDataset|epoch', stop=('train', 1, 2))
def set_epoch():
    "a dataset's set_epoch called in before_epoch"
    return learner(SetEpochCB(), dls=loaders_of(EpochDataset()))


class BufferShuffleCB(Callback):
    "Keeps half of each batch for the next one."
    held = None
    def before_batch(self, learn):
        if not learn.training: return
        x, y = learn.batch
        if self.held is not None: learn.batch = torch.cat([x[:4], self.held[0]]), torch.cat([y[:4], self.held[1]])
        self.held = x[4:], y[4:]


@program('BufferShuffleCB|held', lambda learn: dict(held=callback(learn, BufferShuffleCB).held))
def held_samples():
    "half of each batch kept for the next one"
    return learner(BufferShuffleCB(), dls=loaders_of(TensorDataset(*points())))


class Joined(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, a, b): return self.net(torch.cat([a, b], 1))


@program(stop=('train', 1, 2))
def several_inputs():
    "two arrays in memory as inputs, of unlike dtypes, normalized, with a fold for validation"
    x, y = (t.numpy() for t in points())
    dls = DataLoaders.from_arrays((x[:, :4].astype('f8'), x[:, 4:]), y, range(8, 16), 8, seed=3, normalize=True)
    return learner(TrainCB(n_inp=2), Joined(), dls, cls=Learner)


def streams(workers):
    import datasets
    def stream(n, seed):
        x, y = points(n, seed)
        ds = datasets.Dataset.from_dict(dict(x=x.tolist(), y=y.tolist()))
        return ds.to_iterable_dataset(num_shards=2).with_format('torch')
    dd = datasets.IterableDatasetDict(train=stream(60, 0).shuffle(seed=4, buffer_size=20), test=stream(16, 1))
    return learner(dls=DataLoaders.from_dd(dd, 8, num_workers=workers))


@program(stop=('train', 1, 2))
def hugging_face_stream():
    "a shuffled stream, told its epoch by from_dd's loader"
    return streams(0)


@program(stop=('train', 0, 3))
def hugging_face_stream_in_workers():
    "a shuffled stream in two workers"
    return streams(2)
