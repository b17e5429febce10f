"RecorderCB and HasLearnCB."
import matplotlib.pyplot as plt
import pytest
import torch

from miniai.learner import CancelFitException
from miniai.sgd import HasLearnCB, RecorderCB
from small import Heard, learner, off_cpu, raising


@pytest.mark.parametrize('ends', [None, CancelFitException(), ValueError('oh')])
def test_the_learner_is_kept_for_the_length_of_a_fit_however_it_ends(ends):
    cb, seen = HasLearnCB(), []
    class Look(HasLearnCB):
        def after_batch(self, learn):
            seen.append(self.learn is learn)
            if ends: raise ends
    look = Look()
    learn = learner([cb, look])
    if isinstance(ends, ValueError):
        with pytest.raises(ValueError, match='oh'): learn.fit(1)
    else: learn.fit(1)
    assert all(seen)
    assert seen
    assert cb.learn is look.learn is None


def test_values_are_recorded_after_training_batches_only():
    rec = RecorderCB(lr=lambda cb: cb.pg['lr'], n=lambda cb: len(rec.recs['n']))
    learner(rec, lr=.2).fit(2)
    assert rec.recs == dict(lr=[.2]*8, n=[0., 1., 2., 3., 4., 5., 6., 7.])


def test_values_are_floats_from_any_device():
    values = iter([1, 2., torch.tensor(3.), off_cpu(torch.tensor(4.))])
    rec = RecorderCB(x=lambda cb: next(values))
    learner(rec).fit(1)
    assert rec.recs['x'] == [1, 2, 3, 4]


def test_records_are_empty_at_first_and_start_anew_with_each_fit():
    rec = RecorderCB(x=lambda cb: 1.)
    assert rec.recs == dict(x=[])
    learn = learner(rec)
    learn.fit(1)
    learn.fit(1)
    assert rec.recs == dict(x=[1.]*4)


def test_the_records_of_a_failed_fit_stay():
    rec = RecorderCB(x=lambda cb: 1.)
    with pytest.raises(ValueError, match='oh'): learner([rec, Heard({'after_epoch': raising(ValueError('oh'))})]).fit(1)
    assert rec.recs == dict(x=[1.]*4)


def test_the_optimizer_may_have_no_groups():
    class Bare:
        def step(self): pass
        def zero_grad(self): pass
    rec = RecorderCB(x=lambda cb: float(cb.pg is None))
    learner(rec, opt_func=lambda params, lr: Bare()).fit(1)
    assert rec.recs['x'] == [1.]*4
    learner(rec, opt_func=None).fit(train=False)
    assert rec.recs['x'] == []


def test_plot_draws_one_panel_per_record():
    rec = RecorderCB(a=lambda cb: 1., b=lambda cb: 2.)
    learner(rec).fit(1)
    rec.plot()
    axs = plt.gcf().axes
    assert [ax.get_title() for ax in axs] == ['a', 'b']
    assert [list(ax.lines[0].get_ydata()) for ax in axs] == [[1.]*4, [2.]*4]


def test_any_figure_of_the_learner_can_be_recorded():
    rec = RecorderCB(loss=lambda cb: cb.learn.loss, same=lambda learn: learn.loss, size=lambda cb: len(cb.learn.batch))
    class Look:
        losses = []
        def after_loss(self, learn):
            if learn.training: self.losses.append(learn.loss.item())
    look = Look()
    learner([rec, look]).fit(1)
    assert rec.recs == dict(loss=look.losses, same=look.losses, size=[2.]*4)
    assert rec.learn is None
