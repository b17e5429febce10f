"Schedules stepped by batch and by epoch, against torch's own closed forms."
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

from miniai import Callback, CancelBatchException, Learner, MixedPrecision, TrainCB, TrainLearner, optim
from miniai.callbacks.accelerate import AccelerateCB
from miniai.callbacks.accumulate import AccumulateCB
from miniai.datasets import DataLoaders
from miniai.sgd import BaseSchedCB, BatchSchedCB, EpochSchedCB, RecorderCB
from small import Heard, batches, learner


def lr_of(cb): return cb.pg['lr']
def cosine(steps, lr): return [lr*(1 + math.cos(math.pi*i/steps))/2 for i in range(steps)]
def one_cycle(steps): return partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=steps, cycle_momentum=False)


def test_a_batch_schedule_moves_after_each_training_batch():
    rec = RecorderCB(lr=lr_of)
    sched = BatchSchedCB(partial(lr_scheduler.CosineAnnealingLR, T_max=12))
    learner([rec, sched], lr=.1).fit(3)
    assert rec.recs['lr'] == pytest.approx(cosine(12, .1))
    assert sched.schedo.last_epoch == 12


def test_an_epoch_schedule_moves_after_each_training_epoch():
    rec = RecorderCB(lr=lr_of)
    learner([rec, EpochSchedCB(partial(lr_scheduler.CosineAnnealingLR, T_max=3))], lr=.1).fit(3)
    assert rec.recs['lr'] == pytest.approx([lr for lr in cosine(3, .1) for _ in range(4)])


def test_a_recorder_after_the_schedule_sees_the_next_rate():
    rec = RecorderCB(lr=lr_of)
    learner([BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=.5)), rec], lr=1.).fit(1)
    assert rec.recs['lr'] == [.5, .25, .125, .0625]


def test_one_cycle_moves_betas_too():
    rec = RecorderCB(lr=lr_of, mom=lambda cb: cb.pg['betas'][0])
    cb = BatchSchedCB(partial(lr_scheduler.OneCycleLR, max_lr=.1, total_steps=8))
    learner([rec, cb], opt_func=AdamW).fit(2)
    assert max(rec.recs['lr']) == pytest.approx(.1, rel=.05)
    assert min(rec.recs['mom']) == pytest.approx(.85, abs=.01)
    assert rec.recs['mom'][0] == .95


def test_a_new_scheduler_is_made_for_each_fit():
    cb = BatchSchedCB(one_cycle(4))
    learn = learner(cb)
    learn.fit(1)
    first = cb.schedo
    learn.fit(1)
    assert cb.schedo is not first
    assert cb.schedo.optimizer is learn.opt


def test_users_may_write_a_schedule_on_the_base_as_the_notebook_does():
    class EverySecondBatch(BaseSchedCB):
        def after_batch(self, learn):
            if learn.training and learn.iter % 2: self._step(learn)
    rec = RecorderCB(lr=lr_of)
    learner([rec, EverySecondBatch(partial(lr_scheduler.ExponentialLR, gamma=.5))], lr=1.).fit(1)
    assert rec.recs['lr'] == [1., 1., .5, .5]


def test_a_fit_that_only_validates_makes_no_scheduler():
    made = []
    for cls in (BatchSchedCB, EpochSchedCB): learner(cls(made.append), opt_func=None).fit(train=False)
    assert made == []


@pytest.mark.parametrize(('cls', 'n', 'unit'), [(BatchSchedCB, 3, 'batches'), (EpochSchedCB, 12, 'epochs')])
def test_a_schedule_shorter_than_the_fit_says_so_before_the_first_batch(cls, n, unit):
    cb = Heard()
    says = rf'the schedule OneCycleLR is made for 11 steps, but this fit takes 12 {unit}: pass it a total of 12, or'
    with pytest.raises(ValueError, match=says): learner([cls(one_cycle(11)), cb]).fit(n)
    assert 'before_epoch' not in cb.log
    learner(cls(one_cycle(12))).fit(n)
    learner(cls(one_cycle(13))).fit(n)


def test_a_short_schedule_inside_others_is_found_too():
    def chained(opt): return lr_scheduler.ChainedScheduler([one_cycle(3)(opt)], optimizer=opt)
    with pytest.raises(ValueError, match='ChainedScheduler is made for 3 steps'): learner(BatchSchedCB(chained)).fit(1)


def test_a_loader_without_length_takes_any_schedule():
    class Stream(IterableDataset):
        def __iter__(self): return iter(batches())
    dl = DataLoader(Stream(), batch_size=None)
    cb = BatchSchedCB(one_cycle(4))
    learner(cb, dls=DataLoaders(dl, [])).fit(1, valid=False)
    assert cb.schedo.last_epoch == 4


def test_a_schedule_is_stepped_in_every_group():
    def two_groups(params, lr):
        a, *rest = params
        return SGD([dict(params=[a], lr=lr), dict(params=rest, lr=lr*10)], lr=lr)
    learn = learner(BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=.5)), opt_func=two_groups, lr=1e-3)
    learn.fit(1)
    assert [g['lr'] for g in learn.opt.param_groups] == pytest.approx([1e-3/16, 1e-2/16])


# Steps that were skipped

class Spoil(Callback):
    "Makes the gradients of some batches infinite."
    def __init__(self, *bad): self.bad = bad
    def after_loss(self, learn):
        if learn.training and learn.iter in self.bad: learn.loss.register_hook(lambda g: g*math.inf)


class OwnScaler(TrainCB):
    "The course's way: a scaler on the Learner."
    def before_fit(self, learn): learn.scaler = torch.amp.GradScaler('cpu', init_scale=8.)
    def backward(self, learn): learn.scaler.scale(learn.loss).backward()
    def step(self, learn):
        learn.scaler.step(learn.opt)
        learn.scaler.update()


def skipping(**kw): return partial(optim.AdamW, skip_nonfinite=True, **kw)


@pytest.mark.filterwarnings('ignore:.*were skipped')
@pytest.mark.parametrize(('cls', 'cbs', 'opt_func'), [
    (TrainLearner, [], skipping()), (Learner, [MixedPrecision(dtype=torch.float16)], SGD),
    (Learner, [OwnScaler()], SGD), (Learner, [OwnScaler()], optim.Momentum)])
def test_a_skipped_step_does_not_advance_the_schedule(cls, cbs, opt_func):
    "Plain PyTorch: the rates of four batches, of which the second and third are skipped, are those of two steps."
    rec, sched = RecorderCB(lr=lr_of), BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=.5))
    learner([*cbs, rec, sched, Spoil(1, 2)], cls=cls, lr=1e-4, opt_func=opt_func).fit(1)
    assert rec.recs['lr'] == [1e-4, .5e-4, .5e-4, .5e-4]
    assert sched.schedo.last_epoch == 2


@pytest.mark.filterwarnings('ignore:.*were skipped')
def test_accelerates_wrapper_does_not_hide_skipped_steps():
    sched = BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=.5))
    learner([AccelerateCB(mixed_precision='no'), sched, Spoil(1)], cls=Learner, lr=1e-4, opt_func=skipping()).fit(1)
    assert sched.schedo.last_epoch == 3


@pytest.mark.filterwarnings('ignore:.*were skipped')
@pytest.mark.parametrize(('n', 'steps'), [(2, 2), (3, 1)])
def test_a_skipped_step_of_several_batches_advances_the_schedule_by_none_of_them(n, steps):
    sched = BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=.5))
    learner([AccumulateCB(n), sched, Spoil(0)], lr=1e-4, opt_func=skipping()).fit(1)
    assert sched.schedo.last_epoch == steps


@pytest.mark.parametrize(('event', 'steps'), [('after_backward', 2), ('after_predict', 3)])
def test_a_step_cancelled_advances_the_schedule_by_none_of_its_batches(event, steps):
    "Groups of two of four batches; of the second batch either the step is cancelled, or all of it."
    def cancel(learn):
        if learn.model.training and learn.iter == 1: raise CancelBatchException()
    sched = BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=.5))
    learner([AccumulateCB(2), sched, Heard({event: cancel}, events=[event])]).fit(1)
    assert sched.schedo.last_epoch == steps


# Schedules that are told their length

def test_a_schedule_may_ask_for_its_number_of_steps():
    told = []
    def sched(opt, steps):
        told.append(steps)
        return lr_scheduler.CosineAnnealingLR(opt, steps)
    rec = RecorderCB(lr=lr_of)
    learner([rec, BatchSchedCB(sched)], lr=.1).fit(3)
    learner(EpochSchedCB(sched)).fit(5)
    assert rec.recs['lr'] == pytest.approx(cosine(12, .1))
    assert told == [12, 5]


def test_a_schedule_that_needs_its_length_says_so_if_it_is_unknown():
    dls = DataLoaders(DataLoader(Endless(), batch_size=None), [])
    with pytest.raises(ValueError, match='needs the number of steps, but the training loader has no length'):
        learner(BatchSchedCB(lambda opt, steps: None), dls=dls).fit(1, valid=False)


class Endless(IterableDataset):
    def __iter__(self): return iter(batches())


# A second optimizer

class TwoOptimizers(TrainLearner):
    def __init__(self, *args, **kw):
        super().__init__(*args, **kw)
        self.critic = nn.Linear(4, 1)
        self.opt_d = SGD(self.critic.parameters(), lr=1.)

    def step(self):
        super().step()
        self.opt_d.step()


def test_a_schedule_of_a_second_optimizer_moves_only_that_one():
    learn = learner(BatchSchedCB(partial(lr_scheduler.ExponentialLR, gamma=.5), opt='opt_d'), cls=TwoOptimizers)
    learn.fit(1)
    assert (learn.opt.param_groups[0]['lr'], learn.opt_d.param_groups[0]['lr']) == (.1, 1/16)


def test_a_second_optimizer_is_checked_as_the_first():
    with pytest.raises(ValueError, match=r"the Learner has no optimizer 'opt_g': set learn\.opt_g before the fit"):
        learner(BatchSchedCB(one_cycle(12), opt='opt_g'), cls=TwoOptimizers).fit(3)
    with pytest.raises(ValueError, match='made for 11 steps, but this fit takes 12 batches'):
        learner(BatchSchedCB(one_cycle(11), opt='opt_d'), cls=TwoOptimizers).fit(3)
    learn = learner(BatchSchedCB(one_cycle(12), opt='opt_d'), cls=TwoOptimizers)
    learn.opt_d = 'Adam'
    with pytest.raises(TypeError, match=r'the optimizer, a str, has no step or zero_grad'): learn.fit(3)


def test_a_schedule_that_is_made_already_or_not_yet_is_refused_with_what_to_write():
    with pytest.raises(TypeError, match=r'not BatchSchedCB\(warmup_cosine\)'):
        learner(BatchSchedCB(optim.warmup_cosine)).fit(1)
    made = lr_scheduler.StepLR(SGD([torch.zeros(1)], .1), 1)
    with pytest.raises(TypeError, match=r'EpochSchedCB\(lambda opt: StepLR\(opt, …\)\), not a StepLR'):
        EpochSchedCB(made)


def test_reduce_on_plateau_is_refused_with_the_callback_to_use():
    with pytest.raises(TypeError, match='use PlateauCB'): learner(BatchSchedCB(lr_scheduler.ReduceLROnPlateau)).fit(1)
