"Programs that keep state in functions: closures, globals, function attributes, caches."
from functools import lru_cache, partial

import torch
import torch.nn.functional as F

from miniai import BatchTransformCB, Callback, MetricsCB, TrainLearner
from programs import program
from programs.basics import learner, loaders_of, points
from programs.datasets import Points

step = 0  # changed with `global` below
settings = {'noise': 0.3}  # changed in place
seen_batches = []


def warming_loss():
    calls = 0
    def loss(out, y):
        nonlocal calls
        if out.requires_grad: calls += 1
        return F.cross_entropy(out, y)*min(1, calls/10)
    return loss


@program('loss|calls', expect='identical|reported')
def nonlocal_in_loss():
    "a nonlocal counter in a closure used as loss"
    return learner(loss=warming_loss())


def fading_noise(level):
    def transform(b):
        nonlocal level
        level *= 0.9
        return b[0] + level, b[1]
    return transform


@program('transform|level', expect='identical|reported')
def nonlocal_in_transform():
    "a nonlocal float in a batch transform"
    return learner(BatchTransformCB(fading_noise(1.), on_val=False))


def global_loss(out, y):
    global step
    if out.requires_grad: step += 1
    return F.cross_entropy(out, y)/(1 + step/5)


@program('global_loss|step', expect='identical|reported')
def global_counter():
    "a module-level global changed with `global` by the loss"
    return learner(loss=global_loss)


class FadeCB(Callback):
    "Changes a dict at module level."
    def before_batch(self, learn):
        if not learn.training: return
        settings['noise'] *= 0.9
        learn.batch = learn.batch[0]*(1 + settings['noise']), learn.batch[1]


@program('FadeCB|settings', lambda learn: dict(settings), expect='identical|reported')
def global_dict():
    "a module-level dict changed in place by a callback"
    return learner(FadeCB())


def remember(b):
    seen_batches.append(b[0].mean(0))
    return b[0] - torch.stack(seen_batches[-4:]).mean(0), b[1]


@program('remember|seen_batches', expect='identical|reported')
def global_list():
    "a module-level list filled by a batch transform"
    return learner(BatchTransformCB(remember, on_val=False))


def attribute_loss(out, y):
    attribute_loss.calls += out.requires_grad
    return F.cross_entropy(out, y)*(1 + attribute_loss.calls/10)


attribute_loss.calls = 0


@program('attribute_loss|calls', lambda learn: dict(calls=attribute_loss.calls), expect='identical|reported')
def function_attribute():
    "an attribute of a function"
    return learner(loss=attribute_loss)


def default_loss(out, y, memory=[1.]):  # noqa: B006
    loss = F.cross_entropy(out, y)
    if out.requires_grad: memory.append(loss.item())
    return loss/(sum(memory)/len(memory))


@program('default_loss|memory', expect='identical|reported')
def mutable_default():
    "a mutable default argument"
    return learner(loss=default_loss)


def with_history(out, y, history):
    if out.requires_grad: history.append(out.detach().mean().item())
    return F.cross_entropy(out, y) + 0.1*sum(history)*out.mean()


@program('with_history|history', expect='identical|reported')
def list_in_partial():
    "a list held by functools.partial"
    return learner(loss=partial(with_history, history=[]))


@lru_cache
def basis(n): return torch.randn(n, n)*0.1


@program('basis', stop=('train', 1, 2), expect='identical|reported')
def lru_cached():
    "random features cached by lru_cache on first use"
    return learner(BatchTransformCB(lambda b: (b[0] + b[0] @ basis(6), b[1])))


class CountingLearner(TrainLearner):
    "Keeps a counter, a flag and a list as attributes, made when first needed."
    def get_loss(self):
        super().get_loss()
        if not self.training: return
        self.seen = getattr(self, 'seen', 0) + len(self.batch[0])
        self.curve = [*getattr(self, 'curve', []), self.loss.item()]
        self.loss = self.loss*(1 + self.seen/100)


@program('CountingLearner|seen|curve', lambda learn: dict(seen=learn.seen, curve=learn.curve))
def attributes_made_late():
    "attributes of a Learner subclass, made when first needed"
    return learner(cls=CountingLearner)


class MadeLateCB(Callback):
    "Makes its attributes when first needed."
    def after_loss(self, learn):
        if not learn.training: return
        if not hasattr(self, 'smooth'): self.smooth = learn.loss.detach()
        self.smooth = 0.9*self.smooth + 0.1*learn.loss.detach()
        learn.loss = learn.loss*self.smooth


@program('MadeLateCB|smooth', lambda learn: dict(s=next(c.smooth for c in learn.cbs if hasattr(c, 'smooth'))))
def callback_attribute_made_late():
    "a callback's attribute, made when first needed"
    return learner(MadeLateCB())


def make_logging_metrics():
    "A metric function with a closure that smooths."
    smooth = [0.]
    def smoothed(out, y):
        smooth[0] = 0.5*smooth[0] + 0.5*(out.argmax(1) == y).float().mean().item()
        return torch.tensor(smooth[0])
    return smoothed


@program('smoothed|smooth', expect='identical|reported')
def closure_in_metric():
    "a metric function that smooths in a closure's list"
    class Quiet(MetricsCB):
        def _log(self, d): pass
    learn = learner()
    learn.cbs = [Quiet(smoothed=make_logging_metrics())]
    return learn


class Tokens:
    "A vocabulary that grows while the dataset is read; tokens are numbered as they come."
    def __init__(self): self.ids = {}
    def __call__(self, key): return self.ids.setdefault(key, len(self.ids))


class Tokenized(Points):
    def __init__(self, vocab):
        super().__init__()
        self.vocab = vocab
    def __getitem__(self, i): return self.x[i]*(1 + self.vocab(f'token {round(self.x[i, 0].item()*3)}')/10), self.y[i]


@program('Tokens|vocab|ids', stop=('train', 1, 2))
def growing_vocabulary():
    "a vocabulary that grows while the dataset is read"
    return learner(dls=loaders_of(Tokenized(Tokens())))


@program()
def frozen_constants():
    "closures, partials and globals that never change"
    weights, names = torch.tensor([1., 2., 1.]), ['a', 'b']
    scale = dict(x=2.)
    def loss(out, y): return F.cross_entropy(out, y, weight=weights)*len(names)*scale['x']
    dls = loaders_of(list(zip(*points(), strict=True)))
    return learner(BatchTransformCB(partial(lambda b, k: (b[0]*k, b[1]), k=1.5)), loss=loss, dls=dls)
