"BestCB: the model of the best epoch comes back when a fit ends, also after it was resumed or stopped."
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai import AdamW, AverageCB, BestCB, Callback, CancelFitException, CheckpointCB, EarlyStoppingCB
from resuming import Quiet, assert_resumes_exactly
from small import equal, learner, same, weights


class Scores(Callback):
    "Scores of validation, and the weights that they were given to."
    order = 50
    def __init__(self, *scores): self.scores, self.seen = scores, []
    def after_epoch(self, learn):
        if learn.training: return
        learn.history.append(dict(epoch=learn.epoch, phase='eval', score=self.scores[learn.epoch]))
        self.seen.append(weights(learn))


class Fails(Callback):
    def __init__(self, how, epoch=2): self.how, self.epoch = how, epoch
    def before_batch(self, learn):
        if learn.epoch == self.epoch: raise self.how


def bn_net():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@settings(max_examples=25)
@given(st.lists(st.sampled_from([1., 2., 3., math.nan, -5.]), min_size=1, max_size=6), st.booleans())
def test_the_model_gets_the_weights_and_buffers_of_the_epoch_with_the_best_score(values, falls):
    cb, scores = BestCB('-score' if falls else 'score'), Scores(*values)
    learn = learner([cb, scores], model=bn_net())
    learn.fit(len(values))
    known = [(-v if falls else v, -i) for i, v in enumerate(values) if v == v]
    want = -max(known)[1] if known else None
    assert cb.best_epoch == want
    assert same(weights(learn), scores.seen[len(values) - 1 if want is None else want])
    assert cb._weights is None


def test_the_validation_loss_afterwards_is_the_best():
    learn = learner([Quiet(), cb := BestCB()], lr=.9)
    learn.fit(6)
    losses = [r['loss'] for r in learn.history if r['phase'] == 'eval']
    assert min(losses) < losses[-1]
    assert cb.best == min(losses)
    assert learn.evaluate()['loss'] == pytest.approx(min(losses), rel=1e-6)
    assert cb.best == min(losses)  # a fit that only validates forgets nothing
    learn.fit(1, train=False)
    assert (cb.best, cb.best_epoch) == (min(losses), losses.index(min(losses)))


@pytest.mark.parametrize('keep', [False, True])
def test_with_averages_the_model_gets_those_that_were_best(keep):
    cb, scores = BestCB('score'), Scores(1, 5, 2)
    opt_func = partial(AdamW, ema=.9)
    learn = learner([AverageCB(keep), cb, scores, Quiet()], model=bn_net(), lr=.05, opt_func=opt_func)
    learn.fit(3)
    assert same(weights(learn), scores.seen[1])
    with torch.no_grad():
        sums = [(F.cross_entropy(learn.model.eval()(x), y), len(y)) for x, y in learn.dls.valid]
    want = sum(loss.item()*n for loss, n in sums)/sum(n for _, n in sums)
    losses = [r['loss'] for r in learn.history if 'loss' in r and r['phase'] == 'eval']
    assert losses[1] == pytest.approx(want, rel=1e-6)
    assert learn.evaluate()['loss'] == pytest.approx(want, rel=1e-6)
    learn.fit(1)  # a new fit begins from them


@pytest.mark.parametrize(('how', 'restored'), [
    (CancelFitException(), True), (KeyboardInterrupt(), True), (SystemExit(3), True), (RuntimeError('stop'), False)])
def test_a_stop_and_ctrl_c_restore_the_best_and_an_error_leaves_the_weights(how, restored):
    scores = Scores(5, 1)
    learn = learner([BestCB('score'), scores, Fails(how)], model=bn_net())
    if isinstance(how, CancelFitException): learn.fit(4)
    else:
        with pytest.raises(type(how)): learn.fit(4)
    assert same(weights(learn), scores.seen[0]) == restored
    if not restored: assert same(weights(learn), scores.seen[1])
    before = weights(learn)
    learn.fit(1, train=False, cbs=[])
    assert same(before, weights(learn))


def test_a_fit_within_the_handling_of_an_error_restores_too():
    scores = Scores(5, 1)
    learn = learner([BestCB('score'), scores])
    try: raise OSError('first try')
    except OSError: learn.fit(2)
    assert same(weights(learn), scores.seen[0])


def test_early_stopping_restores_the_best_only_if_asked():
    for restore in (True, False):
        scores = Scores(1, 4, 3, 2, 9)
        learn = learner([EarlyStoppingCB('score', patience=2, restore=restore), scores], model=bn_net())
        learn.fit(5)
        assert same(weights(learn), scores.seen[1 if restore else 3])


def test_a_search_for_a_rate_keeps_no_weights_and_changes_none():
    learn = learner([Quiet(), cb := BestCB()])
    before = weights(learn)
    learn.lr_find(max_epochs=1)
    assert same(before, weights(learn))
    assert (cb.best, cb._weights) == (None, None)


@pytest.mark.parametrize('make_cb', [BestCB, partial(EarlyStoppingCB, restore=True)])
def test_a_resumed_run_restores_the_same_best(make_cb, tmp_path):
    def make(folder, *cbs):
        opt_func = partial(AdamW, ema=.5)
        given = [Quiet(), AverageCB(), make_cb(), CheckpointCB(folder, batches=1, keep=99), *cbs]
        return learner(given, model=bn_net(), lr=.3, opt_func=opt_func)
    assert_resumes_exactly(make, tmp_path, stops=((0, 2), (2, 1)), n_epochs=3)
    again = make(tmp_path/'whole')
    again.fit(3, resume=True)  # which is over
    whole = make(tmp_path/'other')
    whole.fit(3)
    assert same(weights(again), weights(whole))


def test_the_state_is_saved_and_restored():
    learn, other = learner([cb := BestCB('score'), Scores(1, 2)]), BestCB('score')
    class Note(Callback):
        order = 101
        def after_epoch(self, learn):
            if not learn.training: other.load_state_dict(cb.state_dict())
    learn.fit(2, cbs=Note())
    assert (other.best, other.best_epoch) == (2, 1)
    assert equal(other._weights, weights(learn))


def test_wrong_arguments_and_metrics_are_errors():
    with pytest.raises(ValueError, match=r"'loss' would look for the highest loss.*write '-loss'"): BestCB('loss')
    with pytest.raises(ValueError, match='BestCB: min_delta must be at least 0, got -1'): BestCB(min_delta=-1)
    with pytest.raises(ValueError, match=r'BestCB needs validation: use fit\(valid=True\)'):
        learner([Quiet(), BestCB()]).fit(1, valid=False)
    with pytest.raises(ValueError, match="BestCB needs a validation metric 'f1'"):
        learner([Quiet(), BestCB('f1')]).fit(1)
    with pytest.raises(ValueError, match=r"BestCB needs a metric that is one number, and 'score' is \[1, 2\]"):
        learner([BestCB('score'), Scores([1, 2])]).fit(1)
