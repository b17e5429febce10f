"EarlyStoppingCB: a fit ends after `patience` epochs without improvement, also when it is resumed."
import math
from types import SimpleNamespace

import pytest

from miniai import Callback, CheckpointCB, EarlyStoppingCB
from miniai.callbacks.progress import ProgressCB
from resuming import Quiet
from small import learner, same, weights


class Scores:
    "Writes given scores as the metrics of validation."
    order = 50
    def __init__(self, *scores): self.scores = scores
    def after_epoch(self, learn):
        if learn.training: return
        learn.history.append(dict(epoch=learn.epoch, phase='eval', score=self.scores[learn.epoch]))


@pytest.mark.parametrize(('metric', 'figures', 'epochs', 'best'), [
    ('score', [1, 2, 2, 1, 5], 4, (2, 1)), ('score', [1, 2, 3, 4, 5], 5, (5, 4)),
    ('-score', [5, 4, 6, 3, 3, 3], 6, (3, 3)), ('-score', [1, 2, 3, 4], 3, (1, 0))])
def test_a_fit_ends_two_epochs_after_its_best(metric, figures, epochs, best):
    cb = EarlyStoppingCB(metric, patience=2)
    learn = learner([cb, Scores(*figures)])
    learn.fit(len(figures))
    assert len([r for r in learn.history if 'score' in r]) == epochs
    assert (cb.best, cb.best_epoch) == best


def test_an_improvement_of_less_than_min_delta_does_not_count():
    cb = EarlyStoppingCB('score', patience=2, min_delta=.5)
    learn = learner([cb, Scores(1, 1.4, 1.5, 9)])
    learn.fit(4)
    assert (cb.best, cb.best_epoch, len(learn.history)) == (1, 0, 3)


def test_a_restored_state_keeps_the_best_and_a_new_fit_forgets_it():
    cb, other = EarlyStoppingCB('score'), EarlyStoppingCB('score')
    learner([cb, Scores(1, 2)]).fit(2)
    other.load_state_dict(cb.state_dict())
    assert (other.best, other.best_epoch) == (2, 1)
    other.before_fit(SimpleNamespace(cbs=[Scores()], metrics=None))
    assert other.best is None


def test_nan_is_never_the_best():
    cb = EarlyStoppingCB('-score', patience=2)
    learn = learner([cb, Scores(math.nan, 3, 2, math.nan, 4, 1)])
    learn.fit(6)
    assert (cb.best, cb.best_epoch, len([r for r in learn.history if 'score' in r])) == (2, 2, 5)


def test_metrics_that_are_always_nan_end_the_fit_after_patience():
    learn = learner([EarlyStoppingCB('score', patience=2), Scores(*[math.nan]*6)])
    learn.fit(6)
    assert len([r for r in learn.history if 'score' in r]) == 3


def test_every_callback_hears_after_epoch_of_the_last_epoch():
    heard = []
    class Late(Callback):
        order = math.inf
        def after_epoch(self, learn): heard.append((learn.epoch, learn.training))
    learner([EarlyStoppingCB('score', patience=1), Scores(2, 1, 3), Late()]).fit(3)
    assert heard == [(0, True), (0, False), (1, True), (1, False)]


@pytest.mark.parametrize('epochs', [None, 10])
def test_the_last_epoch_is_saved_and_a_resumed_run_stops_again(epochs, tmp_path):
    def again(patience):
        saves = CheckpointCB(tmp_path, epochs=epochs, best='-loss')
        return learner([EarlyStoppingCB('-loss', patience, min_delta=9), ProgressCB(), Quiet(), saves])
    learn = again(1)
    learn.fit(5)
    assert max(tmp_path.glob('checkpoint*')).name == 'checkpoint-00002-1-00000000.safetensors'
    went_on = again(1)
    went_on.fit(5, resume=True)
    assert went_on.history == learn.history
    patient = again(2)
    with pytest.warns(UserWarning, match='patience was 1 and is 2 now'): patient.fit(5, resume=True)
    assert patient.history[-1]['epoch'] == 2


def test_wrong_arguments_are_errors():
    with pytest.raises(ValueError, match='EarlyStoppingCB needs validation'):
        learner([EarlyStoppingCB()]).fit(1, valid=False)
    with pytest.raises(ValueError, match='patience must be at least 1 epoch, got 0'): EarlyStoppingCB(patience=0)
    with pytest.raises(ValueError, match='min_delta must be at least 0, got -1'): EarlyStoppingCB(min_delta=-1)
    with pytest.raises(ValueError, match=r"validation metric 'f1'; there are .*: add MetricsCB\(f1=…\) to cbs"):
        learner([EarlyStoppingCB('f1'), Scores(1)]).fit(1)


def test_a_direction_that_would_stop_an_improving_run_is_refused():
    with pytest.raises(ValueError, match=r"'loss' would look for the highest loss.*write '-loss'"):
        EarlyStoppingCB('loss')


def test_a_metric_that_nothing_supplies_is_reported_before_training():
    learn = learner([EarlyStoppingCB('-loss')])
    before = weights(learn)
    with pytest.raises(ValueError, match=r"there are none: add MetricsCB\(\) to cbs"): learn.fit(1)
    learn.cbs.append(Quiet())
    learn.fit(1)  # the advice is right
    with pytest.raises(ValueError, match=r"'f1'; there are \['loss', 'seconds'\]: add MetricsCB\(f1=…\) to cbs"):
        learner([EarlyStoppingCB('f1'), ProgressCB()]).fit(1)
    assert not same(weights(learn), before)


def test_predictions_can_be_captured_in_a_learner_that_stops_early():
    learn = learner([EarlyStoppingCB('score'), Scores(1)])
    learn.cbs.pop()
    assert len(learn.capture_preds()[0]) == 12
