"Schedules stepped by batch and by epoch, against torch's own closed forms."
import math
from functools import partial

import pytest
from torch.optim import SGD, AdamW, lr_scheduler
from torch.utils.data import DataLoader, IterableDataset

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
