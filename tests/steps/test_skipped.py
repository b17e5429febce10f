"Skipped steps leave no trace in the model, against a plain loop without their batches."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import StepLR

from half_precision import At
from miniai.callbacks.accelerate import AccelerateCB
from miniai.callbacks.accumulate import AccumulateCB
from miniai.callbacks.precision import MixedPrecision
from miniai.data import DataLoaders
from miniai.learner import CancelBatchException, CancelEpochException, Learner, TrainLearner
from miniai.optim import SGD, AdamW
from miniai.resume.checkpoint import CheckpointCB
from miniai.steps.schedule import BatchSchedCB
from small import Unsized, batches, equal, learner, loaders, same, weights

NAN = float('nan')
pytestmark = pytest.mark.filterwarnings('ignore:.*were skipped')


def bn_net():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def poisoned(*at, n=6):
    return [(x*NAN if i in at else x, y) for i, (x, y) in enumerate(batches(n))]


def fitted(bs, *cbs, cls=TrainLearner, epochs=1, opt_func=SGD):
    learn = learner([*cbs], cls, bn_net(), DataLoaders(bs, batches(2)), opt_func=partial(opt_func, skip_nonfinite=True))
    learn.check_finite = False
    learn.fit(epochs)
    return learn


def plain_loop(groups, epochs=1):
    "Weights and buffers of a loop over `groups` of batches, a step for each group."
    model = bn_net()
    opt = torch.optim.SGD(model.parameters(), .1)
    for _ in range(epochs):
        for group in groups:
            for x, y in group: (F.cross_entropy(model(x), y)/len(group)).backward()
            opt.step()
            opt.zero_grad()
    return model.state_dict()


def test_a_skipped_batch_leaves_weights_and_buffers_as_a_loop_without_it():
    learn = fitted(poisoned(1, 4), epochs=2)
    left = [[b] for i, b in enumerate(batches(6)) if i not in (1, 4)]
    torch.testing.assert_close(weights(learn), plain_loop(left, epochs=2), rtol=1e-5, atol=1e-6)
    assert learn.opt.skipped == 4


@pytest.mark.parametrize('n', [2, 3, 4])
@pytest.mark.parametrize('bad', [0, 1, 3, 5])
def test_a_skipped_group_of_batches_leaves_weights_and_buffers_as_a_loop_without_the_group(n, bad):
    groups = [batches(6)[i:i + n] for i in range(0, 6, n)]
    del groups[bad//n]
    for bs in (poisoned(bad), Unsized(poisoned(bad))):
        torch.testing.assert_close(weights(fitted(bs, AccumulateCB(n))), plain_loop(groups), rtol=1e-5, atol=1e-6)


def test_accelerates_wrapper_hides_no_skipped_step(monkeypatch):
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    left = [[b] for i, b in enumerate(batches(6)) if i != 1]
    with pytest.warns(UserWarning, match=r'1 step\(s\) of epoch 0 were skipped'):
        learn = fitted(poisoned(1), AccelerateCB(mixed_precision='no'), cls=Learner)
    torch.testing.assert_close(weights(learn), plain_loop(left), rtol=1e-5, atol=1e-6)


def test_a_step_that_a_gradscaler_skips_first_leaves_no_trace_either():
    learn = fitted(poisoned(1), MixedPrecision(dtype=torch.float16), cls=Learner)
    want = fitted([b for i, b in enumerate(batches(6)) if i != 1], MixedPrecision(dtype=torch.float16), cls=Learner)
    torch.testing.assert_close(weights(learn), weights(want), rtol=1e-3, atol=1e-4)
    assert learn.opt.skipped == 0


@pytest.mark.parametrize(('n', 'cancelled', 'event', 'count'), [
    (1, 1, 'before_batch', 4), (1, 1, 'after_loss', 5), (1, 1, 'after_batch', 5),
    (3, 1, 'before_batch', 2), (3, 1, 'after_loss', 2), (3, 1, 'after_batch', 3),
    (3, 2, 'before_batch', 2), (3, 2, 'after_loss', 2), (3, 2, 'after_batch', 3)])
@pytest.mark.parametrize('order', [0, 3e9])
def test_after_a_cancelled_batch_a_skipped_step_still_drops_all_of_its_batches_and_no_others(
        n, cancelled, event, count, order):
    "The batch after the cancelled one is bad. What is cancelled before its backward does not count in a group."
    def cancel(learn):
        if learn.training and learn.iter == cancelled: raise CancelBatchException()
    at = At(event, cancel)
    at.order = order
    norm = fitted(poisoned(cancelled + 1), at, AccumulateCB(n)).model[1]
    assert norm.num_batches_tracked == count
    assert norm.running_mean.isfinite().all()


def test_a_cancelled_epoch_within_a_group_leaves_the_next_one_a_clean_start():
    def cancel(learn):
        if learn.training and learn.epoch == 0 and learn.iter == 1: raise CancelEpochException()
    def run(bad):
        class Poisons:
            def before_batch(self, learn):
                x, y = learn.batch
                if learn.training and (learn.epoch, learn.iter) in bad: learn.batch = x*NAN, y
        return fitted(batches(6), Poisons(), At('after_batch', cancel), AccumulateCB(3), epochs=2)
    statistics = {nm: b.clone() for nm, b in run([]).model.named_buffers()}
    assert statistics['1.num_batches_tracked'] == 8
    assert run([(1, 1)]).model[1].num_batches_tracked == 5


def test_a_run_resumed_within_a_group_puts_back_the_buffers_from_before_the_group(tmp_path):
    def run(folder, stop=None):
        def fail(learn):
            if learn.training and learn.iter == stop: raise RuntimeError('stopped')
        opt_func = partial(AdamW, skip_nonfinite=True)
        learn = learner([AccumulateCB(3), CheckpointCB(tmp_path/folder, batches=1), At('before_batch', fail)],
                        model=bn_net(), dls=DataLoaders(poisoned(2), batches(2)), opt_func=opt_func)
        learn.check_finite = False
        return learn
    want = run('whole')
    want.fit(1)
    with pytest.raises(RuntimeError, match='stopped'): run('cut', 1).fit(1)
    again = run('cut')
    again.fit(1, resume=True)
    assert same(weights(again), weights(want))


def test_a_run_resumed_before_the_step_of_the_last_group_finds_that_it_is_skipped(tmp_path):
    def run(folder, stops=False):
        def fail(learn):
            if stops and learn.iter == 3: raise RuntimeError('stopped')
        cbs = [AccumulateCB(3), BatchSchedCB(partial(StepLR, step_size=1)), CheckpointCB(tmp_path/folder, batches=1)]
        dls = DataLoaders(Unsized(poisoned(3, n=4)), batches(2))
        learn = learner([*cbs, At('after_backward', fail)], model=bn_net(), dls=dls,
                        opt_func=partial(AdamW, skip_nonfinite=True))
        learn.check_finite = False
        return learn
    want = run('whole')
    want.fit(1)
    with pytest.raises(RuntimeError, match='stopped'): run('cut', stops=True).fit(1)
    again = run('cut')
    again.fit(1, resume=True)
    assert same(weights(again), weights(want))
    assert equal(again.opt.state_dict(), want.opt.state_dict())
    assert want.model[1].num_batches_tracked == 3


def test_a_fit_without_skip_nonfinite_has_no_such_callback():
    seen = []
    learn = learner(At('before_epoch', lambda learn: seen.extend(type(cb).__name__ for cb in learn.cbs)))
    learn.fit(1)
    assert 'ClosureCB' in seen
    assert 'SkippedStepsCB' not in seen


def test_skipped_steps_are_counted_and_reported_after_their_epoch():
    class Spoil:
        def after_backward(self, learn):
            if learn.iter in (1, 3): next(learn.model.parameters()).grad[0] = NAN
    learn = learner(Spoil(), dls=loaders(), opt_func=partial(AdamW, skip_nonfinite=True))
    with pytest.warns(UserWarning, match=r'2 step\(s\) of epoch 0 were skipped because'): learn.fit(1)
    assert learn.opt.skipped == 2
    learn.cbs.clear()
    learn.fit(1)


def test_buffers_of_a_loss_are_put_back_too():
    class Centerd(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('center', torch.zeros(3))

        def forward(self, out, y):
            self.center.lerp_(out.detach().mean(0), .5)
            return F.cross_entropy(out - self.center, y)
    learn = learner(dls=DataLoaders(poisoned(1), batches(1)), loss_func=Centerd(), lr=0.,
                    opt_func=partial(SGD, skip_nonfinite=True))
    learn.check_finite = False
    learn.fit(1)
    want = Centerd()
    for x, y in [b for i, b in enumerate(batches(6)) if i != 1] + batches(1): want(learn.model(x), y)
    torch.testing.assert_close(learn.loss_func.center, want.center)


def test_without_bad_batches_nothing_is_put_back():
    learn = fitted(batches(6))
    torch.testing.assert_close(weights(learn), plain_loop([[b] for b in batches(6)]), rtol=1e-5, atol=1e-6)
