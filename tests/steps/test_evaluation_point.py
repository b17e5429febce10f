"EvaluationPointCB: training at one point, and everything that judges or uses the model at the other."
from contextlib import suppress
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import AverageCB, BestCB, Callback, CancelFitException, CheckpointCB, Learner, MetricsCB
from miniai.accel import AccumulateCB
from miniai.callbacks.accelerate import AccelerateCB
from miniai.checkpoint import load
from miniai.inference.model_file import load as load_model
from miniai.learner import TrainLearner
from miniai.optim import ScheduleFreeAdamW, ScheduleFreeSGD
from resuming import CancelCB
from small import learner, loaders, mlp, same, weights

EPOCHS, LR, MOM = 4, .5, .8
OPT = partial(ScheduleFreeSGD, mom=MOM)


def trained(cbs=(), model=None, opt_func=OPT, epochs=EPOCHS, cls=TrainLearner, **kw):
    torch.manual_seed(5)
    learn = learner([MetricsCB(), *cbs], cls=cls, model=model or mlp(), lr=LR, opt_func=opt_func)
    learn.fit(epochs, **kw)
    return learn


def valid_losses(learn): return [r['loss'] for r in learn.history if r['phase'] == 'eval']


def by_hand():
    "Schedule-Free SGD as its three sequences, in double precision: validation losses at x; x and y at the end."
    torch.manual_seed(5)
    model, dls, losses = mlp().double(), loaders(), []
    names = [nm for nm, _ in model.named_parameters()]
    x = {nm: p.detach().clone() for nm, p in model.named_parameters()}
    y, z, t = dict(x), dict(x), 0
    def loss(at, xb, yb): return F.cross_entropy(torch.func.functional_call(model, at, xb.double()), yb)
    def mean_loss(at): return sum(loss(at, *b).item()*len(b[1]) for b in dls.valid)/sum(len(b[1]) for b in dls.valid)
    for _ in range(EPOCHS):
        for batch in dls.train:
            at = {nm: v.detach().requires_grad_() for nm, v in y.items()}
            grads = torch.autograd.grad(loss(at, *batch), at.values())
            t += 1
            z = {nm: z[nm] - LR*g for nm, g in zip(names, grads, strict=True)}
            x = {nm: x[nm] + (z[nm] - x[nm])/t for nm in names}
            y = {nm: ((1 - MOM)*z[nm] + MOM*x[nm]).detach() for nm in names}
        losses.append(mean_loss(x))
    return losses, x, y


def assert_close(state, expected):
    for nm, v in state.items(): torch.testing.assert_close(v.double(), expected[nm], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('wrapped', [False, True])
def test_training_is_at_y_validation_and_the_model_after_the_fit_are_at_x(wrapped):
    seen = []
    class Sees(Callback):
        def before_epoch(self, learn): seen.append((learn.training, weights(learn)))
    cbs = [AccelerateCB(mixed_precision='no')] if wrapped else []
    learn = trained([*cbs, Sees()], cls=Learner if wrapped else TrainLearner)
    losses, x, y = by_hand()
    assert valid_losses(learn) == pytest.approx(losses, rel=1e-4)
    assert_close(weights(learn), x)
    assert [training for training, _ in seen] == [True, False]*EPOCHS
    assert_close(seen[-1][1], x)
    inner = getattr(learn.opt, 'optimizer', learn.opt)
    inner.train()
    assert_close(weights(learn), y)


def test_what_validation_judged_is_what_is_evaluated_predicted_saved_and_exported(tmp_path):
    learn = trained()
    last, before, x = valid_losses(learn)[-1], weights(learn), next(iter(learn.dls.valid))[0]
    with torch.no_grad(): want = learn.model.eval()(x).softmax(1)
    assert learn.evaluate(learn.dls.valid)['loss'] == pytest.approx(last, rel=1e-6)
    assert torch.equal(learn.predictor().probabilities([x]), want)
    learn.save_model(tmp_path/'m.safetensors')
    assert torch.equal(load_model(tmp_path/'m.safetensors', mlp()).probabilities([x]), want)
    learn.fit(1, train=False)
    assert valid_losses(learn) == [last]
    assert same(weights(learn), before)


def test_a_predictor_made_during_training_is_at_x_and_leaves_the_fit_as_it_is():
    class Predicts(Callback):
        def after_batch(self, learn):
            x, before = learn.batch[0], weights(learn)
            found.append(learn.predictor().probabilities([x]))
            assert same(weights(learn), before)
            if not learn.training: assert torch.equal(found[-1], learn.preds.softmax(1))
    found = []
    assert same(weights(trained([Predicts()])), weights(trained()))


def test_a_fit_that_keeps_its_optimizer_goes_on_exactly():
    learn = trained(epochs=2)
    learn.opt_func = None
    learn.fit(2)
    whole = trained()
    assert valid_losses(learn) == valid_losses(whole)[2:]
    assert same(weights(learn), weights(whole))


@pytest.mark.parametrize('stop', [CancelFitException, KeyboardInterrupt, RuntimeError])
def test_after_a_stop_or_ctrl_c_the_model_is_at_x_and_after_an_error_at_y(stop):
    class Stop(Callback):
        def before_batch(self, learn):
            if learn.training and learn.epoch == 2: raise stop
    learn = learner([Stop()], lr=LR, opt_func=OPT)
    with suppress(stop): learn.fit(EPOCHS)
    assert learn.opt.shows_averages is (stop is not RuntimeError)


def test_a_search_for_a_rate_leaves_both_points_as_they_were():
    learn = trained(epochs=2)
    learn.opt_func = None
    before = weights(learn)
    learn.lr_find(max_epochs=1)
    assert same(weights(learn), before)
    learn.fit(2)
    assert same(weights(learn), weights(trained()))


@pytest.mark.parametrize(('training', 'at'), [(True, 1), (True, 3), (False, 0)])
@pytest.mark.parametrize('cls', [ScheduleFreeSGD, ScheduleFreeAdamW])
def test_a_run_resumes_exactly_from_any_batch(tmp_path, training, at, cls):
    whole = trained(opt_func=partial(cls, warmup_steps=6))
    trained([CheckpointCB(tmp_path), CancelCB(1, at, training)], opt_func=partial(cls, warmup_steps=6))
    resumed = trained([CheckpointCB(tmp_path)], opt_func=partial(cls, warmup_steps=6), resume=True)
    assert valid_losses(resumed) == valid_losses(whole)
    assert same(weights(resumed), weights(whole))


def test_the_best_checkpoint_loads_as_the_model_that_was_validated(tmp_path):
    learn = trained([CheckpointCB(tmp_path, best='-loss')])
    best = load(tmp_path/'best.safetensors')
    check = learner(MetricsCB(), model=mlp(), opt_func=None)
    check.model.load_state_dict(best['model'])
    check.fit(1, train=False)
    assert valid_losses(check) == [min(valid_losses(learn))]
    assert not same(best['raw'], best['model'])


def test_the_best_weights_are_those_validated_and_an_optimizer_that_is_kept_starts_from_them():
    class Worsens(Callback):
        def after_epoch(self, learn):
            if not learn.training: seen.append(weights(learn))
            if not learn.training and learn.epoch: learn.history[-1]['loss'] = 9.
    seen = []
    learn = trained([Worsens(), BestCB('-loss')])
    assert same(weights(learn), seen[0])
    learn.opt_func = None
    learn.fit(1)
    other = learner(model=mlp(), lr=LR, opt_func=OPT)
    other.model.load_state_dict(seen[0])
    other.fit(1)
    assert same(weights(learn), weights(other))


def test_a_group_of_batches_is_one_step():
    learn = trained([AccumulateCB(2)])
    assert {s['step'] for s in learn.opt.state.values()} == {2*EPOCHS}


def test_batchnorms_statistics_are_those_of_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    seen = []
    class Sees(Callback):
        def after_step(self, learn): seen.append(learn.model[1].running_mean.clone())
    learn = trained([Sees()], model)
    assert torch.equal(learn.model[1].running_mean, seen[-1])


def test_averagecb_is_refused_and_other_optimizers_are_left_alone():
    with pytest.raises(ValueError, match=r'ScheduleFreeSGD has an evaluation point of its own, .* remove AverageCB'):
        trained([AverageCB()])
    class Sees(Callback):
        def before_epoch(self, learn): names.extend(type(cb).__name__ for cb in learn.cbs)
    names = []
    trained([Sees()], opt_func=torch.optim.SGD)
    assert 'EvaluationPointCB' not in names
