"Which metric to watch: wrong directions and missing metrics are refused before training."
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy

from miniai import Callback, CheckpointCB, EarlyStoppingCB, PlateauCB
from miniai.checkpoint import load
from miniai.metrics.direction import check_metric, direction, improves, no_metric, row_of_pass
from miniai.training import accuracy
from resuming import Quiet
from small import learner, same, weights


@pytest.mark.parametrize(('metric', 'found'), [('score', ('score', 1)), ('-score', ('score', -1)), ('f-1', ('f-1', 1)),
                                               ('-loss', ('loss', -1)), ('accuracy', ('accuracy', 1))])
def test_a_minus_reverses_the_direction_and_is_not_part_of_the_name(metric, found): assert direction(metric) == found


@pytest.mark.parametrize(('wrong', 'right'), [('loss', '-loss'), ('d_loss', '-d_loss'), ('RMSE', '-RMSE'),
                                              ('MeanSquaredError', '-MeanSquaredError'), ('-accuracy', 'accuracy'),
                                              ('-val_acc', 'val_acc'), ('-MulticlassAccuracy', 'MulticlassAccuracy')])
def test_the_wrong_direction_of_a_known_name_is_refused_with_the_right_one(wrong, right):
    with pytest.raises(ValueError, match=f"write '{right}'$"): direction(wrong)
    direction(right)


@pytest.mark.parametrize('sign', [1, -1])
@pytest.mark.parametrize(('value', 'best', 'min_delta', 'improved'), [
    (1., None, 0., True), (math.nan, None, 0., False), (2., 1., 0., True), (1., 2., 0., False), (1., 1., 0., False),
    (1.1, 1., .2, False), (1.3, 1., .2, True), (math.nan, 1., 0., False), (1., -math.inf, 0., True),
    (.79000000953, .78999999761, 0., False), (.790001, .79, 0., True), (1e-9, 5e-10, 0., True)])
def test_better_by_less_than_the_rounding_of_float32_is_no_improvement(sign, value, best, min_delta, improved):
    assert improves(sign*value, None if best is None else sign*best, sign, min_delta) == improved


class OrderCB(Callback):
    "Validates on the same samples in batches of another size each epoch."
    def __init__(self, x, y): self.x, self.y = x, y
    def before_epoch(self, learn):
        n = 4 + learn.epoch
        if not learn.training: learn.dl = list(zip(self.x.split(n), self.y.split(n), strict=True))


def test_of_equal_accuracies_the_first_is_the_best_however_batches_round(tmp_path):
    x = torch.randn(61, 4, generator=torch.Generator().manual_seed(2))
    plain = Quiet(acc=lambda preds, y: (preds.argmax(1) == y).float().mean())
    stop, order = EarlyStoppingCB('acc', patience=4), OrderCB(x, torch.arange(61) % 3)
    learn = learner([plain, order, stop, CheckpointCB(tmp_path, best='acc')], lr=0.)
    learn.fit(9)
    values = [r['acc'] for r in learn.history if r['phase'] == 'eval']
    assert max(values) > values[0]  # by rounding
    assert max(values) == pytest.approx(min(values), abs=1e-7)
    assert (stop.best_epoch, learn.epoch, load(tmp_path/'best.safetensors')['position']['epoch']) == (0, 4, 1)


@pytest.mark.parametrize('cb', [lambda m, d: EarlyStoppingCB(m), lambda m, d: CheckpointCB(d, best=m)])
@pytest.mark.parametrize('metric', ['loss', 'f1', '-acc', 'error_rate', '-hits'])
def test_every_callback_that_watches_a_metric_refuses_before_the_first_step(cb, metric, tmp_path):
    learn = learner([Quiet(acc=accuracy, hits=MulticlassAccuracy(3))])
    before = weights(learn)
    def run(): learn.fit(1, cbs=cb(metric, tmp_path))
    with pytest.raises(ValueError, match=r'write|add MetricsCB'): run()
    assert same(weights(learn), before)


def test_a_torchmetrics_metric_knows_its_direction_by_whatever_name():
    learn = learner([Quiet(x=MeanSquaredError(), y=MulticlassAccuracy(3))])
    learn.validates = True
    check_metric(learn, '-x', 'it')
    check_metric(learn, 'y', 'it')
    with pytest.raises(ValueError, match="write '-x'"): check_metric(learn, 'x', 'it')
    with pytest.raises(ValueError, match="write 'y'"): check_metric(learn, '-y', 'it')


def test_a_users_callback_may_supply_any_metric():
    class Mine(Callback):
        def after_epoch(self, learn): pass
    ours, theirs = learner(), learner(Mine())
    ours.validates = theirs.validates = True
    check_metric(theirs, 'anything', 'it')
    with pytest.raises(ValueError, match=r"it needs a validation metric 'anything'; there are none: add MetricsCB"):
        check_metric(ours, 'anything', 'it')


@pytest.mark.parametrize('cb', [lambda d: EarlyStoppingCB(), lambda d: CheckpointCB(d, best='-loss'),
                                lambda d: PlateauCB('-loss')])
def test_a_fit_without_validation_has_no_metric_to_watch(cb, tmp_path):
    learn = learner([Quiet(), cb(tmp_path)])
    with pytest.raises(ValueError, match=r'CB needs validation: use fit\(valid=True\), or remove it'):
        learn.fit(1, valid=False)


def test_the_advice_for_the_loss_is_not_itself_refused():
    assert 'add MetricsCB() to cbs' in str(no_metric('-loss', 'it', []))
    assert 'add MetricsCB(f1=…) to cbs' in str(no_metric('f1', 'it', []))


def test_the_row_of_a_pass_is_the_latest_one_if_it_is_of_this_epoch_and_phase():
    learn = SimpleNamespace(model=nn.Linear(1, 1), epoch=1)
    assert row_of_pass(learn) == {}
    learn.history = [dict(epoch=1, phase='eval', loss=2.), dict(epoch=1, phase='train', loss=1.)]
    assert row_of_pass(learn) is learn.history[1]
    learn.model.eval()
    assert row_of_pass(learn) == {}
    learn.epoch, learn.history = 2, learn.history[:1]
    assert row_of_pass(learn) == {}
