"Programs that hold what no checkpoint can hold: it must be named, or be harmless."
import itertools
import logging
import tempfile
import threading

import torch

from miniai import BatchTransformCB, Callback
from programs import program
from programs.basics import learner, loaders, points


class UnlabelledCB(Callback):
    "Takes unlabelled batches from itertools.cycle."
    def __init__(self): self.source = itertools.cycle(points(40, seed=5)[0].split(8))
    def before_batch(self, learn):
        if learn.training: learn.batch = learn.batch[0] + 0.3*next(self.source), learn.batch[1]


@program('UnlabelledCB|source', expect='identical|reported', stop=('train', 1, 1))
def itertools_cycle():
    "itertools.cycle held by a callback"
    return learner(UnlabelledCB())


def weights():
    w = 1.
    while True:
        yield w
        w *= 0.9


class WeightsCB(Callback):
    def __init__(self): self.weights = weights()
    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss*next(self.weights)


@program('WeightsCB|weights', expect='reported')
def generator_object():
    "a generator object held by a callback"
    return learner(WeightsCB())


class SecondLoaderCB(Callback):
    "An iterator over a second DataLoader, restarted when it ends."
    def __init__(self): self.dl, self.it = loaders(lambda n=40, seed=7: points(n, seed)).train, None
    def before_batch(self, learn):
        if not learn.training: return
        try: x, _ = next(self.it)
        except (TypeError, StopIteration):
            self.it = iter(self.dl)
            x, _ = next(self.it)
        learn.batch = learn.batch[0] + 0.3*x, learn.batch[1]


@program('SecondLoaderCB|it', expect='identical|reported')
def second_loader():
    "an iterator over a second DataLoader"
    return learner(SecondLoaderCB())


class IteratorCB(Callback):
    "A list's iterator made in before_fit."
    def before_fit(self, learn): self.scales = iter([1., 2., .5, 1.5, 3., 1., .2, .7, 2., 1., 1.1, .4, .3])
    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss*next(self.scales)


@program('IteratorCB|scales', expect='identical|reported')
def list_iterator():
    "an iterator over a list, made in before_fit"
    return learner(IteratorCB())


class LogFileCB(Callback):
    "Writes losses to a file."
    def before_fit(self, learn): self.file = tempfile.TemporaryFile('w')  # noqa: SIM115
    def after_batch(self, learn): self.file.write(f'{learn.epoch} {learn.iter} {learn.loss.item()}\n')
    def cleanup_fit(self, learn): self.file.close()


@program('LogFileCB|file', expect='identical|warned')
def log_file():
    "an open log file"
    return learner(LogFileCB())


class LoggerCB(Callback):
    "A logger and a lock, which never matter."
    def __init__(self): self.log, self.lock = logging.getLogger('run'), threading.Lock()
    def after_batch(self, learn):
        with self.lock: self.log.debug('loss %s', learn.loss)


@program('LoggerCB')
def logger_and_lock():
    "a logger and a lock"
    return learner(LoggerCB())


class FigureCB(Callback):
    "Keeps a matplotlib figure up to date."
    def before_fit(self, learn):
        import matplotlib.pyplot as plt
        self.fig, self.ax = plt.subplots(figsize=(2, 2))
        self.losses = []
    def after_batch(self, learn): self.losses.append(learn.loss.item())
    def after_epoch(self, learn):
        self.ax.clear()
        self.ax.plot(self.losses)


@program('FigureCB|fig|ax', lambda learn: dict(losses=next(c.losses for c in learn.cbs if hasattr(c, 'losses'))),
         expect='identical|warned')
def matplotlib_figure():
    "a matplotlib figure held by a callback, and its losses"
    return learner(FigureCB())


class StatsThread(Callback):
    "A function and a class held as attributes, and the Learner itself."
    def __init__(self): self.f, self.kind = torch.tanh, torch.nn.Linear
    def before_fit(self, learn): self.learn = learn
    def before_batch(self, learn):
        if learn.training: learn.batch = self.f(learn.batch[0]), learn.batch[1]


@program('StatsThread')
def holds_functions_and_learner():
    "a callback that holds functions, classes and the Learner"
    return learner(StatsThread())


class Schedule:
    "An object with a generator inside, used by a transform."
    def __init__(self): self.values = (0.8**i for i in range(100))
    def __call__(self, b): return b[0]*next(self.values), b[1]


@program('Schedule|values', expect='reported')
def generator_expression():
    "a generator expression inside a transform object"
    return learner(BatchTransformCB(Schedule(), on_val=False))


class CountCB(Callback):
    "itertools.count as a step counter."
    def __init__(self): self.steps = itertools.count(1)
    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss/next(self.steps)**0.5


@program('CountCB|steps', expect='identical|reported')
def itertools_count():
    "itertools.count as a step counter"
    return learner(CountCB())
