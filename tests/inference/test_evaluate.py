"learn.evaluate: loss and metrics against a plain loop, and a Learner that stays as it was."
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai import Callback, MemoryLoader, ProgressCB, TrainLearner, accuracy
from miniai.metrics.metrics import MetricsCB
from miniai.metrics.whole import Whole
from predicting import Quiet, named, pixels, two_inputs
from small import equal, everything, learner, loaders


@torch.no_grad()
def by_hand(model, dl):
    "Mean loss and accuracy over all samples, in a plain loop."
    model.eval()
    outs, ys = zip(*[(model(x), y) for x, y in dl], strict=True)
    out, y = torch.cat(outs), torch.cat(ys)
    return dict(loss=F.cross_entropy(out, y).item(), accuracy=(out.argmax(1) == y).float().mean().item())


@settings(max_examples=20)
@given(n=st.integers(1, 30), bs=st.integers(1, 12), seed=st.integers(0, 99))
def test_loss_and_metrics_are_those_of_a_plain_loop_for_batches_of_any_size(n, bs, seed):
    g = torch.Generator().manual_seed(seed)
    dl = MemoryLoader(torch.randn(n, 4, generator=g), torch.randint(0, 3, (n,), generator=g), bs=bs)
    learn = learner([Quiet(accuracy=accuracy)])
    assert learn.evaluate(dl) == pytest.approx(by_hand(learn.model, dl), abs=1e-5)


def test_the_validation_set_is_the_default_and_without_metrics_there_is_the_loss_alone(capsys):
    learn = learner()
    want = by_hand(learn.model, learn.dls.valid)
    assert learn.evaluate() == pytest.approx(dict(loss=want['loss']), abs=1e-6)
    assert learn.evaluate(cbs=MetricsCB(accuracy=accuracy)) == pytest.approx(want, abs=1e-6)
    assert learn.evaluate(learn.dls.train) == pytest.approx(dict(loss=by_hand(learn.model, learn.dls.train)['loss']))
    assert capsys.readouterr().out == ''


def test_a_metric_of_the_whole_epoch_counts_and_a_progress_bar_is_allowed():
    learn = learner([ProgressCB(), MetricsCB(errors=Whole(lambda out, y: (out.argmax(1) != y).sum()))])
    wrong = sum((learn.model.eval()(x).argmax(1) != y).sum().item() for x, y in learn.dls.valid)
    assert learn.evaluate()['errors'] == wrong


def test_the_learner_its_callbacks_loaders_and_random_states_stay_as_they_were():
    class Draws(Callback):
        def after_batch(self, learn): torch.rand(3)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(.5), nn.Linear(8, 3))
    learn = learner([Quiet(), Draws()], model=model)
    learn.fit(1)
    learn.model.train()
    test = MemoryLoader(torch.randn(9, 4), torch.zeros(9, dtype=torch.long), bs=4, shuffle=True)
    before = everything(learn), learn.history, torch.get_rng_state(), test.epoch, list(learn.cbs), learn.dls.valid
    assert learn.evaluate(test) == learn.evaluate(test)
    after = everything(learn), learn.history, torch.get_rng_state(), test.epoch, list(learn.cbs), learn.dls.valid
    assert equal(before, after)
    learn.fit(1)  # and it trains on


def test_other_pictures_are_evaluated_as_they_are_in_training():
    learn = named(n_epochs=2)
    learn.cbs[0] = Quiet(accuracy=accuracy)
    x, y = pixels(15, seed=5)
    ps = learn.predictor().probabilities([x])
    want = dict(loss=F.nll_loss(ps.log(), y).item(), accuracy=(ps.argmax(1) == y).float().mean().item())
    assert learn.evaluate(learn.dls.test(x, y)) == pytest.approx(want, abs=1e-5)


def test_several_inputs_and_an_untrained_learner_are_evaluated():
    assert two_inputs().evaluate().keys() == {'loss'}
    learn = TrainLearner(nn.Linear(4, 3), loaders(), F.cross_entropy, lr=None)
    assert learn.evaluate() == pytest.approx(dict(loss=by_hand(learn.model, learn.dls.valid)['loss']), abs=1e-6)


def test_an_empty_loader_and_batches_without_targets_are_errors():
    with pytest.raises(ValueError, match='the valid loader is empty'): learner().evaluate([])
    with pytest.raises(ValueError, match='no targets for the loss'): learner().evaluate([(torch.zeros(2, 4),)])
