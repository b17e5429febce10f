"The loop, against plain PyTorch and against a small model of its events; and what it says when something is wrong."
import copy
import gc
import pickle
import weakref
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn, optim
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from miniai.activations import ActivationStats, HooksCallback
from miniai.callbacks.accumulate import AccumulateCB
from miniai.callbacks.compile import CompileCB
from miniai.callbacks.layout import ChannelsLastCB
from miniai.callbacks.mix import MixUpCB
from miniai.callbacks.precision import MixedPrecision
from miniai.callbacks.train_loss import LabelSmoothingCB
from miniai.datasets import DataLoaders
from miniai.diagnosis.profile import ProfileCB
from miniai.kernels.math import sign
from miniai.learner import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    DeviceCB,
    Learner,
    MetricsCB,
    MomentumLearner,
    NonFiniteLossError,
    ProgressCB,
    TrainCB,
    TrainLearner,
    to_cpu,
    with_cbs,
)
from miniai.metrics.accuracy import accuracy
from miniai.optim import Adam, AdamW, optimizer
from miniai.sgd import BatchSchedCB, RecorderCB
from small import AROUND, WITHIN, Heard, batches, equal, hooks_on, learner, loaders, mlp, raising, same, weights

CANCELS = dict(fit=CancelFitException, epoch=CancelEpochException, batch=CancelBatchException)


# The same numbers as plain PyTorch

def dropout_net(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(.3), nn.ReLU(), nn.Linear(8, 3))


def shuffled():
    x, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
    ds = TensorDataset(x, y)
    return DataLoaders(DataLoader(ds, batch_size=6, shuffle=True), DataLoader(ds, batch_size=12))


def plain_fit(n_epochs, model, opt, dls, valid=True):
    for _ in range(n_epochs):
        model.train()
        for xb, yb in dls.train:
            F.cross_entropy(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
        model.eval()
        with torch.no_grad():
            for xb, yb in dls.valid if valid else (): F.cross_entropy(model(xb), yb)


def seeded_fit(train):
    "Weights and random state after two epochs of `train(model, dls)`, everything seeded."
    torch.manual_seed(7)
    model, dls = dropout_net(), shuffled()
    train(model, dls)
    return model.state_dict(), torch.get_rng_state()


HEAVY = partial(optim.SGD, momentum=.9)


@pytest.mark.parametrize(('opt_func', 'lr'), [(optim.SGD, .1), (optim.AdamW, .01), (HEAVY, .05)])
@pytest.mark.parametrize('many', [False, True])
@pytest.mark.parametrize('phases', ['learner', 'callback'])
def test_a_seeded_fit_gives_the_weights_and_random_state_of_plain_pytorch_bit_for_bit(opt_func, lr, many, phases):
    watching = [DeviceCB('cpu'), MetricsCB(acc=lambda p, y: (p.argmax(1) == y).float().mean()), ProgressCB(),
                ActivationStats(lambda m: isinstance(m, nn.ReLU)), RecorderCB(lr=lambda cb: cb.pg['lr'])]
    cls, doing = (TrainLearner, []) if phases == 'learner' else (Learner, [TrainCB()])
    cbs = doing + watching if many else doing
    def ours(model, dls): cls(model, dls, F.cross_entropy, lr, cbs, opt_func).fit(2)
    def plain(model, dls): plain_fit(2, model, opt_func(model.parameters(), lr=lr), dls)
    (a, rng_a), (b, rng_b) = seeded_fit(ours), seeded_fit(plain)
    assert same(a, b)
    assert torch.equal(rng_a, rng_b)


def test_without_validation_a_seeded_fit_is_the_plain_loop_without_validation():
    def ours(model, dls): TrainLearner(model, dls, F.cross_entropy, .1).fit(2, valid=False)
    def plain(model, dls): plain_fit(2, model, optim.SGD(model.parameters(), lr=.1), dls, valid=False)
    assert same(seeded_fit(ours)[0], seeded_fit(plain)[0])


def test_momentum_learner_keeps_mom_of_the_gradient_as_torchs_undampened_momentum_does():
    ours = learner(cls=MomentumLearner, lr=.05, mom=.7)
    theirs = copy.deepcopy(ours.model)
    ours.fit(2)
    plain_fit(2, theirs, optim.SGD(theirs.parameters(), lr=.05, momentum=.7), loaders())
    for a, b in zip(ours.model.parameters(), theirs.parameters(), strict=True): torch.testing.assert_close(a, b)


def test_momentum_learner_has_mom_85_and_takes_its_lr_at_fit_and_leaves_parameters_without_gradient():
    learn = MomentumLearner(mlp(), loaders(), F.cross_entropy)
    learn.model.unused = nn.Parameter(torch.ones(1))
    assert (learn.mom, learn.lr) == (.85, None)
    with pytest.raises(ValueError, match='no learning rate: pass lr to the Learner or to fit'): learn.fit(1)
    learn.fit(1, lr=.1)
    assert learn.opt.param_groups[0]['lr'] == .1
    assert learn.model.unused.grad is None


def test_any_object_with_step_and_zero_grad_is_an_optimizer():
    class Plain:
        def __init__(self, params, lr): self.params, self.lr = list(params), lr
        def step(self):
            with torch.no_grad():
                for p in self.params: p -= p.grad*self.lr
        def zero_grad(self):
            for p in self.params: p.grad = None

    ours, torchs = learner([MetricsCB(), ProgressCB(), RecorderCB(n=lambda cb: 1.)], opt_func=Plain), learner()
    ours.fit(1)
    torchs.fit(1)
    for a, b in zip(ours.model.parameters(), torchs.model.parameters(), strict=True): torch.testing.assert_close(a, b)
    assert isinstance(ours.opt, Plain)


def test_a_fit_makes_a_new_optimizer_and_with_opt_func_none_keeps_the_one_that_is_there():
    learn = learner(opt_func=optim.Adam)
    learn.fit(1)
    first = learn.opt
    learn.fit(1)
    assert learn.opt is not first
    learn.opt_func, kept = None, learn.opt
    learn.fit(1)
    assert learn.opt is kept
    assert kept.state[next(learn.model.parameters())]['step'] == 8


def test_the_lr_of_fit_stands_in_for_the_learners_in_that_fit_alone():
    learn, seen = learner(lr=.1), []
    cb = SimpleNamespace(before_fit=lambda learn: seen.append(learn.opt.param_groups[0]['lr']))
    learn.fit(1, lr=.5, cbs=cb)
    learn.fit(1, lr=0, cbs=cb)
    learn.fit(1, cbs=cb)
    assert seen == [.5, 0, .1]


def test_an_epoch_trains_with_gradients_and_validates_without():
    seen = []
    def look(learn): seen.append((learn.training, learn.model.training, learn.preds.requires_grad))
    learner(SimpleNamespace(after_predict=look)).fit(1)
    assert seen == [(True,)*3]*4 + [(False,)*3]*2
    assert torch.is_grad_enabled()


def test_fit_can_train_alone_and_validate_alone():
    for kwargs, expected in [(dict(valid=False), [True]*4), (dict(train=False), [False]*2)]:
        cb = Heard({'after_batch': lambda learn: cb.seen.append(learn.training)})  # noqa: B023
        cb.seen = []
        learner(cb).fit(1, **kwargs)
        assert cb.seen == expected


def test_a_learner_tells_where_it_is():
    seen = []
    def look(learn): seen.append((learn.epoch, list(learn.epochs), learn.n_epochs, learn.iter, len(learn.dl)))
    learner(SimpleNamespace(after_batch=look)).fit(2)
    per_epoch = [(i, n) for n in (4, 2) for i in range(n)]
    assert seen == [(e, [0, 1], 2, i, n) for e in (0, 1) for i, n in per_epoch]


def test_a_fit_of_no_epochs_hears_before_after_and_cleanup_and_trains_nothing():
    cb = Heard()
    learn = learner(cb)
    before = weights(learn)
    learn.fit(0)
    assert cb.log == ['before_fit', 'after_fit', 'cleanup_fit']
    assert same(before, weights(learn))


def test_the_learners_methods_are_there():
    for nm in ('lr_find', 'summary', 'show_image_batch', 'capture_preds'): assert callable(getattr(Learner, nm))


def test_learner_exports_what_a_user_of_the_loop_needs():
    assert to_cpu(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert Callback.order == 0


def test_the_learners_loss_is_mean_squared_error_by_default_and_its_optimizer_sgd():
    learn = Learner(mlp())
    assert (learn.loss_func, learn.opt_func) == (F.mse_loss, optim.SGD)
    assert (learn.lr, learn.dls, learn.cbs) == (.1, (0,), [])


# Events

TRAIN_BATCH = ['before_batch', 'predict', 'after_predict', 'get_loss', 'after_loss', 'backward', 'after_backward',
               'step', 'after_step', 'zero_grad', 'after_batch', 'cleanup_batch']
VALID_BATCH = ['before_batch', 'predict', 'after_predict', 'get_loss', 'after_loss', 'after_batch', 'cleanup_batch']


def test_the_events_of_a_fit_come_in_their_order():
    phases = ['predict', 'get_loss', 'backward', 'step', 'zero_grad']
    t = TrainCB()
    cb = Heard({p: getattr(t, p) for p in phases}, events=AROUND + WITHIN + phases)
    learner(cb, cls=Learner).fit(2)
    def epoch(inside): return ['before_epoch', *inside, 'after_epoch', 'cleanup_epoch']
    assert cb.log == ['before_fit', *(epoch(TRAIN_BATCH*4) + epoch(VALID_BATCH*2))*2, 'after_fit', 'cleanup_fit']


def all_events(n_epochs, n_train, n_valid):
    "Every event of a fit that nobody cancels, each with the names of the scopes it is in: fit, epochs, batches."
    def around(scope, inside, path=()):
        here, kind = (*path, scope), scope.split()[0]
        return [(f'before_{kind}', here), *inside(here), (f'after_{kind}', here), (f'cleanup_{kind}', here)]
    def batch(path, i, train):
        return around(f'batch {i}', lambda p: [(e, p) for e in (WITHIN if train else WITHIN[:2])], path)
    def epoch(path, e, n, train):
        return around(f'epoch {e}{train}', lambda p: [x for i in range(n) for x in batch(p, i, train)], path)
    passes = [(e, n, train) for e in range(n_epochs) for n, train in ((n_train, True), (n_valid, False))]
    return around('fit', lambda p: [x for e, n, train in passes for x in epoch(p, e, n, train)])


def cancelled(events, at, kind):
    "The events where the one at index `at` raises Cancel`kind`: of the scope that ends, only open cleanups are left."
    open_scopes = events[at][1]
    depth = next((i for i, s in enumerate(open_scopes) if s.split()[0] == kind), None)
    ends = open_scopes[:depth + 1]
    def still_open(e, path): return e.startswith('cleanup_') and path == open_scopes[:len(path)]
    def stays(e, path): return path[:len(ends)] != ends or still_open(e, path)
    return events[:at + 1] + [(e, p) for e, p in events[at + 1:] if stays(e, p)]


def kinds_open_at(event): return [s.split()[0] for s in event[1]]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_after_cancels_at_any_events_the_rest_is_as_the_model_says(data):
    n = [data.draw(st.integers(1, 2)) for _ in range(3)]
    expected, plan, at = all_events(*n), {}, -1
    for _ in range(data.draw(st.integers(0, 3))):
        if at + 1 >= len(expected): break
        at = data.draw(st.integers(at + 1, len(expected) - 1))
        kind = data.draw(st.sampled_from(kinds_open_at(expected[at])))
        plan[at], expected = CANCELS[kind], cancelled(expected, at, kind)

    log = []
    def hear(event):
        def f(learn):
            log.append(event)
            if len(log) - 1 in plan: raise plan[len(log) - 1]()
        return f
    model = nn.Linear(4, 3)
    cb = SimpleNamespace(**{e: hear(e) for e in AROUND + WITHIN})
    TrainLearner(model, loaders(n[1], n[2]), F.cross_entropy, .1, cb).fit(n[0])
    assert log == [e for e, _ in expected]


def test_the_model_of_the_events_is_right_where_it_can_be_written_down():
    ev = all_events(1, 1, 1)
    at = [e for e, _ in ev].index('after_loss')
    begun = ['before_fit', 'before_epoch', 'before_batch', 'after_predict', 'after_loss']
    assert [e for e, _ in cancelled(ev, at, 'fit')] == [*begun, 'cleanup_batch', 'cleanup_epoch', 'cleanup_fit']
    assert [e for e, _ in cancelled(ev, at, 'batch')][:8] == [*begun, 'cleanup_batch', 'after_epoch', 'cleanup_epoch']


def test_a_cancel_of_the_batch_in_a_cleanup_does_not_call_off_the_cancel_of_the_fit_that_is_under_way():
    cb = Heard({'after_loss': raising(CancelFitException()), 'cleanup_batch': raising(CancelBatchException())})
    learner(cb).fit(1)
    assert cb.log[-3:] == ['cleanup_batch', 'cleanup_epoch', 'cleanup_fit']
    assert cb.log.count('before_batch') == 1


@pytest.mark.parametrize('event', AROUND + WITHIN)
def test_cleanup_of_every_level_runs_when_any_event_cancels_the_fit_and_after_fit_is_skipped(event):
    cb = Heard({event: raising(CancelFitException())})
    learner(cb).fit(2)
    began = [e for e in ('fit', 'epoch', 'batch') if f'before_{e}' in cb.log]
    for e in began: assert cb.log.count(f'before_{e}') == cb.log.count(f'cleanup_{e}')
    assert cb.log[-1] == 'cleanup_fit'
    assert ('after_fit' in cb.log) == (event in ('after_fit', 'cleanup_fit'))


def test_a_cancelled_batch_does_not_step_and_a_cancelled_epoch_still_validates():
    learn = learner(Heard({'after_backward': raising(CancelBatchException())}))
    before = weights(learn)
    learn.fit(1)
    assert same(before, weights(learn))
    seen = []
    class NoTraining:
        def before_batch(self, learn):
            if learn.training: raise CancelEpochException
        def after_batch(self, learn): seen.append(learn.training)
    learner(NoTraining()).fit(2)
    assert seen == [False]*4


def test_a_cancel_of_what_is_not_running_leaves_the_fit_after_its_cleanups():
    cb = Heard({'before_epoch': raising(CancelBatchException())})
    with pytest.raises(CancelBatchException): learner(cb).fit(1)
    assert cb.log == ['before_fit', 'before_epoch', 'cleanup_epoch', 'cleanup_fit']


def test_later_callbacks_do_not_hear_a_cancelled_event_but_hear_its_cleanup():
    first, second = Heard({'before_batch': raising(CancelFitException())}), Heard()
    learner([first, second]).fit(1)
    assert second.log == ['before_fit', 'before_epoch', 'cleanup_batch', 'cleanup_epoch', 'cleanup_fit']


def test_an_event_is_heard_in_rising_order_and_in_the_order_given_among_equals():
    log = []
    def cb(name, order): return SimpleNamespace(order=order, before_fit=lambda learn: log.append(name))
    without_order = SimpleNamespace(before_fit=lambda learn: log.append('b'))
    learner([cb('c', 1), cb('a', -1), cb('d', 1), without_order]).fit(1, cbs=[cb('e', 1)])
    assert log == list('abcde')


def test_a_learner_with_events_of_its_own_declares_them():
    class Staged(TrainLearner):
        events = (*TrainLearner.events, 'before_stage', 'after_stage', 'cleanup_stage', 'halfway')
        @with_cbs('stage')
        def stage(self): self.callback('halfway')

    cb = Heard(events=Staged.events[-4:])
    learner(cb, cls=Staged).stage()
    assert cb.log == ['before_stage', 'halfway', 'after_stage', 'cleanup_stage']


def test_a_callback_with_an_unknown_event_is_refused_before_anything_runs():
    seen = []
    cbs = [SimpleNamespace(before_fit=seen.append), SimpleNamespace(before_bach=print)]
    with pytest.raises(AttributeError, match=r"before_bach.*did you mean 'before_batch'"): learner(cbs).fit(1)
    with pytest.raises(AttributeError, match=r"learn\.callback\('after_lose'\).*did you mean 'after_loss'"):
        learner().callback('after_lose')
    assert seen == []


def test_user_code_may_call_callback_and_one_epoch():
    cb = Heard()
    learn = learner(cb, opt_func=None)
    learn.opt = optim.SGD(learn.model.parameters(), lr=.1)
    learn.callback('before_fit')
    learn.one_epoch(True)
    learn.one_epoch(False)
    assert (cb.log.count('after_backward'), cb.log.count('after_loss'), cb.log[0]) == (4, 6, 'before_fit')


def test_a_user_learner_may_write_its_own_phases():
    class Mine(Learner):
        def predict(self): self.preds = self.model(self.batch[0])
        def get_loss(self): self.loss = self.loss_func(self.preds, self.batch[1])
        def backward(self): self.loss.backward()
        def step(self): self.opt.step()
        def zero_grad(self): self.opt.zero_grad()
    mine, theirs = learner(cls=Mine), learner()
    mine.fit(1)
    theirs.fit(1)
    assert same(weights(mine), weights(theirs))


def test_a_phase_may_be_put_on_the_learner_itself():
    learn = learner(TrainCB(), cls=Learner)
    calls = []
    learn.zero_grad = lambda: (calls.append(1), learn.opt.zero_grad())
    learn.fit(1)
    assert len(calls) == 4


# Callbacks come and go

def test_callbacks_of_fit_are_there_for_that_fit_alone_one_or_many_or_none():
    learn, own = learner(), Heard()
    learn.cbs.append(own)
    for extra in (Heard(), [Heard()], (Heard(),), None):
        learn.fit(1, cbs=extra)
        assert learn.cbs == [own]
    learn.fit(1, cbs=own)
    assert learn.cbs == [own]


@pytest.mark.parametrize('error', [ValueError('oh'), KeyboardInterrupt(), CancelFitException()])
def test_callbacks_of_fit_go_whatever_ends_it(error):
    learn = learner()
    with suppress(ValueError, KeyboardInterrupt): learn.fit(1, cbs=Heard({'after_loss': raising(error)}))
    assert learn.cbs == []


def test_callbacks_of_fit_go_when_a_callback_has_replaced_the_list():
    learn, own = learner(), Heard()
    def replace(learn): learn.cbs = [own]
    learn.fit(1, cbs=Heard({'before_batch': replace}))
    assert learn.cbs == [own]


def test_callbacks_that_come_and_go_during_a_fit_are_heard_from_the_next_event_on():
    late = Heard()
    def come(learn):
        if learn.iter == 1 and learn.training: learn.cbs.append(late)
    def go(learn):
        if learn.iter == 2 and late in learn.cbs: learn.cbs.remove(late)
    learner(Heard({'before_batch': come, 'after_predict': go})).fit(1)
    assert late.log == [*WITHIN, 'after_batch', 'cleanup_batch', 'before_batch', 'after_predict']


def test_a_callback_replaced_by_one_that_equals_it_is_heard_no_more():
    @dataclass
    class Counts:
        name: str = 'same'
        def __post_init__(self): self.n = 0
        def after_batch(self, learn): self.n += 1
    old, new = Counts(), Counts()
    def replace(learn): learn.cbs[learn.cbs.index(old)] = new
    learner([old, Heard({'before_fit': replace})]).fit(1)
    assert (old.n, new.n) == (0, 6)


def test_callbacks_whose_equality_is_no_bool_are_taken():
    @dataclass
    class Weighted:
        w: torch.Tensor
        def after_batch(self, learn): pass
    learn = learner()
    learn.fit(1, cbs=[Weighted(torch.ones(2))])
    learn.fit(1, cbs=[Weighted(torch.ones(2))])


# Two ways: callbacks may replace what they see

def test_callbacks_may_replace_the_batch_the_predictions_and_the_loss():
    seen = []
    class Swap:
        def before_batch(self, learn): learn.batch = (learn.batch[0][:2]*0, learn.batch[1][:2])
        def after_predict(self, learn): learn.preds = learn.preds*0 + 5
        def after_loss(self, learn): learn.loss = learn.loss*0 + 3
        def after_batch(self, learn):
            seen.append((learn.batch[0].shape, learn.preds.unique().tolist(), learn.loss.item()))

    learn = learner(Swap())
    before = weights(learn)
    learn.fit(1, valid=False)
    assert seen == [((2, 4), [5.], 3.)]*4
    assert same(before, weights(learn))


def test_callbacks_may_replace_loaders_model_optimizer_and_epochs_when_a_fit_begins():
    model, dls, seen = mlp(), loaders(1, 1), []
    class Swap:
        def before_fit(self, learn):
            learn.dls, learn.model, learn.epochs = dls, model, [5, 7, 9]
            learn.opt = optim.SGD(model.parameters(), lr=1.)
        def after_batch(self, learn): seen.append((learn.epoch, learn.training, learn.batch is dls.valid[0]))
    old = learner(Swap())
    old_model, before, swapped = old.model, weights(old), copy.deepcopy(model.state_dict())
    old.fit(1)
    assert seen == [(e, t, not t) for e in (5, 7, 9) for t in (True, False)]
    assert same(before, old_model.state_dict())
    assert not same(swapped, model.state_dict())


def test_callbacks_may_replace_the_loader_of_an_epoch():
    class Once:
        def before_epoch(self, learn): learn.dl = learn.dl[:1]
    cb = Heard()
    learner([Once(), cb]).fit(3)
    assert cb.log.count('after_batch') == 6


def test_epochs_may_be_replaced_by_anything_that_gives_numbers():
    seen = []
    class Forever:
        def before_fit(self, learn): learn.epochs = iter(range(100))
        def before_epoch(self, learn):
            seen.append(learn.epoch)
            if learn.epoch == 3: raise CancelFitException
    learner(Forever()).fit(1)
    assert seen == [0, 0, 1, 1, 2, 2, 3]


# What ends badly ends clean

class Watched(HooksCallback):
    def __init__(self): super().__init__(lambda *args: None)


@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt, CancelFitException])
@pytest.mark.parametrize('event', AROUND + WITHIN)
@pytest.mark.parametrize('order', [-1, 5])
def test_an_error_in_any_event_names_callback_and_event_and_leaves_no_hook_or_replaced_log(event, kind, order):
    broken, last = Heard({event: raising(kind('oh'))}, order=order), Heard(order=9)
    learn = learner([Watched(), ActivationStats(), MetricsCB(), ProgressCB(), broken, last])
    expected = nullcontext() if kind is CancelFitException else pytest.raises(kind)
    with expected as e: learn.fit(1)
    if e: assert any('Heard' in n and event in n for n in e.value.__notes__)
    assert hooks_on(learn.model) == 0
    assert '_log' not in vars(learn.cbs[2])
    assert len(learn.cbs) == 6
    assert last.log[-1] == 'cleanup_fit'


def test_the_error_of_a_short_schedule_is_what_is_seen_beside_a_progress_bar():
    from miniai.sgd import BatchSchedCB
    sched = partial(optim.lr_scheduler.OneCycleLR, max_lr=.1, total_steps=3, cycle_momentum=False)
    with pytest.raises(ValueError, match='is made for 3 steps'): learner([ProgressCB(), BatchSchedCB(sched)]).fit(1)


def test_a_loader_that_fails_is_cleaned_up_after():
    def broken():
        yield batches()[0]
        raise OSError('disk')
    cb = Heard()
    with pytest.raises(OSError, match='disk'): learner(cb, dls=DataLoaders(broken(), [])).fit(1, valid=False)
    assert cb.log[-2:] == ['cleanup_epoch', 'cleanup_fit']


def test_a_learner_can_fit_again_after_an_error():
    learn = learner(MetricsCB())
    with pytest.raises(ValueError, match='oh'): learn.fit(1, cbs=Heard({'after_loss': raising(ValueError('oh'))}))
    learn.fit(1)
    assert len(learn.history) == 2


# Only what will run is checked

ONLY_INPUTS = [(x,) for x, _ in batches()]


class MeanSquare(nn.Module):
    def forward(self, preds): return preds.square().mean()


def test_an_empty_train_loader_is_fine_where_only_validation_runs_and_the_other_way_round():
    dl = batches()
    learner(dls=DataLoaders([], dl)).fit(train=False)
    learner(dls=DataLoaders(dl, [])).fit(valid=False)
    learner(dls=SimpleNamespace(valid=dl)).fit(train=False)


@pytest.mark.parametrize('cbs', [[], [TrainCB()], [MetricsCB(), ProgressCB()]])
def test_validation_needs_no_optimizer_no_targets_and_no_scalar_loss(cbs):
    cls = Learner if any(isinstance(cb, TrainCB) for cb in cbs) else TrainLearner
    learn = learner(cbs, cls=cls, dls=DataLoaders([], ONLY_INPUTS), opt_func=None)
    learn.fit(train=False)
    assert learn.opt is None
    vector = learner(cbs, cls=cls, loss_func=partial(F.cross_entropy, reduction='none'), opt_func=None)
    vector.fit(train=False)
    assert vector.loss.shape == (6,)


def test_validation_of_a_learner_that_only_predicts_needs_no_loss():
    class Predicts(TrainLearner):
        def get_loss(self): pass
    learner([MetricsCB(), ProgressCB()], cls=Predicts, dls=DataLoaders([], batches())).fit(train=False)


def test_validation_without_a_loss_function_works_with_and_without_targets():
    learner(loss_func=None, dls=DataLoaders([], ONLY_INPUTS)).fit(train=False)
    learner(loss_func=None, dls=DataLoaders([], batches())).fit(train=False)


def test_a_loss_of_predictions_alone_needs_no_targets():
    for loss_func in (lambda p: p.square().mean(), torch.mean, MeanSquare()):
        learner(loss_func=loss_func, dls=DataLoaders(ONLY_INPUTS, ONLY_INPUTS)).fit(1)


def test_validation_makes_an_optimizer_for_callbacks_to_look_at_where_one_can_be_had():
    learn = learner(RecorderCB(lr=lambda cb: cb.pg['lr']))
    learn.fit(train=False)
    assert isinstance(learn.opt, optim.SGD)
    for bare in (learner(model=nn.ReLU(), loss_func=lambda p, y: p.mean()), learner(lr=None)):
        bare.fit(train=False)
        assert bare.opt is None


def test_a_users_own_get_loss_needs_no_loss_function():
    class Mine(TrainCB):
        def get_loss(self, learn): learn.loss = F.cross_entropy(learn.preds, learn.batch[1])
    learner(Mine(), cls=Learner, loss_func=None).fit(1)


# Bad input

@pytest.mark.parametrize(('how', 'says'), [
    (dict(dls=DataLoaders([], [])), r'train loader is empty.*Fill learn.dls.train, or call fit with train=False'),
    (dict(dls=DataLoaders(batches(), [])), r'valid loader is empty.*Fill learn.dls.valid, or .* valid=False'),
    (dict(dls=(0,)), r'no train loader: dls is \(0,\); pass DataLoaders\(train, valid\), or call .* train=False'),
    (dict(dls=list(range(99))), r'no train loader: dls is a list'),
    (dict(loss_func=None), r'no loss function: loss_func is None; pass one.*cross_entropy, to TrainLearner'),
    (dict(loss_func=None, cls=Learner, cbs=TrainCB()), r'no loss function.*to Learner'),
    (dict(opt_func=None), r'no optimizer: opt_func is None and learn.opt is not set; pass opt_func, or set learn.opt'),
    (dict(lr=None), r'no learning rate: pass lr to the Learner or to fit'),
    (dict(cls=Learner), r'no predict, get_loss, backward, step, zero_grad phase.*TrainCB\(\) to cbs, use TrainLearner'),
])
def test_what_cannot_train_is_refused_before_the_first_batch_with_what_to_do(how, says):
    cb = Heard()
    learn = learner(**(how | dict(cbs=[cb, *([how['cbs']] if 'cbs' in how else [])])))
    with pytest.raises(ValueError, match=says): learn.fit(1)
    assert cb.log == []
    assert cb in learn.cbs


def test_a_learner_without_phases_names_those_that_will_run():
    with pytest.raises(ValueError, match='Learner has no predict, get_loss phase'):
        learner(cls=Learner).fit(train=False)
    half = SimpleNamespace(predict=print, get_loss=print, backward=print)
    with pytest.raises(ValueError, match='Learner has no step, zero_grad phase'): learner(half, cls=Learner).fit(1)


@pytest.mark.parametrize('n', [-1, 1.5, '3', True])
def test_a_number_of_epochs_that_is_none_is_refused(n):
    with pytest.raises(ValueError, match=r'n_epochs must be a whole number, 0 or more, got'): learner().fit(n)


def test_numpys_whole_numbers_are_whole_numbers():
    cb = Heard()
    learner(cb).fit(np.int64(2))
    assert cb.log.count('before_epoch') == 4


def test_neither_training_nor_validation_is_an_error():
    with pytest.raises(ValueError, match='nothing to do: fit was called with train=False and valid=False'):
        learner().fit(train=False, valid=False)


@pytest.mark.parametrize('lr', [-1, -.1, float('nan'), torch.tensor(-1.)])
def test_a_negative_lr_is_refused_by_the_learner_and_by_fit(lr):
    with pytest.raises(ValueError, match='lr must be 0 or more'): learner(lr=lr)
    with pytest.raises(ValueError, match='lr must be 0 or more'): learner().fit(1, lr=lr)


def test_an_optimizer_that_lacks_a_method_is_refused_with_what_it_lacks():
    todo = r'opt_func\(params, lr\) must return an object with step\(\) and zero_grad\(\)'
    for opt, lacks in [(object(), r'step or zero_grad\(\)'), (SimpleNamespace(step=print), r'has no zero_grad\(\)')]:
        with pytest.raises(TypeError, match=rf'{lacks}.*{todo}'): learner(opt_func=lambda ps, lr, opt=opt: opt).fit(1)


class Nothing(IterableDataset):
    def __iter__(self): return iter(())


def test_a_loader_without_length_that_gives_nothing_is_named_when_it_is_found():
    says = 'the loader gave no batch in epoch {}: it is empty, or an iterator that can be used only once'
    with pytest.raises(ValueError, match=says.format(0)):
        learner(dls=DataLoaders(DataLoader(Nothing()), [])).fit(1, valid=False)
    with pytest.raises(ValueError, match=says.format(1)):
        learner(dls=DataLoaders(iter(batches()), [])).fit(2, valid=False)


def test_a_batch_without_targets_is_an_error_where_the_fit_trains():
    says = r'the batch has no targets for cross_entropy: all of its 1 item\(s\).*\(inputs, targets\), or pass n_inp'
    with pytest.raises(ValueError, match=says): learner(dls=DataLoaders(ONLY_INPUTS, ONLY_INPUTS)).fit(1)


def test_a_batch_that_is_a_bare_tensor_or_a_dict_is_an_error_that_says_what_it_should_be():
    x = batches()[0][0]
    for batch, got in [(x, r'a bare tensor of shape \(6, 4\)'), ('ab', 'a str'),
                       (dict(image=x, label=x), r"a dict with keys \['image', 'label'\]")]:
        with pytest.raises(TypeError, match=rf'a batch must be a tuple \(inputs, targets\), got {got}.*collate_fn'):
            learner(dls=DataLoaders([batch], [])).fit(1, valid=False)


# A loss that is not finite

def poisoned(at, n=4, bad=float('nan')):
    bs = batches(n)
    bs[at] = (bs[at][0]*bad, bs[at][1])
    return bs


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_loss_that_is_not_finite_stops_the_fit_and_leaves_the_weights_as_they_were(bad):
    clean = learner(dls=DataLoaders(batches(2), []))
    clean.fit(1, valid=False)
    learn = learner(dls=DataLoaders(poisoned(2, bad=bad), []))
    says = r'loss is nan in epoch 0, batch 2 .*learn\.lr_find\(\).*learn\.check_finite = False'
    with pytest.raises(NonFiniteLossError, match=says): learn.fit(1, valid=False)
    assert same(weights(learn), weights(clean))
    assert learn.skip_backward is False


def test_buffers_that_a_bad_batch_has_spoiled_are_named_with_what_to_do():
    def model(n): return nn.Sequential(*[nn.BatchNorm1d(4) for _ in range(n)], nn.Linear(4, 3))
    def says(n, what):
        m = model(n)
        m.register_buffer('mask', torch.full((2, 2), -torch.inf).triu(1))
        m.register_buffer('turns', torch.ones(2, dtype=torch.complex64))
        dls = DataLoaders(poisoned(1), batches(1))
        with pytest.raises(NonFiniteLossError, match=what): learner(model=m, dls=dls).fit(1)
    advice = r' Before you train on, reset them, as reset_running_stats\(\) does for a batch norm, or load a check'
    says(0, r'before this batch\. Usual causes')
    says(1, r'But these buffers are not finite now: 0\.running_mean, 0\.running_var\.' + advice)
    says(3, r'now: 0\.running_mean, 0\.running_var, 1\.running_mean, 1\.running_var and 2 more\.' + advice)


def test_a_fit_told_not_to_check_trains_on():
    learn = learner(dls=DataLoaders(poisoned(0), []))
    learn.check_finite = False
    learn.fit(1, valid=False)
    assert learn.model[0].weight.isnan().any()


def test_a_validation_loss_that_is_not_finite_stops_nothing(): learner(dls=DataLoaders(batches(), poisoned(0))).fit(1)


def test_history_is_of_the_last_fit():
    learn = learner(MetricsCB())
    learn.fit(2)
    learn.fit(1)
    assert [(r['epoch'], r['phase']) for r in learn.history] == [(0, 'train'), (0, 'eval')]


# What it says of itself

def test_a_learner_and_its_callbacks_say_what_they_are():
    from miniai.accel import AccumulateCB
    learn = learner([MetricsCB(), AccumulateCB(4)])
    said = repr(learn)
    for part in ('TrainLearner', 'Sequential', '67 parameters', 'cross_entropy', 'SGD', 'MetricsCB, AccumulateCB',
                 repr(learn.dls)): assert part in said
    assert repr(AccumulateCB(4)) == 'AccumulateCB(n=4, weight=None)'
    assert repr(learner(opt_func=None)).count('None') == 1


@pytest.mark.parametrize('event', ['before_fit', 'before_epoch'])
def test_a_fit_that_fails_before_its_first_epoch_leaves_history_and_optimizer(event):
    learn = learner(MetricsCB())
    learn.fit(1)
    history, opt = learn.history, learn.opt
    with pytest.raises(ValueError, match='oh'): learn.fit(1, cbs=Heard({event: raising(ValueError('oh'))}))
    assert (learn.history is history) == (learn.opt is opt) == (event == 'before_fit')


def test_without_progress_a_fit_prints_a_plain_line_for_each_epoch_and_phase(capsys):
    learner(MetricsCB(accuracy=accuracy)).fit(2)
    lines = [line.split('  ') for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines] == [[f'epoch {n}', f'phase {p}'] for n in (1, 2) for p in ('train', 'valid')]
    assert all([x.split()[0] for x in line[2:]] == ['accuracy', 'loss', 'seconds'] for line in lines)



# A batch cut short leaves no gradient

CUTS = ('backward', 'after_backward', 'step', 'after_step', 'zero_grad')
OPTIMIZERS = (optim.SGD, partial(optim.SGD, momentum=.9), optim.AdamW, Adam, partial(AdamW, clip_norm=1.))


def cutting(cuts, order, kind):
    "A callback that raises `kind` in the training batches that `cuts` names: {batch: event}."
    def cut(event):
        def f(learn):
            if learn.training and cuts.get(learn.iter) == event and learn.epoch == 0: raise kind()
        return f
    return SimpleNamespace(order=order, stands_in=True, **{e: cut(e) for e in CUTS})


def plain_with_cuts(model, opt, train, cuts, order):
    "A loop in which a batch that is cut before its step does nothing. A callback before TrainCB cuts `step` before it."
    stepped = ('after_step', 'zero_grad') if order < 0 else ('step', 'after_step', 'zero_grad')
    for i, (xb, yb) in enumerate(train):
        loss = F.cross_entropy(model(xb), yb)
        if i in cuts and cuts[i] not in stepped: continue
        opt.zero_grad()
        loss.backward()
        opt.step()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_batch_cut_short_leaves_no_gradient_behind(data):
    sizes = data.draw(st.lists(st.integers(2, 7), min_size=2, max_size=6))
    cuts = data.draw(st.dictionaries(st.integers(0, len(sizes) - 1), st.sampled_from(CUTS), min_size=1))
    order, opt_func = data.draw(st.sampled_from([-1, 1])), data.draw(st.sampled_from(OPTIMIZERS))
    train = [b for i, bs in enumerate(sizes) for b in batches(1, bs, seed=i)]
    model = data.draw(st.sampled_from([mlp, dropout_free_norm]))()
    plain = copy.deepcopy(model)
    cb = cutting(cuts, order, CancelBatchException)
    learn = Learner(model, DataLoaders(train, []), F.cross_entropy, .1, [TrainCB(), cb], opt_func)
    with suppress(CancelBatchException): learn.fit(1, valid=False)
    cut_while_zeroing = 'zero_grad' in cuts.values() and order < 0  # the callback forbids the zeroing itself
    if cut_while_zeroing: return
    plain_with_cuts(plain, opt_func(plain.parameters(), lr=.1), train, cuts, order)
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-5)
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


def dropout_free_norm(): return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize('kind', [KeyboardInterrupt, RuntimeError, CancelEpochException, CancelFitException])
@pytest.mark.parametrize('event', CUTS[:-1])
def test_a_fit_that_ends_in_the_middle_of_a_batch_leaves_no_gradient_to_the_next_fit(kind, event):
    learn, plain = learner(TrainCB(), Learner, opt_func=None), learner().model
    learn.opt, opt = optim.Adam(learn.model.parameters(), .01), optim.Adam(plain.parameters(), .01)
    with suppress(KeyboardInterrupt, RuntimeError): learn.fit(1, valid=False, cbs=cutting({1: event}, 1, kind))
    assert all(p.grad is None for p in learn.model.parameters())
    learn.fit(1, valid=False)
    done = 2 if event in ('step', 'after_step') else 1
    for xb, yb in batches()[:done] + batches():
        opt.zero_grad()
        F.cross_entropy(plain(xb), yb).backward()
        opt.step()
    torch.testing.assert_close(weights(learn), plain.state_dict())


def test_an_error_in_the_middle_of_the_backward_leaves_no_gradient():
    learn = learner()
    def fails(g):
        if learn.iter == 1: raise RuntimeError('oh')
    learn.model[0].weight.register_hook(fails)
    with pytest.raises(RuntimeError, match='oh'): learn.fit(1)
    assert all(p.grad is None for p in learn.model.parameters())


# After a fit: freed at once, pickled, copied

def lr_of(cb): return cb.pg['lr']
def falling(opt): return optim.lr_scheduler.ExponentialLR(opt, .9)
def is_relu(m): return isinstance(m, nn.ReLU)
def sign_step(p, g, *, t, lr): return p - lr*sign(g)


CALLBACKS = dict(
    none=list, shows=lambda: [MetricsCB(accuracy), ProgressCB(plot=True)], stats=lambda: [ActivationStats(is_relu)],
    schedule=lambda: [BatchSchedCB(falling), RecorderCB(lr=lr_of)], accumulate=lambda: [AccumulateCB(3)],
    half=lambda: [MixedPrecision(dtype=torch.float16)], layout=lambda: [ChannelsLastCB()], mix=lambda: [MixUpCB()],
    compiled=lambda: [CompileCB(backend='eager')], smooth=lambda: [LabelSmoothingCB()], profile=lambda: [ProfileCB()])
ENDS = dict(done=None, error=KeyError, cancel=CancelFitException)


def ended(cbs, end, opt_func=AdamW, **kwargs):
    "A Learner after a fit with `cbs` that ended as `end` says."
    half = any(isinstance(cb, MixedPrecision) for cb in cbs)
    learn = learner(cbs, Learner if half else TrainLearner, opt_func=opt_func, lr=.01)
    stop = [cutting({2: 'after_backward'}, 1, ENDS[end])] if ENDS[end] else []
    if stop: vars(stop[0]).pop('backward')
    with suppress(KeyError): learn.fit(2, cbs=stop, **kwargs)
    return learn


@pytest.mark.parametrize('valid', [True, False])
@pytest.mark.parametrize('end', ENDS)
@pytest.mark.parametrize('name', CALLBACKS)
def test_after_any_fit_a_learner_is_copied_pickled_and_freed_at_once(name, end, valid):
    learn = ended(CALLBACKS[name](), end, valid=valid)
    for other in (copy.deepcopy(learn), pickle.loads(pickle.dumps(learn))):
        assert same(weights(learn), weights(other))
        assert equal(learn.opt.state_dict(), other.opt.state_dict())
        assert other.opt.param_groups[0]['params'][0] is next(other.model.parameters())
        other.fit(1)
        assert not same(weights(learn), weights(other))
    gc.collect()
    gc.disable()
    try:
        model = weakref.ref(learn.model)
        del learn, other
        assert model() is None
    finally: gc.enable()


@pytest.mark.parametrize('end', ENDS)
def test_after_any_fit_the_tensors_of_a_learner_hold_no_graph_and_have_their_values(end):
    class Keep(TrainLearner):
        def predict(self): self.preds = dict(out=self.model(self.batch[0]), parts=(self.model[0](self.batch[0]),))
        def get_loss(self): self.loss = self.own_loss = F.cross_entropy(self.preds['out'], self.batch[1])
    learn = learner(cls=Keep)
    class Watch:
        def after_loss(self, learn): self.loss, self.preds = learn.loss.item(), learn.preds['out'].detach()
        def after_backward(self, learn):
            if ENDS[end] and learn.iter == 2: raise ENDS[end]()
    watch = Watch()
    with suppress(KeyError): learn.fit(1, valid=False, cbs=watch)
    tensors = [learn.loss, learn.own_loss, learn.preds['out'], learn.preds['parts'][0]]
    assert [t.requires_grad for t in tensors] == [False]*4
    assert (learn.loss.item(), learn.own_loss.item()) == (watch.loss, watch.loss)
    assert torch.equal(learn.preds['out'], watch.preds)


def test_an_optimizer_made_from_a_rule_is_pickled_and_copied_with_its_learner():
    learn = ended([], 'done', optimizer(sign_step, 'MySign'))
    for other in (pickle.loads(pickle.dumps(learn)), copy.deepcopy(learn)):
        assert type(other.opt).__name__ == 'MySign'
        want = [p - .01*torch.sign(torch.ones_like(p)) for p in other.model.parameters()]
        for p in other.model.parameters(): p.grad = torch.ones_like(p)
        other.opt.step()
        torch.testing.assert_close(list(other.model.parameters()), want)
