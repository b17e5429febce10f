"Programs whose losses have state."
import torch
import torch.nn.functional as F
from torch import nn, optim

from miniai import Callback
from programs import program
from programs.basics import callback, learner, mlp


class AnnealedLoss:
    "Cross-entropy with a weight that falls with each training call."
    def __init__(self): self.weight = 2.0
    def __call__(self, out, y):
        if out.requires_grad: self.weight *= 0.9
        return self.weight*F.cross_entropy(out, y)


@program('AnnealedLoss|weight', lambda learn: dict(w=learn.loss_func.weight))
def annealed_loss():
    "a float that a callable loss anneals"
    return learner(loss=AnnealedLoss())


class SmoothingCB(Callback):
    "Anneals the label smoothing of nn.CrossEntropyLoss."
    def after_batch(self, learn):
        if learn.training: learn.loss_func.label_smoothing *= 0.8


@program('label_smoothing|CrossEntropyLoss', lambda learn: dict(s=learn.loss_func.label_smoothing))
def annealed_label_smoothing():
    "label smoothing of nn.CrossEntropyLoss annealed by a callback"
    return learner(SmoothingCB(), loss=nn.CrossEntropyLoss(label_smoothing=0.3))


class NormalizedLoss(nn.Module):
    "Divides by a running mean of the loss, in a buffer, and counts in an int."
    def __init__(self):
        super().__init__()
        self.register_buffer('mean', torch.ones(()))
        self.n = 0
    def forward(self, out, y):
        loss = F.cross_entropy(out, y)
        if out.requires_grad:
            self.n += 1
            self.mean += (loss.detach() - self.mean)/self.n
        return loss/self.mean


@program('NormalizedLoss|n|mean', lambda learn: dict(n=learn.loss_func.n, mean=learn.loss_func.mean))
def running_statistics():
    "running statistics in a loss module: a buffer and a plain int"
    return learner(loss=NormalizedLoss())


class UncertaintyLoss(nn.Module):
    "Learned weights of two terms (Kendall et al. 2018), given to the optimizer."
    def __init__(self):
        super().__init__()
        self.log_vars = nn.Parameter(torch.zeros(2))
    def forward(self, out, y):
        terms = torch.stack([F.cross_entropy(out, y), out.square().mean()])
        return (terms*(-self.log_vars).exp() + self.log_vars).sum()


@program('UncertaintyLoss|log_vars', lambda learn: dict(lv=learn.loss_func))
def learned_loss_weights():
    "parameters in the loss, given to the optimizer"
    loss = UncertaintyLoss()
    return learner(loss=loss, opt=lambda ps, lr: optim.Adam([*ps, *loss.parameters()], lr))


class MemoryLoss(nn.Module):
    "Keeps the features of earlier batches in a list."
    def __init__(self):
        super().__init__()
        self.bank = []
    def forward(self, out, y):
        loss = F.cross_entropy(out, y)
        if not out.requires_grad: return loss
        if self.bank: loss = loss + 0.1*(out.mean(0) - torch.stack(self.bank).mean(0)).square().sum()
        self.bank = [*self.bank[-3:], out.detach().mean(0)]
        return loss


@program('MemoryLoss|bank', lambda learn: dict(bank=learn.loss_func.bank))
def memory_bank():
    "a list of tensors in a loss module"
    return learner(loss=MemoryLoss())


class LossWeightCB(Callback):
    "A schedule of the weight of a penalty; the loss is a bound method of the callback."
    def __init__(self): self.beta = 0.
    def loss(self, out, y): return F.cross_entropy(out, y) + self.beta*out.square().mean()
    def after_batch(self, learn):
        if learn.training: self.beta += 0.05


@program('LossWeightCB|beta', lambda learn: dict(beta=callback(learn, LossWeightCB).beta))
def bound_method_loss():
    "a bound method of a callback as loss, with a weight that grows"
    cb = LossWeightCB()
    return learner(cb, loss=cb.loss)


class ClassWeightsCB(Callback):
    "Sets the class weights of the loss from the accuracy per class."
    def after_batch(self, learn):
        if not learn.training: return
        y, weight = learn.batch[1], learn.loss_func.weight
        for c, hit in zip(y, learn.preds.argmax(1) == y, strict=True): weight[c] *= 0.97 if hit else 1.05


@program('weight|CrossEntropyLoss', lambda learn: dict(w=learn.loss_func.weight))
def class_weights():
    "class weights of nn.CrossEntropyLoss, changed by a callback"
    return learner(ClassWeightsCB(), mlp(), loss=nn.CrossEntropyLoss(weight=torch.ones(3)))


class SchedulesLoss:
    __slots__ = ('step',)
    def __init__(self): self.step = 0
    def __call__(self, out, y):
        self.step += out.requires_grad
        return F.cross_entropy(out, y)*(1 + self.step/5)


@program('SchedulesLoss|step', lambda learn: dict(step=learn.loss_func.step))
def slotted_loss():
    "a callable loss with __slots__"
    return learner(loss=SchedulesLoss())


class Focal(nn.Module):
    "A loss module inside a loss module, whose gamma changes."
    def __init__(self): super().__init__(); self.gamma = 0.  # noqa: E702
    def forward(self, out, y):
        logp = F.log_softmax(out, 1).gather(1, y[:, None]).squeeze(1)
        return (-(1 - logp.exp())**self.gamma*logp).mean()


class Combined(nn.Module):
    def __init__(self): super().__init__(); self.parts = nn.ModuleList([nn.CrossEntropyLoss(), Focal()])  # noqa: E702
    def forward(self, out, y):
        if out.requires_grad: self.parts[1].gamma += 0.1
        return sum(p(out, y) for p in self.parts)


@program('gamma|Focal', lambda learn: dict(g=learn.loss_func.parts[1].gamma))
def nested_loss():
    "a float in a module inside the loss module"
    return learner(loss=Combined())


@program('log_sigma', lambda learn: dict(s=learn.log_sigma))
def parameter_on_learner():
    "an nn.Parameter on the Learner, given to the optimizer"
    log_sigma = nn.Parameter(torch.zeros(()))
    def loss(out, y): return F.cross_entropy(out, y)*(-log_sigma).exp() + log_sigma
    learn = learner(loss=loss, opt=lambda ps, lr: optim.SGD([*ps, log_sigma], lr, momentum=0.9))
    learn.log_sigma = log_sigma
    return learn
