"Programs with miniai's own callbacks, and callbacks that change options of other objects."
import torch
from torch import nn, optim

from miniai import AccumulateCB, BatchTransformCB, Callback, EarlyStoppingCB, RecorderCB
from miniai.augment import CutMixCB, MixUpCB, RandErase
from programs import program
from programs.basics import BS, callback, convnet, images, learner, loaders, mlp, mlp_with_dropout


@program('EarlyStoppingCB', stop=('train', 1, 3), epochs=4)
def early_stopping():
    "EarlyStoppingCB with patience 1"
    return learner(EarlyStoppingCB('accuracy', patience=1, min_delta=0.1))


@program('AccumulateCB', stop=('train', 1, 2))
def accumulate():
    "AccumulateCB, stopped inside a group"
    return learner(AccumulateCB(4), lr=0.3)


@program('MixUpCB', stop=('train', 1, 2))
def mixup():
    "MixUpCB with a generator of its own"
    return learner(MixUpCB(0.4, generator=torch.Generator().manual_seed(1)))


@program('CutMixCB', stop=('train', 0, 3))
def cutmix():
    "CutMixCB, drawing from the global generators"
    return learner(CutMixCB(), convnet(), loaders(images))


@program('RandErase', stop=('train', 1, 2))
def rand_erase():
    "RandErase as a batch transform, with a generator"
    erase = RandErase(0.3, 2, generator=torch.Generator().manual_seed(4))
    return learner(BatchTransformCB(lambda b: (erase(b[0]), b[1]), on_val=False), convnet(), loaders(images))


class StrengthCB(Callback):
    "Stronger erasing from epoch to epoch: changes an option of another object."
    def __init__(self, erase): self.erase = erase
    def after_epoch(self, learn):
        if learn.training: self.erase.pct += 0.2


@program('RandErase|pct|erase', lambda learn: dict(pct=callback(learn, StrengthCB).erase.pct), stop=('train', 1, 1))
def transform_strength():
    "the strength of a batch transform, changed by epoch"
    erase = RandErase(0.1, 2)
    return learner([BatchTransformCB(lambda b: (erase(b[0]), b[1]), on_val=False), StrengthCB(erase)], convnet(),
                   loaders(images))


class UnfreezeCB(Callback):
    "Trains the head alone in the first epoch."
    def before_fit(self, learn): learn.model[0].requires_grad_(False)
    def before_epoch(self, learn):
        if learn.epoch == 1: learn.model[0].requires_grad_(True)


@program('UnfreezeCB|requires_grad|0.weight|frozen', stop=('train', 1, 2))
def unfreeze():
    "layers frozen in before_fit and unfrozen in the second epoch"
    return learner(UnfreezeCB())


class UnfreezeOnceCB(Callback):
    "Unfreezes when the loss is low enough; this cannot be derived from the epoch."
    def before_fit(self, learn): learn.model[0].requires_grad_(False)
    def after_batch(self, learn):
        if learn.training and learn.loss < 1.1: learn.model[0].requires_grad_(True)


@program('requires_grad|0.weight|frozen', stop=('train', 1, 3))
def unfreeze_by_loss():
    "layers unfrozen when the loss is low"
    return learner(UnfreezeOnceCB())


class DropoutScheduleCB(Callback):
    "Multiplies every dropout's p after each epoch."
    def after_epoch(self, learn):
        if not learn.training: return
        for m in learn.model.modules():
            if isinstance(m, nn.Dropout): m.p = min(0.9, m.p*2.5)


@program('Dropout|2.p', lambda learn: dict(p=learn.model[2].p), stop=('train', 1, 1))
def dropout_schedule():
    "dropout p changed by epoch"
    return learner(DropoutScheduleCB(), mlp_with_dropout())


class ReplaceLoadersCB(Callback):
    "Larger batches in the second epoch: new loaders each epoch, from the epoch's number."
    def before_fit(self, learn): learn.dls = loaders(bs=BS)
    def after_epoch(self, learn):
        if not learn.training: learn.dls = loaders(bs=BS*(learn.epoch + 2))


@program('ReplaceLoadersCB|dls|training data', stop=('train', 1, 1), expect='identical|reported')
def replaced_loaders():
    "a callback that replaces learn.dls after each epoch"
    return learner(ReplaceLoadersCB())


class ShareCB(Callback):
    "Counts into a list and draws from a generator that it shares with another callback."
    def __init__(self, log, generator): self.log, self.generator = log, generator
    def after_loss(self, learn):
        if not learn.training: return
        self.log.append(torch.rand((), generator=self.generator).item())
        learn.loss = learn.loss*(1 + sum(self.log)/len(self.log))


class ShareTooCB(ShareCB): pass


@program('ShareCB|ShareTooCB|log|generator', lambda learn: dict(log=callback(learn, ShareCB).log))
def shared_list_and_generator():
    "two callbacks that share a list and a generator"
    log, generator = [], torch.Generator().manual_seed(3)
    return learner([ShareCB(log, generator), ShareTooCB(log, generator)])


class HoldsOptimizerCB(Callback):
    "Keeps the Learner's optimizer and changes its momentum as it goes."
    def before_fit(self, learn): self.opt, self.model = learn.opt, learn.model
    def after_step(self, learn):
        g = self.opt.param_groups[0]
        g['momentum'] = min(0.95, g['momentum'] + 0.05)


@program('HoldsOptimizerCB|opt|momentum', lambda learn: dict(mom=learn.opt.param_groups[0]['momentum']))
def holds_the_optimizer():
    "a callback that holds the stepped optimizer and the model"
    return learner(HoldsOptimizerCB(), opt=lambda ps, lr: optim.SGD(ps, lr, momentum=0.5))


class CurriculumCB(Callback):
    "Noise that depends on learn.epoch alone."
    def before_batch(self, learn):
        if learn.training: learn.batch = learn.batch[0]*(1 + learn.epoch), learn.batch[1]


@program()
def stateless_curriculum():
    "a callback that reads learn.epoch and keeps nothing"
    return learner(CurriculumCB())


@program('RecorderCB', lambda learn: dict(recs=callback(learn, RecorderCB).recs))
def recorder():
    "RecorderCB"
    return learner(RecorderCB(lr=lambda cb: cb.pg['lr']))




@program('scaler|GradScaler', lambda learn: dict(scale=learn.scaler.get_scale()))
def grad_scaler():
    "a GradScaler on the Learner"
    from miniai import Learner, TrainCB
    class ScaledTrainCB(TrainCB):
        def backward(self, learn): learn.scaler.scale(learn.loss).backward()
        def step(self, learn):
            learn.scaler.step(learn.opt)
            learn.scaler.update()
    learn = learner(ScaledTrainCB(), mlp(), cls=Learner)
    learn.scaler = torch.amp.GradScaler('cpu', init_scale=8., growth_interval=3)
    return learn
