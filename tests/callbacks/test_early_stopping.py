"Stopping early: after `patience` epochs without a better figure, upwards or downwards, and exactly so after a resume."
import math
from types import SimpleNamespace

import pytest

from miniai import Callback, CheckpointCB, EarlyStoppingCB
from miniai.callbacks.metrics import direction
from miniai.callbacks.progress import ProgressCB
from resuming import Quiet
from small import learner


class Figures:
    "Puts given figures in the place of validation's."
    order = 50
    def __init__(self, *figures): self.figures = figures
    def after_epoch(self, learn):
        if learn.training: return
        learn.history.append(dict(epoch=learn.epoch, phase='eval', score=self.figures[learn.epoch]))


@pytest.mark.parametrize(('metric', 'figures', 'epochs', 'best'), [
    ('score', [1, 2, 2, 1, 5], 4, (2, 1)), ('score', [1, 2, 3, 4, 5], 5, (5, 4)),
    ('-score', [5, 4, 6, 3, 3, 3], 6, (3, 3)), ('-score', [1, 2, 3, 4], 3, (1, 0))])
def test_a_fit_ends_two_epochs_after_its_best(metric, figures, epochs, best):
    cb = EarlyStoppingCB(metric, patience=2)
    learn = learner([cb, Figures(*figures)])
    learn.fit(len(figures))
    assert len([r for r in learn.history if 'score' in r]) == epochs
    assert (cb.best, cb.best_epoch) == best


def test_a_minus_turns_the_direction_and_is_no_part_of_the_name():
    assert (direction('loss'), direction('-loss'), direction('f-1')) == (('loss', 1), ('loss', -1), ('f-1', 1))


def test_better_by_less_than_min_delta_is_not_better():
    cb = EarlyStoppingCB('score', patience=2, min_delta=.5)
    learn = learner([cb, Figures(1, 1.4, 1.5, 9)])
    learn.fit(4)
    assert (cb.best, cb.best_epoch, len(learn.history)) == (1, 0, 3)


def test_what_was_best_goes_on_and_a_new_fit_begins_anew():
    cb, other = EarlyStoppingCB('score'), EarlyStoppingCB('score')
    learner([cb, Figures(1, 2)]).fit(2)
    other.load_state_dict(cb.state_dict())
    assert (other.best, other.best_epoch) == (2, 1)
    other.before_fit(SimpleNamespace(trains=True, validates=True))
    assert other.best is None


def test_a_first_figure_that_is_nan_is_not_the_best():
    cb = EarlyStoppingCB('-score', patience=2)
    learn = learner([cb, Figures(math.nan, 3, 2, math.nan, 4, 1)])
    learn.fit(6)
    assert (cb.best, cb.best_epoch, len([r for r in learn.history if 'score' in r])) == (2, 2, 5)


def test_figures_that_are_all_nan_end_the_fit_after_patience():
    learn = learner([EarlyStoppingCB('score', patience=2), Figures(*[math.nan]*6)])
    learn.fit(6)
    assert len([r for r in learn.history if 'score' in r]) == 3


def test_every_callback_hears_the_end_of_the_last_epoch():
    heard = []
    class Late(Callback):
        order = math.inf
        def after_epoch(self, learn): heard.append((learn.epoch, learn.training))
    learner([EarlyStoppingCB('score', patience=1), Figures(2, 1, 3), Late()]).fit(3)
    assert heard == [(0, True), (0, False), (1, True), (1, False)]


@pytest.mark.parametrize('epochs', [None, 10])
def test_the_epoch_that_ends_a_fit_is_saved_and_gone_on_with_it_ends_again(epochs, tmp_path):
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
    patient.fit(5, resume=True)
    assert patient.history[-1]['epoch'] == 2


def test_mistakes_are_told():
    with pytest.raises(ValueError, match='follows a figure of validation, and this fit has valid=False'):
        learner([EarlyStoppingCB()]).fit(1, valid=False)
    with pytest.raises(ValueError, match='patience must be 1 epoch or more, got 0'): EarlyStoppingCB(patience=0)
    with pytest.raises(ValueError, match='min_delta must be 0 or more'): EarlyStoppingCB(min_delta=-1)
    with pytest.raises(ValueError, match=r"validation has no figure 'f1'; it has .*: add MetricsCB\(f1=…\) to cbs"):
        learner([EarlyStoppingCB('f1'), Figures(1)]).fit(1)
