"Programs with metrics."
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from miniai import Callback, MetricsCB
from programs import program
from programs.basics import callback, learner


class Quiet(MetricsCB):
    def _log(self, d): pass


def with_metrics(*metrics, cbs=(), **named):
    learn = learner()
    learn.cbs = [Quiet(*metrics, **named), *cbs]
    return learn


@program('MulticlassAccuracy')
def torchmetric():
    "a torchmetrics metric in MetricsCB"
    return with_metrics(acc=MulticlassAccuracy(num_classes=3))


class TopLoss:
    "A metric of the user's: update, compute, reset."
    def __init__(self): self.reset()
    def reset(self): self.values = []
    def update(self, out, y): self.values.append(torch.nn.functional.cross_entropy(out, y).item())
    def compute(self): return torch.tensor(sorted(self.values)[-1])


@program('TopLoss|values')
def own_metric():
    "a metric object of the user's, with a list"
    return with_metrics(top=TopLoss())


class Lifetime:
    "A metric that reset does not clear all of: the best value of the whole run."
    def __init__(self): self.best, self.hits, self.n = 0., 0, 0
    def reset(self): self.hits = self.n = 0
    def update(self, out, y): self.hits, self.n = self.hits + (out.argmax(1) == y).sum().item(), self.n + len(y)
    def compute(self):
        self.best = max(self.best, self.hits/self.n)
        return torch.tensor(self.best)


@program('Lifetime|best|hits')
def lifetime_metric():
    "a metric that keeps the best value of the run"
    return with_metrics(best=Lifetime())


class ConfusionCB(Callback):
    "A torchmetrics metric in a callback of the user's, which weighs the loss."
    def __init__(self): self.matrix = MulticlassConfusionMatrix(num_classes=3)
    def after_loss(self, learn):
        if not learn.training: return
        self.matrix.update(learn.preds.detach(), learn.batch[1])
        m = self.matrix.compute().float()
        learn.loss = learn.loss*(2 - m.diag().sum()/m.sum())


@program('ConfusionCB|matrix', lambda learn: dict(m=callback(learn, ConfusionCB).matrix.compute()),
         stop=('train', 1, 2))
def metric_in_callback():
    "a torchmetrics metric in a user's callback"
    return with_metrics(cbs=[ConfusionCB()])
