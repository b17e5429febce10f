"The watch over the loss: what it says, when it looks, what it leaves alone. Refusals before a fit: test_learner.py."
import re
import time

import pytest
import torch
import torch.nn.functional as F

from miniai.callbacks.checks import check_lr, check_optimizer
from miniai.callbacks.train import FiniteLossCB
from miniai.datasets import DataLoaders
from miniai.learner import CancelBatchException, CancelEpochException, NonFiniteLossError, ProgressCB
from small import Heard, batches, learner, off_cpu, raising, same, weights

NAN = float('nan')


def poisoned(*at, n=4): return [(x*NAN if i in at else x, y) for i, (x, y) in enumerate(batches(n))]
def fit(learn, n=1, **kwargs): learn.fit(n, valid=False, **kwargs)


def test_epoch_and_batch_of_the_first_bad_loss_are_named_and_what_to_do():
    class Later:
        def before_batch(self, learn):
            if (learn.epoch, learn.iter) == (1, 2): learn.batch = (learn.batch[0]*NAN, learn.batch[1])
    says = (r'the training loss is nan in epoch 1, batch 2 \(both counted from 0\)\. The weights are as they were '
            r'before this batch.*rate that is too high.*not normalized.*check_finite = False')
    with pytest.raises(NonFiniteLossError, match=says): fit(learner(Later()), 3)


def test_the_batch_of_a_bad_loss_takes_no_step_and_keeps_the_state_of_the_optimizer():
    learn = learner(opt_func=torch.optim.Adam, dls=DataLoaders(poisoned(2), []))
    with pytest.raises(NonFiniteLossError): fit(learn)
    assert {int(s['step']) for s in learn.opt.state.values()} == {2}
    assert all(w.isfinite().all() for w in weights(learn).values())


def test_the_loss_may_be_a_python_number_or_replaced_by_a_callback():
    class Swap:
        def after_loss(self, learn): learn.loss = float('inf')
    with pytest.raises(NonFiniteLossError, match='the training loss is inf'): fit(learner(Swap()))


def test_a_bad_loss_that_a_callback_mends_is_fine():
    class Mend:
        def after_loss(self, learn): learn.loss = learn.preds.nan_to_num().sum()*0
    fit(learner(Mend(), dls=DataLoaders(poisoned(0), [])))


def test_after_a_bad_loss_the_learner_can_fit_again():
    learn = learner(dls=DataLoaders(poisoned(0), []))
    with pytest.raises(NonFiniteLossError): fit(learn)
    learn.dls = DataLoaders(batches(), [])
    before = weights(learn)
    fit(learn)
    assert not same(before, weights(learn))


class SkipBad:
    "What a user may do about bad batches: leave them out."
    def __init__(self, cancel, event): setattr(self, event, lambda learn: learn.loss.isnan() and raising(cancel())())


@pytest.mark.parametrize('event', ['after_loss', 'after_batch'])
def test_a_callback_may_leave_out_a_bad_batch_and_training_goes_on(event):
    learn, cb = learner(dls=DataLoaders(poisoned(1), [])), Heard()
    fit(learn, cbs=[SkipBad(CancelBatchException, event), cb])
    good = learner(dls=DataLoaders([b for i, b in enumerate(batches()) if i != 1], []))
    fit(good)
    assert same(weights(learn), weights(good))


@pytest.mark.parametrize('event', ['after_loss', 'after_batch'])
def test_an_epoch_that_a_callback_leaves_at_a_bad_batch_is_followed_by_validation(event):
    cb = Heard()
    learn = learner([SkipBad(CancelEpochException, event), cb], dls=DataLoaders(poisoned(1), batches(2)))
    learn.fit(1)
    assert cb.log.count('before_batch') == 2 + 2


def test_a_loss_that_is_no_number_is_not_looked_at():
    learn = learner(loss_func=lambda p, y: F.cross_entropy(p, y, reduction='none'))
    with pytest.raises(RuntimeError, match='scalar'): fit(learn)


# On an accelerator the loss is read now and then

class OffCPULoss:
    def after_loss(self, learn): learn.loss = off_cpu(learn.loss)


def test_a_bad_loss_on_an_accelerator_is_found_at_the_end_of_the_epoch_and_its_batch_named():
    with pytest.raises(NonFiniteLossError, match=r'in epoch 0, batch 1 .*The weights have changed since then'):
        fit(learner(OffCPULoss(), dls=DataLoaders(poisoned(1), [])))


def test_a_bad_loss_on_an_accelerator_is_found_after_the_time_between_looks():
    cb, learn = Heard(), learner(OffCPULoss(), dls=DataLoaders(poisoned(0), []))
    learn.check_finite = False
    with pytest.raises(NonFiniteLossError, match='batch 0'): fit(learn, cbs=[cb, FiniteLossCB(every=0)])
    assert cb.log.count('before_batch') == 1
    patient = Heard()
    with pytest.raises(NonFiniteLossError, match='batch 0'): fit(learn, cbs=[patient, FiniteLossCB(every=1e9)])
    assert patient.log.count('before_batch') == 4


def test_good_losses_on_an_accelerator_are_read_now_and_then_and_forgotten():
    watch = FiniteLossCB(every=0)
    learn = learner([OffCPULoss(), watch])
    learn.fit(2)
    assert watch._unread == []
    assert watch._due <= time.perf_counter()


def test_a_bad_loss_leaves_no_bar_and_shows_the_error(capsys):
    with pytest.raises(NonFiniteLossError): fit(learner(ProgressCB(), dls=DataLoaders(poisoned(1), [])))
    assert capsys.readouterr().out == ''


# Learning rate and optimizer

@pytest.mark.parametrize('lr', [0, .1, 3, torch.tensor(.1), 'anything else is the business of opt_func'])
def test_a_rate_that_is_not_negative_passes(lr): check_lr(lr)


@pytest.mark.parametrize(('lr', 'says'), [(None, 'no learning rate: pass lr'), (-1, 'lr must be 0 or more, got -1'),
                                          (NAN, 'lr must be 0 or more, got nan')])
def test_a_rate_that_is_missing_or_negative_is_refused(lr, says):
    with pytest.raises(ValueError, match=says): check_lr(lr)


def test_an_optimizer_that_opt_func_did_not_return_is_not_blamed_on_opt_func_being_none():
    with pytest.raises((ValueError, TypeError), match=r'opt_func\(params, lr\) must return|opt_func returned'):
        learner(opt_func=lambda params, lr: None).fit(1)


def test_a_torch_optimizer_passes(): check_optimizer(torch.optim.SGD([torch.ones(1)], lr=.1))


@pytest.mark.parametrize('lr', [slice(1e-5, 1e-3), (1e-5, 1e-3), [1e-3]])
def test_a_rate_that_is_no_number_is_refused_with_the_call_for_rates_by_layer(lr):
    learn = learner()
    calls = [lambda: learner(lr=lr), lambda: learn.fit(1, lr=lr)]
    if not isinstance(lr, slice): calls.append(lambda: learn.fit_one_cycle(1, lr=lr))
    for call in calls:
        with pytest.raises(TypeError, match=re.escape(f'lr must be a number, got {lr!r}; for a rate by layer: fit_')):
            call()
