"Programs with schedules."
from functools import partial

from torch import optim
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from miniai import BatchSchedCB, Callback, EpochSchedCB
from programs import program
from programs.basics import callback, learner


def momentum(ps, lr): return optim.SGD(ps, lr, momentum=0.9)


@program()
def one_cycle():
    "OneCycleLR per batch"
    return learner(BatchSchedCB(partial(OneCycleLR, max_lr=0.3, total_steps=12)), opt=momentum)


@program()
def warm_restarts():
    "CosineAnnealingWarmRestarts per batch"
    return learner(BatchSchedCB(partial(CosineAnnealingWarmRestarts, T_0=3, T_mult=2)))


@program()
def sequential():
    "SequentialLR of LinearLR and CosineAnnealingLR"
    def sched(opt): return SequentialLR(opt, [LinearLR(opt, 0.1, total_iters=4), CosineAnnealingLR(opt, 8)], [4])
    return learner(BatchSchedCB(sched))


@program(stop=('train', 1, 2))
def per_epoch():
    "StepLR per epoch"
    return learner(EpochSchedCB(partial(StepLR, step_size=1, gamma=0.3)))


class NoisySchedule:
    "A callable object in LambdaLR that keeps the best factor so far."
    def __init__(self): self.factor = 1.
    def __call__(self, step):
        self.factor *= 0.9 if step % 2 else 0.97
        return self.factor


@program('NoisySchedule|factor', stop=('train', 1, 2), expect='identical|reported')
def stateful_lambda():
    "a stateful callable object in LambdaLR"
    return learner(BatchSchedCB(partial(LambdaLR, lr_lambda=NoisySchedule())))


def counted_decay():
    calls = 0
    def decay(step):
        nonlocal calls
        calls += 1
        return 0.95**calls
    return decay


@program('decay|calls', stop=('train', 1, 2), expect='identical|reported')
def nonlocal_in_schedule():
    "a nonlocal counter in a function in LambdaLR"
    return learner(BatchSchedCB(partial(LambdaLR, lr_lambda=counted_decay())))


class PlateauCB(Callback):
    "ReduceLROnPlateau on the running training loss."
    def before_fit(self, learn): self.sched = ReduceLROnPlateau(learn.opt, factor=0.5, patience=1, threshold=0.05)
    def after_batch(self, learn):
        if learn.training: self.sched.step(learn.loss.item())


@program('PlateauCB|sched|ReduceLROnPlateau', lambda learn: dict(s=callback(learn, PlateauCB).sched.state_dict()))
def plateau():
    "ReduceLROnPlateau in a user's callback"
    return learner(PlateauCB())


class CosineCB(Callback):
    "A scheduler that a user's callback makes and steps."
    def before_fit(self, learn): self.sched = CosineAnnealingLR(learn.opt, 12)
    def after_step(self, learn): self.sched.step()


@program('CosineCB|sched', lambda learn: dict(s=callback(learn, CosineCB).sched.state_dict()))
def scheduler_in_callback():
    "a torch scheduler that a user's callback makes in before_fit and steps"
    return learner(CosineCB())


class HandScheduler:
    "A scheduler that the user wrote, with a list of the rates."
    def __init__(self, opt): self.opt, self.rates = opt, [opt.param_groups[0]['lr']]
    def step(self):
        self.rates.append(self.rates[-1]*(0.9 if len(self.rates) % 3 else 1.1))
        self.opt.param_groups[0]['lr'] = self.rates[-1]


class HandScheduledCB(Callback):
    def before_fit(self, learn): self.sched = HandScheduler(learn.opt)
    def after_step(self, learn): self.sched.step()


@program('HandScheduledCB|HandScheduler|rates|sched',
         lambda learn: dict(r=callback(learn, HandScheduledCB).sched.rates))
def own_scheduler():
    "a scheduler class of the user's, in a callback"
    return learner(HandScheduledCB())


@program()
def two_schedules():
    "a schedule per batch and one per epoch together"
    return learner([BatchSchedCB(lambda opt: LambdaLR(opt, lambda step: 1 - step/20)),
                    EpochSchedCB(lambda opt: StepLR(opt, 1, 0.5))])
