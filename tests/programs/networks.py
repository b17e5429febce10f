"Programs with more than one network: GANs, teachers, averages, memory banks."
import copy

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

from miniai import BatchSchedCB, Callback, Learner, TrainLearner
from programs import program
from programs.basics import callback, convnet, images, learner, loaders, mlp


class AdversaryCB(Callback):
    "A critic that tells training points from validation-like noise, with its own optimizer."
    def __init__(self):
        self.critic = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
        self.opt = optim.Adam(self.critic.parameters(), lr=1e-2)

    def after_loss(self, learn):
        if not learn.training: return
        x = learn.batch[0]
        real, fake = self.critic(x), self.critic(torch.randn_like(x))
        loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        self.opt.zero_grad()
        loss.backward()
        self.opt.step()
        learn.loss = learn.loss * (1 + real.mean().sigmoid().detach())


@program('AdversaryCB|critic', lambda learn: dict(critic=callback(learn, AdversaryCB).critic))
def callback_with_network():
    "a callback with its own network and Adam"
    return learner(AdversaryCB())


class GANLearner(Learner):
    "Generator and discriminator, in dicts on the Learner."
    def __init__(self, dls):
        self.nets = {'gen': nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 6)),
                     'disc': nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))}
        super().__init__(self.nets['gen'], dls, loss_func=None, lr=2e-3, opt_func=optim.Adam)
        self.opts = {'disc': optim.Adam(self.nets['disc'].parameters(), lr=2e-3, betas=(0.5, 0.999))}

    def predict(self): self.preds = self.model(torch.randn(len(self.batch[0]), 4))
    def get_loss(self): self.loss = F.softplus(-self.nets['disc'](self.preds)).mean()
    def backward(self): self.loss.backward()
    def step(self):
        self.opt.step()
        disc, real = self.nets['disc'], self.batch[0]
        self.opts['disc'].zero_grad()
        (F.softplus(-disc(real)).mean() + F.softplus(disc(self.preds.detach())).mean()).backward()
        self.opts['disc'].step()
    def zero_grad(self): self.opt.zero_grad()


@program('nets|opts|disc', lambda learn: dict(nets=learn.nets, opts=learn.opts))
def gan_in_dicts():
    "a GAN: networks and optimizers in dicts on the Learner"
    return GANLearner(loaders())


class CriticsLearner(TrainLearner):
    "Two critics in a list judge the features; their optimizers are in a list as well."
    critics_lr = 1e-2
    def get_loss(self):
        super().get_loss()
        if not self.training: return
        p = self.preds.softmax(1)
        for c, o in zip(self.critics, self.critic_opts, strict=True):
            o.zero_grad()
            c(p.detach()).square().mean().sub(1).abs().backward()
            o.step()
            self.loss = self.loss + 0.1*c(p).mean()


@program('critics|critic_opts', lambda learn: dict(critics=learn.critics, opts=learn.critic_opts))
def critics_in_lists():
    "networks and optimizers in lists on the Learner"
    learn = learner(cls=CriticsLearner)
    learn.critics = [nn.Linear(3, 1), nn.Linear(3, 1)]
    learn.critic_opts = [optim.SGD(c.parameters(), 1e-2, momentum=0.9) for c in learn.critics]
    return learn


class AveragedModelCB(Callback):
    "torch's AveragedModel, updated after each step, whose predictions the loss follows."
    def before_fit(self, learn): self.ema = AveragedModel(learn.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    def after_step(self, learn): self.ema.update_parameters(learn.model)
    def after_loss(self, learn):
        if learn.training:
            with torch.no_grad(): target = self.ema(learn.batch[0])
            learn.loss = learn.loss + 0.1*F.mse_loss(learn.preds, target)


@program('AveragedModelCB|ema', lambda learn: dict(ema=callback(learn, AveragedModelCB).ema))
def averaged_model():
    "torch's AveragedModel made in before_fit"
    return learner(AveragedModelCB())


class EMADictCB(Callback):
    "A hand-written exponential moving average; validation uses it."
    def __init__(self, decay=0.9): self.decay = decay
    def before_fit(self, learn): self.shadow = {k: v.detach().clone() for k, v in learn.model.state_dict().items()}
    def after_step(self, learn):
        for k, v in learn.model.state_dict().items():
            self.shadow[k].mul_(self.decay).add_(v.detach(), alpha=1 - self.decay)
    def before_epoch(self, learn):
        if learn.training: return
        self.backup = {k: v.clone() for k, v in learn.model.state_dict().items()}
        learn.model.load_state_dict(self.shadow)
    def after_epoch(self, learn):
        if not learn.training: learn.model.load_state_dict(self.backup)


@program('EMADictCB|shadow|backup', lambda learn: dict(shadow=callback(learn, EMADictCB).shadow), stop=('train', 1, 2))
def ema_in_dict():
    "a hand-written average in a dict, swapped in for validation"
    return learner(EMADictCB())


@program('EMADictCB|shadow|backup', lambda learn: dict(shadow=callback(learn, EMADictCB).shadow), stop=('valid', 1, 0))
def ema_swapped_in():
    "the same, stopped while the average is in the model"
    return learner(EMADictCB())


class MeanTeacherCB(Callback):
    "A teacher that follows the student; the student should agree with it under noise."
    def __init__(self, student, momentum=0.95):
        self.teacher, self.momentum = copy.deepcopy(student).requires_grad_(False), momentum
    def after_predict(self, learn):
        if learn.training: self.target = self.teacher(learn.batch[0] + 0.1*torch.randn_like(learn.batch[0]))
    def after_loss(self, learn):
        if learn.training: learn.loss = learn.loss + F.mse_loss(learn.preds.softmax(1), self.target.softmax(1))
    def after_step(self, learn):
        for t, s in zip(self.teacher.parameters(), learn.model.parameters(), strict=True):
            t.lerp_(s.detach(), 1 - self.momentum)


@program('MeanTeacherCB|teacher', lambda learn: dict(teacher=callback(learn, MeanTeacherCB).teacher))
def mean_teacher():
    "a teacher network that follows the student"
    model = mlp()
    return learner(MeanTeacherCB(model), model)


class BornAgainCB(Callback):
    "Each epoch learns from the predictions of the weights at the end of the epoch before."
    previous = None
    def after_loss(self, learn):
        if not learn.training or self.previous is None: return
        with torch.no_grad(): old = self.previous(learn.batch[0]).softmax(1)
        learn.loss = learn.loss + F.cross_entropy(learn.preds, old)
    def after_epoch(self, learn):
        if learn.training: self.previous = copy.deepcopy(learn.model).eval()


@program('BornAgainCB|previous', stop=('train', 1, 2), expect='reported')
def self_distillation():
    "self-distillation from the previous epoch's weights, made during the run"
    return learner(BornAgainCB())


class MoCoLearner(TrainLearner):
    "Momentum contrast: a key encoder and a queue of keys."
    m, temperature = 0.9, 0.2
    def setup(self, size=32):
        self.encoder_k = copy.deepcopy(self.model).requires_grad_(False)
        self.queue, self.queue_ptr = F.normalize(torch.randn(size, 3), dim=1), 0
        return self

    def get_loss(self):
        x = self.batch[0]
        q = F.normalize(self.model(x + 0.1*torch.randn_like(x)), dim=1)
        k = F.normalize(self.encoder_k(x + 0.1*torch.randn_like(x)), dim=1)
        logits = torch.cat([(q*k).sum(1, keepdim=True), q @ self.queue.clone().T], 1)/self.temperature
        self.loss = F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))
        if self.training: self.enqueue(k)

    def enqueue(self, k):
        i = self.queue_ptr
        self.queue[i:i + len(k)] = k
        self.queue_ptr = (i + len(k)) % len(self.queue)
        for pk, pq in zip(self.encoder_k.parameters(), self.model.parameters(), strict=True):
            pk.mul_(self.m).add_(pq.detach(), alpha=1 - self.m)


@program('queue|queue_ptr|encoder_k', lambda learn: dict(queue=learn.queue, ptr=learn.queue_ptr, key=learn.encoder_k))
def moco():
    "MoCo: a key encoder, a queue and its pointer on a Learner subclass"
    return learner(cls=MoCoLearner, loss=None).setup()


class SWACB(Callback):
    "Stochastic weight averaging with torch's swa_utils, from the second epoch on."
    def before_fit(self, learn):
        self.swa_model = AveragedModel(learn.model)
        self.swa_sched = SWALR(learn.opt, swa_lr=0.02, anneal_epochs=4)
    def after_batch(self, learn):
        if not learn.training: return
        self.swa_model.update_parameters(learn.model)
        self.swa_sched.step()
    def after_fit(self, learn): update_bn(learn.dls.train, self.swa_model)


@program('SWACB|swa_model|swa_sched', lambda learn: dict(swa=callback(learn, SWACB).swa_model))
def swa():
    "SWA: averaged model and SWALR in a callback, BatchNorm updated at the end"
    return learner(SWACB(), convnet(), loaders(images))


class CriticSchedCB(Callback):
    "A small network with an optimizer and a scheduler of its own."
    def __init__(self):
        self.head = nn.Linear(3, 3)
        self.head_opt = optim.SGD(self.head.parameters(), lr=0.1, momentum=0.9)
        self.head_sched = optim.lr_scheduler.StepLR(self.head_opt, step_size=3, gamma=0.5)
    def after_predict(self, learn): self.raw, learn.preds = learn.preds, self.head(learn.preds)
    def after_step(self, learn):
        self.head_opt.step()
        self.head_opt.zero_grad()
        self.head_sched.step()


@program('CriticSchedCB|head|head_opt|head_sched',
         lambda learn: dict(head=callback(learn, CriticSchedCB).head,
                            lr=callback(learn, CriticSchedCB).head_opt.param_groups[0]['lr']))
def callback_with_scheduler():
    "a callback with a head, its optimizer and its scheduler"
    return learner([CriticSchedCB(), BatchSchedCB(lambda opt: optim.lr_scheduler.ExponentialLR(opt, 0.95))])


class LookaheadCB(Callback):
    "Lookahead (Zhang et al. 2019): slow weights follow the fast ones every k steps."
    def __init__(self, k=4, alpha=0.5): self.k, self.alpha, self.steps = k, alpha, 0
    def before_fit(self, learn): self.slow = [p.detach().clone() for p in learn.model.parameters()]
    @torch.no_grad()
    def after_step(self, learn):
        self.steps += 1
        if self.steps % self.k: return
        for s, p in zip(self.slow, learn.model.parameters(), strict=True):
            s.lerp_(p, self.alpha)
            p.copy_(s)


@program('LookaheadCB|slow|steps', lambda learn: dict(slow=callback(learn, LookaheadCB).slow))
def lookahead():
    "lookahead: slow weights in a list, made in before_fit, and a counter"
    return learner(LookaheadCB())


class ClassCentersCB(Callback):
    "A prototype per class, made when a class is first seen, pulled towards its features."
    def __init__(self): self.centers = {}
    def after_predict(self, learn):
        if not learn.training: return
        for f, c in zip(learn.preds.detach(), learn.batch[1].tolist(), strict=True):
            self.centers[c] = 0.9*self.centers[c] + 0.1*f if c in self.centers else f.clone()
    def after_loss(self, learn):
        if not learn.training: return
        centers = torch.stack([self.centers[c] for c in learn.batch[1].tolist()])
        learn.loss = learn.loss + 0.05*F.mse_loss(learn.preds, centers)


@program('ClassCentersCB|centers', lambda learn: dict(centers=callback(learn, ClassCentersCB).centers))
def class_centers():
    "a dict of tensors with whole numbers as keys, filled during the run"
    return learner(ClassCentersCB())
