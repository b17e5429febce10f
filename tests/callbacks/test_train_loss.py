"TrainLossCB and LabelSmoothingCB: a loss for training only."
from contextlib import suppress
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.augment import LabelSmoothingCB, TrainLossCB
from miniai.learner import CancelBatchException, CancelFitException, Learner, TrainCB
from small import Heard, learner, raising, same, weights


def ten_times(preds, y): return 10*F.cross_entropy(preds, y)


class Losses:
    "Keeps each batch's loss and plain cross-entropy, and the loss function between epochs."
    order = 50
    def __init__(self): self.seen, self.between = [], []
    def after_batch(self, learn):
        self.seen.append((learn.training, learn.loss.item(), F.cross_entropy(learn.preds, learn.batch[1]).item()))
    def after_epoch(self, learn): self.between.append(learn.loss_func)


@pytest.mark.parametrize('own_phases', [True, False])
def test_training_uses_the_given_loss_and_validation_the_learners_own(own_phases):
    look = Losses()
    cbs = [TrainLossCB(ten_times), look]
    learn = learner(cbs) if own_phases else learner([TrainCB(), *cbs], cls=Learner)
    learn.fit(2)
    assert [t for t, _, _ in look.seen] == ([True]*4 + [False]*2)*2
    for training, loss, plain in look.seen: assert loss == pytest.approx(plain*(10 if training else 1))
    assert look.between == [F.cross_entropy]*4
    assert learn.loss_func is F.cross_entropy


@pytest.mark.parametrize('event', ['before_batch', 'after_predict', 'after_loss', 'after_batch'])
@pytest.mark.parametrize('e', [CancelBatchException(), CancelFitException(), KeyError('oh')])
def test_the_learners_loss_is_restored_after_a_cancel_or_an_error(event, e):
    learn = learner([TrainLossCB(ten_times), Heard({event: raising(e)}, order=100)])
    with suppress(KeyError): learn.fit(1, valid=False)
    assert learn.loss_func is F.cross_entropy


def test_smoothing_trains_as_torchs_label_smoothing_and_validates_without():
    look = Losses()
    smooth = learner([LabelSmoothingCB(.2), look])
    smooth.fit(2)
    reference = learner(loss_func=partial(F.cross_entropy, label_smoothing=.2))
    reference.fit(2)
    assert same(weights(smooth), weights(reference))
    assert [loss == plain for training, loss, plain in look.seen if not training] == [True]*4
    assert [loss == plain for training, loss, plain in look.seen if training] == [False]*8


@pytest.mark.parametrize('loss_func', [nn.CrossEntropyLoss(torch.tensor([1., 2., 3.])),
                                       partial(F.cross_entropy, weight=torch.tensor([1., 2., 3.]))])
def test_smoothing_keeps_other_arguments_of_the_loss(loss_func):
    learn = learner(LabelSmoothingCB(.3), loss_func=loss_func)
    learn.fit(1)
    told = partial(F.cross_entropy, weight=torch.tensor([1., 2., 3.]), label_smoothing=.3)
    reference = learner(loss_func=told)
    reference.fit(1)
    assert same(weights(learn), weights(reference))
    assert learn.loss_func is loss_func
    assert getattr(loss_func, 'label_smoothing', 0.) == 0.


def test_smoothing_another_loss_is_an_error_before_the_first_batch():
    learn = learner(LabelSmoothingCB(), loss_func=ten_times)
    with pytest.raises(ValueError, match=r'learn\.loss_func is ten_times.*TrainLossCB'): learn.fit(1)
    assert learn.iter is None
    learn.fit(1, train=False)


def test_wrong_arguments_are_errors():
    for eps in (-.1, 1.1):
        with pytest.raises(ValueError, match=rf'must be in \[0, 1\], got {eps}'): LabelSmoothingCB(eps)
    for x in (3, torch.nn.MSELoss):
        with pytest.raises(TypeError, match='must be a function or an instance of a loss, got'): TrainLossCB(x)


def test_two_training_losses_are_an_error():
    with pytest.raises(ValueError, match='TrainLossCB and LabelSmoothingCB cannot be used in the same fit'):
        learner([TrainLossCB(ten_times), LabelSmoothingCB()]).fit(1)


def test_dry_runs_leave_the_learners_loss():
    learn = learner(LabelSmoothingCB())
    learn.lr_find(max_epochs=1)
    learn.summary()
    learn.capture_preds()
    assert learn.loss_func is F.cross_entropy
