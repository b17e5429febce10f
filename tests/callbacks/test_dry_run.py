"Looking at a Learner leaves all that it and its callbacks recorded; mistakes in callbacks are said, not swallowed."
import gc
import random
import weakref
from contextlib import ExitStack

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.utils.data import DataLoader, TensorDataset

from miniai import (
    ActivationStats,
    Callback,
    DataLoaders,
    MetricsCB,
    ProgressCB,
    RecorderCB,
    TrainCB,
    TrainLearner,
    accuracy,
)
from miniai.accel import MixedPrecision
from miniai.activations import set_seed
from miniai.callbacks.dry_run import dry_run, patch
from miniai.data import MemoryLoader
from miniai.learner import CancelBatchException, Learner, MomentumLearner
from miniai.sgd import EpochSchedCB
from small import copied, equal, everything, same, weights
from small import learner as small_learner


def loaders(n=4): return DataLoaders(*[[(torch.randn(8, 5), torch.randint(3, (8,))) for _ in range(n)] for _ in 'tv'])
def learner(*cbs, cls=TrainLearner, **kw): return cls(nn.Linear(5, 3), loaders(), F.cross_entropy, 0.1, cbs, **kw)


@pytest.mark.parametrize('look', ['capture_preds', 'summary', 'lr_find'])
def test_a_look_leaves_every_record_as_it_was(look):
    stats, recorder, progress = ActivationStats(), RecorderCB(lr=lambda cb: cb.pg['lr']), ProgressCB()
    learn = learner(stats, recorder, progress, MetricsCB(accuracy=accuracy))
    learn.fit(2)
    def records(): return [*map(list, (recorder.recs['lr'], progress.losses, progress.val_losses, learn.history)),
                           learn.n_epochs, learn.epoch]
    before = records()
    getattr(learn, look)()
    assert records() == before
    assert len(before[0]) == 8
    stats.color_dim()


def test_a_look_leaves_the_order_of_a_loader_in_memory():
    def losses(look):
        torch.manual_seed(0)
        x, y = torch.arange(40, dtype=torch.uint8).reshape(40, 1, 1), torch.arange(40) % 3
        dls = DataLoaders(MemoryLoader(x, y, bs=8, shuffle=True, seed=3), MemoryLoader(x, y, bs=8))
        model, progress = nn.Sequential(nn.Flatten(), nn.Linear(1, 3)), ProgressCB()
        learn = TrainLearner(model, dls, F.cross_entropy, 0.1, progress)
        if look: learn.summary()
        learn.fit(1)
        return progress.losses
    assert losses(look=True) == losses(look=False)


def test_what_a_cancelled_batch_made_is_freed_at_once():
    seen = []
    class Cancels(Callback):
        def after_predict(self, learn):
            seen.append(weakref.ref(learn.preds))
            raise CancelBatchException
    gc.disable()
    try:
        learn = learner(Cancels())
        learn.fit(1, valid=False)
        learn.preds = None
        assert [r() for r in seen] == [None]*4
    finally: gc.enable()


def test_a_phase_that_two_define_is_told():
    with pytest.warns(UserWarning, match=r"predict is .* TrainLearner and MixedPrecision: only TrainLearner's runs"):
        learner(MixedPrecision()).fit(1)
    second = learner(TrainCB(), type('Mine', (TrainCB,), {})(), cls=Learner)
    with pytest.warns(UserWarning, match='by TrainCB and Mine: all of them run'), pytest.raises(RuntimeError):
        second.fit(1)


def test_a_metrics_callback_may_leave_out_the_base_of_any_event():
    class Mine(MetricsCB):
        def before_fit(self, learn): learn.metrics = self
    learn = learner(Mine(accuracy=accuracy))
    learn.fit(1)
    assert [r['phase'] for r in learn.history] == ['train', 'eval']


def test_a_learner_without_metrics_has_no_metrics():
    learn = learner()
    learn.fit(1)
    assert learn.metrics is None


def test_history_has_one_row_an_epoch_and_phase_for_any_number_of_metrics_callbacks():
    late = type('Late', (MetricsCB,), dict(order=100))
    for cbs in ([MetricsCB(accuracy=accuracy), MetricsCB(), ProgressCB()], [late(accuracy=accuracy), ProgressCB()]):
        learn = learner(*cbs)
        learn.fit(2)
        rows = [(r['epoch'], r['phase']) for r in learn.history]
        assert rows == [(0, 'train'), (0, 'eval'), (1, 'train'), (1, 'eval')]
        assert all({'accuracy', 'loss'} <= set(r) for r in learn.history)


def test_records_may_be_set_and_hold_more_than_numbers():
    class Mine(ProgressCB):
        def before_fit(self, learn):
            super().before_fit(learn)
            self.losses = []
    mine, recorder = Mine(), RecorderCB(w=lambda cb: torch.ones(3))
    learner(mine, recorder).fit(1)
    assert len(mine.losses) == 4
    assert [r.tolist() for r in recorder.recs['w']] == [[1., 1., 1.]]*4
    recorder.recs = dict(w=[1.])
    assert recorder.recs == dict(w=[1.])


@pytest.mark.parametrize(('cbs', 'says'), [
    ([Callback], r'class Callback; pass an instance of it: Callback\(\)'),
    ([[Callback()]], 'not a callback; pass a flat list'),
    ('DeviceCB', "holds 'DeviceCB', which is not a callback"), ([None], 'holds None')])
def test_what_is_no_callback_is_refused(cbs, says):
    learn = TrainLearner(nn.Linear(5, 3), loaders(), F.cross_entropy, 0.1, cbs)
    with pytest.raises(TypeError, match=says): learn.fit(1)


def test_callbacks_may_be_set_to_none():
    learn = learner(ProgressCB())
    learn.cbs = None
    learn.fit(1)
    assert list(learn.cbs) == []


def test_a_schedule_that_follows_the_loss_is_refused_before_the_first_batch():
    learn = learner(EpochSchedCB(torch.optim.lr_scheduler.ReduceLROnPlateau))
    with pytest.raises(TypeError, match='ReduceLROnPlateau needs a validation metric: use PlateauCB'): learn.fit(1)
    assert learn.iter is None


def test_a_bad_callback_that_comes_late_leaves_cleanups_to_the_others():
    class Bad:
        def after_bath(self, learn): pass
    class Adds(Callback):
        def after_batch(self, learn): learn.cbs.append(Bad())
    stats = ActivationStats()
    learn = learner(stats, Adds())
    with pytest.raises(AttributeError, match=r"after_bath.*did you mean 'after_batch'") as e: learn.fit(1)
    assert str(e.value).count('after_bath') == str(e.value).split('and then')[0].count('after_bath')
    assert not learn.model._forward_hooks


def test_a_fit_within_a_fit_is_refused():
    class Fits(Callback):
        def after_epoch(self, learn): learn.capture_preds()
    learn = learner(Fits())
    with pytest.raises(RuntimeError, match='already fitting'): learn.fit(1)
    learn.cbs = None
    learn.fit(1)


def test_a_rate_finder_refuses_an_optimizer_whose_rate_it_cannot_move():
    class Plain:
        def __init__(self, params, lr): pass
        def step(self): pass
        def zero_grad(self): pass
    with pytest.raises(TypeError, match=r'torch\.optim\.Optimizer.*is a Plain'): learner(opt_func=Plain).lr_find()


def test_a_rate_finder_puts_back_buffers_that_are_not_saved():
    model = nn.Linear(5, 3)
    model.register_buffer('seen', torch.zeros(()), persistent=False)
    def count(mod, inp, outp): mod.seen.add_(1)
    model.register_forward_hook(count)
    learn = TrainLearner(model, loaders(), F.cross_entropy, 0.1)
    learn.lr_find()
    assert model.seen == 0


# What is put back

def net(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize('own_optimizer', [False, True])
@pytest.mark.parametrize('fails', [False, True])
def test_after_training_inside_it_model_optimizer_and_history_are_as_they_were(own_optimizer, fails):
    learn = small_learner(MetricsCB(), model=net(), opt_func=optim.Adam)
    learn.fit(1)
    if own_optimizer: learn.opt_func = None
    learn.model[0].eval()
    learn.model[0].weight.grad = torch.ones_like(learn.model[0].weight)
    before, opt, history, metrics = copied(everything(learn)), learn.opt, learn.history, learn.metrics
    def train():
        learn.fit(2)
        assert not same(before[0], weights(learn))
        if fails: raise KeyError('oh')
    if fails:
        with pytest.raises(KeyError, match='oh'), dry_run(learn, trains=True): train()
    else:
        with dry_run(learn, trains=True): train()
    assert equal(everything(learn), before)
    assert learn.opt is opt
    assert (learn.history, learn.metrics) == (history, metrics)


def test_the_gradient_that_momentum_learner_keeps_stays():
    learn = small_learner(cls=MomentumLearner)
    learn.fit(1)
    before = copied(everything(learn))
    with dry_run(learn, trains=True): learn.fit(1)
    assert equal(everything(learn), before)
    assert before[1][0].abs().sum() > 0


def test_what_callbacks_replace_inside_it_is_put_back():
    learn = small_learner(MetricsCB())
    kept = learn.dls, learn.lr, learn.opt_func, learn.model, learn.cbs, list(learn.cbs)
    with dry_run(learn, trains=True):
        learn.cbs.append(MetricsCB())
        learn.dls, learn.lr, learn.opt_func, learn.model = None, 7., None, nn.Linear(4, 3)
    assert (learn.dls, learn.lr, learn.opt_func, learn.model, learn.cbs, list(learn.cbs)) == kept


def test_an_optimizer_without_state_dict_is_taken():
    class Bare:
        def step(self): pass
        def zero_grad(self): pass
    learn = small_learner(opt_func=None)
    learn.opt = bare = Bare()
    with dry_run(learn, trains=True): learn.fit(1)
    assert learn.opt is bare


def test_a_model_that_is_moved_to_another_type_inside_it_comes_back_with_its_gradients():
    learn = small_learner()
    learn.model[0].weight.grad = torch.ones(8, 4)
    before = weights(learn)
    with dry_run(learn, trains=True): learn.model.double()
    assert {k: v.float().equal(before[k]) for k, v in weights(learn).items()} == dict.fromkeys(before, True)
    assert learn.model[0].weight.grad.float().equal(torch.ones(8, 4))


def test_an_object_with_a_snapshot_decides_what_is_put_back():
    class Counts(Callback):
        def __init__(self): self.kept = self.counted = 0
        def before_fit(self, learn): self.kept, self.counted = self.kept + 1, self.counted + 1
        def snapshot(self):
            kept = self.kept
            def put_back(): self.kept = kept
            return put_back
    cb = Counts()
    learn = small_learner(cb)
    with dry_run(learn):
        assert learn.dry_run
        learn.fit(1)
    assert (cb.kept, cb.counted, learn.dry_run) == (0, 1, False)


def test_an_attribute_is_put_back_unless_somebody_has_set_it_since():
    class Thing: there = 'class'
    for own in ({}, dict(there='own')):
        o = Thing()
        vars(o).update(own)
        with ExitStack() as undo: patch(undo, o, 'there', 'patched')
        assert vars(o) == own
        with ExitStack() as undo:
            patch(undo, o, 'there', 'patched')
            o.there = 'set since'
        assert o.there == 'set since'


# Losses, other modules and optimizers, random states

class CountingLoss(nn.Module):
    "Cross-entropy with a learned scale; counts its calls."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, preds, y):
        self.calls += 1
        return F.cross_entropy(preds*self.scale, y)


class TwoNets(TrainLearner):
    "Trains a second network, with an optimizer of its own, as a GAN does."
    def get_loss(self):
        super().get_loss()
        self.loss = self.loss + self.second(self.batch[0]).square().mean()

    def step(self):
        super().step()
        self.opt_second.step()
        self.opt_second.zero_grad()


def two_nets():
    learn = small_learner(cls=TwoNets, model=nn.Sequential(net(), nn.Dropout(.5)), loss_func=CountingLoss())
    learn.second = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))
    learn.opt_second = optim.Adam(learn.second.parameters())
    return learn


def held(learn):
    grads = [p.grad for m in (learn.model, learn.second, learn.loss_func) for p in m.parameters()]
    return [weights(learn), grads, *(o.state_dict() for o in (learn.second, learn.opt_second, learn.loss_func))]


LOOKS = ['lr_find', 'summary', 'show_image_batch', 'capture_preds', 'tta']


@pytest.mark.parametrize('look', LOOKS)
def test_a_look_leaves_losses_other_networks_and_their_optimizers_as_they_were(look, monkeypatch):
    monkeypatch.setattr('miniai.diagnosis.capture.show_images', lambda *args, **kwargs: None)
    learn = two_nets()
    learn.fit(1)
    before = copied(held(learn))
    getattr(learn, look)(**(dict(tfms=lambda x: x.flip(1)) if look == 'tta' else {}))
    assert equal(held(learn), before)


def test_a_look_leaves_what_callbacks_hold_as_it_was():
    class Teacher(Callback):
        def __init__(self): self.net, self.loss_func = nn.Linear(4, 3), CountingLoss()
        def before_fit(self, learn): self.net.weight.data += 1
        def after_batch(self, learn): self.loss_func(learn.preds, learn.batch[1])
    cb = Teacher()
    learn = small_learner(cb)
    before = copied([cb.net.state_dict(), cb.loss_func.state_dict()])
    learn.lr_find()
    assert equal([cb.net.state_dict(), cb.loss_func.state_dict()], before)


@pytest.mark.parametrize('look', LOOKS)
def test_training_after_a_look_draws_the_same_random_numbers_as_without(look, monkeypatch):
    monkeypatch.setattr('miniai.diagnosis.capture.show_images', lambda *args, **kwargs: None)
    def run(looks):
        set_seed(5)
        ds = TensorDataset(torch.randn(24, 4), torch.randint(3, (24,)))
        own = torch.Generator().manual_seed(2)
        dls = DataLoaders(DataLoader(ds, 6, shuffle=True, generator=own), DataLoader(ds, 6, shuffle=True))
        learn = two_nets()
        learn.dls = dls
        if looks: getattr(learn, look)(**(dict(tfms=lambda x: x.flip(1)) if look == 'tta' else {}))
        learn.fit(1)
        return held(learn), torch.rand(1), random.random(), np.random.rand(), own.get_state()
    assert equal(run(looks=True), run(looks=False))
