"AccumulateCB: several batches to a step are one large batch, in gradients, weights, and what the others hear."
import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import OneCycleLR, StepLR

from miniai.accel import AccumulateCB, MixedPrecision
from miniai.data import DataLoaders
from miniai.distributed import DistributedCB
from miniai.learner import (
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    Learner,
    LRFinderCB,
    MomentumLearner,
    SingleBatchCB,
    TrainCB,
    TrainLearner,
)
from miniai.optim import SGD, AdamW
from miniai.resume.checkpoint import CheckpointCB
from miniai.steps.average import AverageCB
from miniai.steps.schedule import BatchSchedCB, EpochSchedCB
from ranks import run_ranks
from resuming import StopCB
from small import Gradients, Heard, Unsized, batches, learner, mlp, raising, same, weights

SIZES = [5, 3, 8, 1, 4, 2, 6]


class Lying(Unsized):
    "A loader that says it has `length` batches."
    def __init__(self, bs, length): self.bs, self.length = bs, length
    def __len__(self): return self.length


def of_sizes(sizes):
    x, y = batches(1, sum(sizes))[0]
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def joined(bs, n):
    "Every `n` batches as one."
    return [tuple(map(torch.cat, zip(*bs[i:i + n], strict=True))) for i in range(0, len(bs), n)]


def trained(cbs, bs, cls=TrainLearner, epochs=1, **kwargs):
    learn = learner(cbs, cls, dls=DataLoaders(bs, batches(2)), **kwargs)
    learn.fit(epochs)
    return learn


def difference(xs, ys):
    return max(float((x - y).abs().max()/y.abs().max().clamp_min(1e-3)) for x, y in zip(xs, ys, strict=True))


LOADERS = {'sized': list, 'unsized': Unsized, 'too long': lambda bs: Lying(bs, len(bs) + 3)}


# Equal to the large batch

@settings(max_examples=25)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(1, 5), st.sampled_from(sorted(LOADERS)))
def test_gradients_at_each_step_equal_the_large_batchs_in_double_precision(sizes, n, kind):
    assert largest_difference(sizes, n, kind, torch.float64) < 1e-12


@pytest.mark.parametrize('kind', LOADERS)
@pytest.mark.parametrize('n', [1, 2, 3, 5, 9])
def test_gradients_at_each_step_equal_the_large_batchs_to_1e_6(n, kind):
    assert largest_difference(SIZES, n, kind, torch.float32) < 1e-6


def largest_difference(sizes, n, kind, dtype):
    bs, ours, large = [(x.to(dtype), y) for x, y in of_sizes(sizes)], Gradients(), Gradients()
    def fitted(cbs, bs):
        learn = learner(cbs, dls=DataLoaders(bs, []), lr=0.)
        learn.model.to(dtype)
        learn.fit(1, valid=False)
    fitted([AccumulateCB(n), ours], LOADERS[kind](bs))
    fitted(large, joined(bs, n))
    assert len(ours.steps) == len(large.steps)
    return max(map(difference, ours.steps, large.steps))


OPTS = {'torch SGD': partial(torch.optim.SGD, momentum=.9), 'SGD': SGD, 'torch AdamW': torch.optim.AdamW,
        'AdamW, clipped and averaged': partial(AdamW, clip_norm=.05, ema=.9),
        'AdamW, clipped by value': partial(AdamW, clip_value=.01)}


@pytest.mark.parametrize('kind', ['sized', 'unsized'])
@pytest.mark.parametrize('opt', OPTS)
def test_weights_and_averages_after_epochs_are_those_of_the_large_batch(opt, kind):
    bs, kwargs = of_sizes(SIZES), dict(opt_func=OPTS[opt], lr=.02, epochs=2)
    ours, large = trained(AccumulateCB(3), LOADERS[kind](bs), **kwargs), trained([], joined(bs, 3), **kwargs)
    torch.testing.assert_close(weights(ours), weights(large), rtol=1e-5, atol=1e-5)
    for p, q in zip(ours.model.parameters(), large.model.parameters(), strict=True):
        ema = ours.opt.state[p].get('ema')
        if 'averaged' in opt: torch.testing.assert_close(ema, large.opt.state[q]['ema'], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('cls', [TrainLearner, Learner])
def test_phases_may_be_the_learners_or_a_callbacks(cls):
    phases = [] if cls is TrainLearner else [TrainCB()]
    bs = of_sizes(SIZES)
    ours, large = trained([AccumulateCB(2), *phases], bs, cls), trained(phases, joined(bs, 2), cls)
    torch.testing.assert_close(weights(ours), weights(large), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('opt', ['torch AdamW', 'AdamW, clipped and averaged'])
def test_in_half_precision_it_is_the_plain_loop_that_weighs_unscales_clips_and_steps_once_a_group(dtype, opt):
    ours = trained([MixedPrecision(dtype=dtype), AccumulateCB(2)], of_sizes([4, 4, 4]), Learner, lr=.01,
                   opt_func=OPTS[opt])
    torch.manual_seed(3)
    model = mlp()
    plain = (AdamW if 'clipped' in opt else torch.optim.AdamW)(model.parameters(), .01)
    scaler = torch.amp.GradScaler('cpu', enabled=dtype is torch.float16)
    for group in ([0, 1], [2]):
        for i in group:
            x, y = of_sizes([4, 4, 4])[i]
            with torch.autocast('cpu', dtype=dtype): loss = F.cross_entropy(model(x), y)/len(group)
            scaler.scale(loss).backward()
        scaler.unscale_(plain)
        if 'clipped' in opt: torch.nn.utils.clip_grad_norm_(model.parameters(), .05)
        scaler.step(plain)
        scaler.update()
        plain.zero_grad()
    torch.testing.assert_close(weights(ours), model.state_dict(), rtol=1e-4, atol=1e-5)


def test_validation_with_averaged_weights_sees_the_large_batchs_averages():
    bs, kwargs = of_sizes(SIZES), dict(opt_func=partial(AdamW, ema=.5), lr=.05, epochs=2)
    seen = []
    class Sees:
        def after_predict(self, learn):
            if not learn.training: seen.append(learn.preds)
    trained([AccumulateCB(3), AverageCB(), Sees()], bs, **kwargs)
    ours = seen[:]
    seen.clear()
    trained([AverageCB(), Sees()], joined(bs, 3), **kwargs)
    torch.testing.assert_close(ours, seen, rtol=1e-4, atol=1e-5)


def test_accelerate_accumulates_the_same(monkeypatch):
    pytest.importorskip('accelerate')
    from accelerate.state import AcceleratorState

    from miniai.accel import AccelerateCB
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    AcceleratorState._reset_state(True)
    bs = of_sizes(SIZES)
    ours = trained([AccelerateCB(mixed_precision='no'), AccumulateCB(3)], bs, Learner)
    AcceleratorState._reset_state(True)
    torch.testing.assert_close(weights(ours), weights(trained([], joined(bs, 3))), rtol=1e-5, atol=1e-6)


def test_one_batch_to_a_step_is_the_plain_loop_to_the_bit():
    assert same(weights(trained(AccumulateCB(1), of_sizes(SIZES))), weights(trained([], of_sizes(SIZES))))


# What the others see

def test_the_loss_that_others_see_is_the_batchs_own():
    seen = []
    class Sees:
        order = 1
        def after_loss(self, learn): seen.append((learn.loss, F.cross_entropy(learn.preds, learn.batch[1])))
        def after_batch(self, learn): self.after_loss(learn)
    trained([AccumulateCB(2), Sees()], of_sizes(SIZES))
    assert all(torch.equal(a, b) for a, b in seen)


def test_a_penalty_that_a_callback_adds_to_the_loss_is_weighed_with_it():
    class Penalty:
        def after_loss(self, learn): learn.loss = learn.loss + sum(p.square().sum() for p in learn.model.parameters())
    bs = of_sizes(SIZES)
    ours, large = trained([AccumulateCB(3), Penalty()], bs), trained(Penalty(), joined(bs, 3))
    torch.testing.assert_close(weights(ours), weights(large), rtol=1e-5, atol=1e-6)


def test_steps_are_heard_once_a_group_and_batches_each():
    events = ['after_backward', 'after_step', 'after_batch']
    heard = Heard(events=events)
    trained([AccumulateCB(2), heard], batches(3))
    assert heard.log == ['after_batch', *events, *events, 'after_batch', 'after_batch']


@pytest.mark.parametrize('kind', ['sized', 'unsized'])
def test_a_schedule_counts_batches_and_moves_when_a_step_is_taken(kind):
    bs, lrs = batches(7), []
    class Rates:
        def after_step(self, learn): lrs.append(learn.opt.param_groups[0]['lr'])
    sched = partial(OneCycleLR, max_lr=.1, total_steps=14, cycle_momentum=False)
    trained([AccumulateCB(3), BatchSchedCB(sched), Rates()], LOADERS[kind](bs), epochs=2)
    opt = torch.optim.SGD([torch.zeros(1)], .1)
    plain, by_batch = sched(opt), []
    for _ in range(14):
        by_batch.append(opt.param_groups[0]['lr'])
        opt.step()
        plain.step()
    assert lrs == [by_batch[i] for i in (0, 3, 6, 7, 10, 13)]


def test_the_rate_finder_tries_a_rate_a_step():
    finder = LRFinderCB()
    learn = learner([AccumulateCB(2)], dls=DataLoaders(batches(8), batches(2)))
    learn.fit(1, valid=False, lr=1e-5, cbs=finder)
    assert finder.lrs == pytest.approx([1e-5*1.3**i for i in range(4)])
    before = weights(learn)
    learn.lr_find(max_epochs=2)
    assert same(before, weights(learn))


@pytest.mark.parametrize('kind', LOADERS)
def test_an_epochs_last_step_comes_before_what_others_do_after_the_epoch(kind):
    log = []
    heard = Heard(events=['after_batch', 'after_backward', 'after_step', 'after_epoch'], log=log)
    learn = learner([heard, AccumulateCB(2)], dls=DataLoaders(LOADERS[kind](batches(3)), []))
    learn.fit(1, valid=False)
    assert log.count('after_step') == 2
    assert log[-1] == 'after_epoch'
    assert '_batches' not in vars(learn)


def test_a_schedule_by_epoch_moves_after_the_last_step_of_a_loader_without_length():
    lrs = []
    class Rates:
        def after_step(self, learn): lrs.append(learn.opt.param_groups[0]['lr'])
    sched = EpochSchedCB(lambda opt: StepLR(opt, 1, .5))
    trained([sched, AccumulateCB(2), Rates()], Unsized(batches(3)), epochs=2, lr=.1)
    assert lrs == pytest.approx([.1, .1, .05, .05])


@pytest.mark.parametrize('kind', LOADERS)
def test_a_last_step_that_the_optimizer_skips_is_warned_of_in_its_epoch(kind):
    class Spoils:
        def after_backward(self, learn):
            if learn.iter == 2: next(learn.model.parameters()).grad[0, 0] = float('nan')
    with pytest.warns(UserWarning, match=r'1 step\(s\) of epoch 0 were skipped'):
        trained([AccumulateCB(2), Spoils()], LOADERS[kind](batches(3)), opt_func=partial(AdamW, skip_nonfinite=True))


@pytest.mark.parametrize('stop', [1, 2, 3, 4])
@pytest.mark.filterwarnings('ignore:the first . batches were loaded again to resume')  # and not ahead
def test_a_loader_without_length_is_read_no_further_than_its_batches_and_resumes_exactly(stop, tmp_path):
    class Noisy:
        def __iter__(self):
            for x, y in batches(5): yield x + torch.randn(x.shape), y
    def run(folder, *cbs):
        dls = DataLoaders(Noisy(), batches(2))
        torch.manual_seed(2)
        model = torch.nn.Sequential(torch.nn.Dropout(.3), mlp())
        return learner([AccumulateCB(3), CheckpointCB(folder, batches=1), *cbs], dls=dls, model=model)
    want = run(tmp_path/'whole')
    want.fit(2)
    with pytest.raises(RuntimeError, match='stopped'): run(tmp_path/'cut', StopCB(0, stop)).fit(2)
    again = run(tmp_path/'cut')
    again.fit(2, resume=True)
    assert same(weights(again), weights(want))


# Cut short

def test_a_cancelled_batch_counts_for_nothing():
    class Third:
        def after_predict(self, learn):
            if learn.training and learn.iter == 2: raise CancelBatchException()
    bs = of_sizes(SIZES)
    ours = trained([AccumulateCB(3), Third()], bs)
    torch.testing.assert_close(weights(ours), weights(trained([], joined(bs[:2] + bs[3:], 3))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('n', [2, 3])
@pytest.mark.parametrize('cancelled', [0, 1, 2, 6])
@pytest.mark.parametrize('kind', ['sized', 'unsized'])
def test_a_batch_cancelled_after_its_loss_was_weighed_counts_for_nothing(n, cancelled, kind):
    class Late:
        order = 2e9
        def after_loss(self, learn):
            if learn.training and learn.iter == cancelled: raise CancelBatchException()
    bs = of_sizes(SIZES)
    ours = trained([AccumulateCB(n), Late()], LOADERS[kind](bs))
    left = [b for i, b in enumerate(bs) if i != cancelled]
    torch.testing.assert_close(weights(ours), weights(trained([], joined(left, n))), rtol=1e-5, atol=1e-6)


def test_a_batch_cancelled_after_its_backward_counts():
    class After:
        def after_batch(self, learn):
            if learn.training and learn.iter == 1: raise CancelBatchException()
    bs = of_sizes(SIZES)
    ours = trained([AccumulateCB(3), After()], bs)
    torch.testing.assert_close(weights(ours), weights(trained([], joined(bs, 3))), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('event', ['after_backward', 'after_step'])
@pytest.mark.parametrize(('e', 'epochs'), [(CancelBatchException(), 2), (CancelEpochException(), 2),
                                           (CancelFitException(), 1)])
def test_a_cancel_in_the_last_step_of_a_loader_without_length_is_heard_as_in_any_other(event, e, epochs):
    heard = Heard(events=['after_epoch', 'cleanup_epoch'])
    class Last(Heard):
        def __init__(self): super().__init__({event: self.cancel}, events=[event])
        def cancel(self, learn):
            if learn.iter == 2: raise e
    learn = learner([AccumulateCB(2), Last(), heard], dls=DataLoaders(Unsized(batches(3)), []))
    learn.fit(2, valid=False)
    assert heard.log.count('cleanup_epoch') == epochs
    assert heard.log.count('after_epoch') == (2 if isinstance(e, CancelBatchException) else 0)
    assert all(p.grad is None for p in learn.model.parameters())


EARLY = ('before_batch', 'after_predict', 'after_loss', 'after_loss, late')  # before gradients flow
NO_STEP = ('after_backward', 'step')
PLACES = (*EARLY, 'backward', 'within backward', *NO_STEP, 'after_step', 'after_batch')


def cutting(cuts):
    "Callbacks that cancel the training batches that `cuts` names: {batch: place}."
    def cut(event, place, order):
        def f(learn):
            if learn.training and cuts.get(learn.iter) == place: raise CancelBatchException()
        return SimpleNamespace(order=order, stands_in=True, **{event: f})
    orders = {'after_loss, late': 2e9, 'backward': -1, 'step': -1}
    return [cut(p.partition(',')[0], p, orders.get(p, 1)) for p in PLACES if p != 'within backward']


def plain_groups(model, opt, bs, n, cuts, sized):
    "One large batch for every `n` batches that were not cut. A cut in the backward of a group or in its step drops it."
    group = []
    def step():
        x, y = map(torch.cat, zip(*group, strict=True))
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    for i, b in enumerate(bs):
        place, complete = cuts.get(i), len(group) + 1 == n or (sized and i + 1 == len(bs))
        if place in EARLY or (place == 'backward' and not complete): continue
        group = [] if 'backward' in (place or '').split() else [*group, b]
        if not complete or not group: continue
        if place not in NO_STEP: step()
        group = []
    if group and cuts.get(len(bs) - 1) not in NO_STEP: step()


@pytest.mark.filterwarnings('ignore:AccumulateCB. batch . of epoch 0 .* was cancelled in its backward')
@settings(max_examples=150, deadline=None)
@given(st.data())
def test_cancels_in_any_places_leave_the_groups_of_a_plain_loop(data):
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=8))
    n, opt_func = data.draw(st.integers(1, 4)), data.draw(st.sampled_from([*OPTS.values()][:3]))
    sized = data.draw(st.booleans())
    cuts = data.draw(st.dictionaries(st.integers(0, len(sizes) - 1), st.sampled_from(PLACES), min_size=1))
    bs = [(x.double(), y) for x, y in of_sizes(sizes)]
    dls = DataLoaders(bs if sized else Unsized(bs), [])
    learn = learner([*cutting(cuts), AccumulateCB(n), TrainCB()], Learner, mlp().double(), dls, opt_func=opt_func)
    plain = copy.deepcopy(learn.model)
    def fails(g):
        if cuts.get(learn.iter) == 'within backward': raise CancelBatchException()
    learn.model[0].weight.register_hook(fails)
    learn.fit(1, valid=False)
    plain_groups(plain, opt_func(plain.parameters(), lr=.1), bs, n, cuts, sized)
    torch.testing.assert_close(weights(learn), plain.state_dict(), rtol=1e-9, atol=1e-9)
    assert all(p.grad is None for p in learn.model.parameters())


@pytest.mark.parametrize('start', [True, False])
def test_a_batch_cancelled_in_its_backward_drops_its_group_with_a_warning(start):
    class Cancels(TrainLearner):
        def backward(self):
            if start and self.iter == 1: raise CancelBatchException()
            super().backward()
    learn = learner(AccumulateCB(2), Cancels, dls=DataLoaders(batches(4), []))
    def fails(g):
        if not start and learn.iter == 1: raise CancelBatchException()
    learn.model[0].weight.register_hook(fails)
    says = 'batch 1 of epoch 0 .* was cancelled in its backward'
    with pytest.warns(UserWarning, match=says): learn.fit(1, valid=False)
    plain = trained([], joined(batches(4)[2:], 2))
    torch.testing.assert_close(weights(learn), weights(plain), rtol=1e-5, atol=1e-6)


def test_an_epoch_cancelled_within_a_group_drops_it_and_the_next_epoch_starts_clean():
    class Fifth:
        def before_batch(self, learn):
            if learn.training and learn.iter == 4: raise CancelEpochException()
    ours = trained([AccumulateCB(3), Fifth()], of_sizes(SIZES), epochs=2)
    assert all(p.grad is None for p in ours.model.parameters())
    plain = trained([], joined(of_sizes(SIZES)[:3], 3), epochs=2)
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('event', ['after_backward', 'after_step'])
def test_a_step_cancelled_leaves_no_gradient_behind(event):
    learn = trained([AccumulateCB(2), Heard({event: raising(CancelBatchException())}, events=[event])], batches(4))
    assert all(p.grad is None for p in learn.model.parameters())


@pytest.mark.parametrize('kind', ['sized', 'unsized'])
def test_a_step_cancelled_drops_its_group_alone(kind):
    class First:
        def after_backward(self, learn):
            if learn.iter == 1: raise CancelBatchException()
    bs = of_sizes(SIZES)
    ours, plain = trained([AccumulateCB(2), First()], LOADERS[kind](bs)), trained([], joined(bs[2:], 2))
    torch.testing.assert_close(weights(ours), weights(plain), rtol=1e-5, atol=1e-6)


def test_an_epoch_cancelled_before_its_first_batch_leaves_the_learner_its_own_batches():
    late = Heard({'before_epoch': raising(CancelEpochException())}, order=2e9, events=['before_epoch'])
    assert '_batches' not in vars(trained([AccumulateCB(2), late], batches(3)))


def test_a_fit_that_ends_within_a_group_takes_no_step_and_leaves_the_flag_down():
    learn = learner([AccumulateCB(3), SingleBatchCB()])
    before = weights(learn)
    learn.fit(1)
    assert same(before, weights(learn))
    assert not learn.hold_step
    assert all(p.grad is None for p in learn.model.parameters())


# Refused

@pytest.mark.parametrize('n', [0, -1, 1.5, True, '2'])
def test_a_number_of_batches_that_cannot_be_meant_is_refused(n):
    with pytest.raises(ValueError, match='n must be a whole number of batches, 1 or more, got'): AccumulateCB(n)


@pytest.mark.parametrize('empty', [0, 1, 3])
def test_a_batch_without_samples_is_refused_by_its_number_before_weights_change(empty):
    bs = batches(4)
    bs[empty] = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    learn, seen = learner(AccumulateCB(2), dls=DataLoaders(bs, [])), []
    class Last:
        def before_batch(self, learn): seen.append(weights(learn))
    with pytest.raises(ValueError, match=f'batch {empty} of epoch 0 .* has none: let the loader skip empty'):
        learn.fit(1, valid=False, cbs=Last())
    assert same(weights(learn), seen[-1])


def test_a_learner_that_keeps_gradients_is_refused_at_its_first_step():
    with pytest.raises(ValueError, match='MomentumLearner, whose zero_grad keeps gradients'):
        trained(AccumulateCB(2), batches(4), MomentumLearner)


def test_a_loss_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match='needs a loss that is a tensor, got a float'):
        trained(AccumulateCB(2), batches(4), loss_func=lambda out, y: 1.)


def test_gradients_of_parameters_that_the_optimizer_does_not_hold_are_named():
    "As of a GAN whose discriminator has an optimizer of its own, which its author does not zero."
    class TwoOptimizers(TrainLearner):
        def step(self):
            super().step()
            self.opt_d.step()
    def first_layer(params, lr): return torch.optim.SGD(list(params)[:2], lr)
    learn = learner(AccumulateCB(2), cls=TwoOptimizers, opt_func=first_layer)
    learn.opt_d = torch.optim.SGD(learn.model[2].parameters(), .1)
    says = r'2 parameter\(s\) that learn\.opt does not hold, such as 2\.weight, still have gradients after zero_grad'
    with pytest.raises(ValueError, match=says): learn.fit(1)


class TwoLosses(TrainLearner):
    "A model of two parts, each with a loss and an optimizer of its own, in a backward of the user's."
    def get_loss(self):
        self.loss = F.cross_entropy(self.preds, self.batch[1])
        self.other = self.part*self.model[0].weight.square().mean()

    def backward(self):
        self.loss.backward(inputs=[self.model[2].weight])
        self.other.backward(inputs=[self.model[0].weight])

    def step(self): self.opt.step(), self.opt_other.step()
    def zero_grad(self): self.model.zero_grad()


def two_losses(part=1., **kwargs):
    torch.manual_seed(4)
    model = mlp()
    learn = learner(cls=TwoLosses, model=model, opt_func=lambda params, lr: SGD([model[2].weight], lr), **kwargs)
    learn.part, learn.opt_other = part, SGD([model[0].weight], lr=.1)
    return learn


def test_a_second_loss_that_accumulation_cannot_weigh_is_told_with_what_to_divide_it_by():
    bs = of_sizes([4, 4])
    large = two_losses(dls=DataLoaders(joined(bs, 2), []))
    large.fit(1, valid=False)
    for part, is_same in ((1., False), (.5, True)):
        learn = two_losses(part, dls=DataLoaders(bs, []), cbs=[AccumulateCB(2)])
        says = r'TwoLosses.backward is your own.* that of learn.opt_other.*Divide those losses by 2'
        with pytest.warns(UserWarning, match=says): learn.fit(1, valid=False)
        assert torch.allclose(learn.model[0].weight, large.model[0].weight) == is_same
        torch.testing.assert_close(learn.model[2].weight, large.model[2].weight)


def test_a_backward_of_the_users_or_a_second_optimizer_alone_is_not_told():
    class Own(TrainLearner):
        def backward(self): self.loss.backward(retain_graph=True)
    learner(cls=Own, cbs=[AccumulateCB(2)]).fit(1)
    learn = learner(cbs=[AccumulateCB(2)])
    learn.opt_other = SGD([torch.zeros(1)], lr=.1)
    learn.fit(1)


# On several processes

def parts_to_accumulate(unsized):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(37, 6, generator=g).double(), torch.randint(0, 3, (37,), generator=g)
    y[::7] = -100  # ignored targets: parts of a batch weigh differently
    bs = list(zip(x.split(8), y.split(8), strict=True))
    return DataLoaders(Unsized(bs) if unsized else bs, [])


SCATTER = next(nm for nm in ('reduce_scatter_single', 'reduce_scatter_tensor') if hasattr(dist, nm))  # by version


class CountsReductions(Callback):
    "Counts the communications of gradients, by DDP and FSDP2, during each batch."
    order = 1e10
    def __init__(self): self.counts, self._now = [], 0
    def before_fit(self, learn):
        if isinstance(learn.model, DistributedDataParallel): learn.model.register_comm_hook(None, self._hook)
        self._scatter = getattr(dist, SCATTER)
        setattr(dist, SCATTER, self._counted)

    def _hook(self, state, bucket):
        self._now += 1
        return allreduce_hook(None, bucket)

    def _counted(self, *args, **kwargs):
        self._now += 1
        return self._scatter(*args, **kwargs)

    def before_batch(self, learn): self._now = 0
    def cleanup_batch(self, learn): self.counts.append(self._now)
    def cleanup_fit(self, learn): setattr(dist, SCATTER, self._scatter)


class CancelsLast(Callback):
    "Cancels the last batch of a pass before its backward."
    def before_batch(self, learn):
        if learn.iter == 4: raise CancelBatchException()


class CancelsPass(Callback):
    "Ends the first pass while a group is incomplete."
    def after_batch(self, learn):
        if (learn.epoch, learn.iter) == (0, 1): raise CancelEpochException()


CASES = [(unsized, cancels) for unsized in (False, True) for cancels in (None, CancelsLast, CancelsPass)]


def accumulated(how, unsized, cancels):
    torch.manual_seed(0)
    model, counts = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double(), CountsReductions()
    cbs = [TrainCB(), AccumulateCB(3), counts, *([cancels()] if cancels else [])]
    learn = Learner(model, parts_to_accumulate(unsized), F.cross_entropy, 0.01, cbs, AdamW)
    if how: learn.cbs.append(DistributedCB(how))
    learn.fit(2, valid=False)
    full = [p.full_tensor() if how == 'fsdp' else p for p in model.parameters()]
    return torch.cat([p.detach().flatten() for p in full]), counts.counts


def accumulated_on_ranks(): return [[accumulated(how, *case) for case in CASES] for how in ('ddp', 'fsdp')]


@pytest.mark.parametrize('n', [2, 4])
def test_on_several_processes_a_group_steps_as_in_one_and_only_its_last_backward_communicates(n):
    results = [of_kind for of_rank in run_ranks(accumulated_on_ranks, n) for of_kind in of_rank]
    for (unsized, cancels), *found in zip(CASES, *results, strict=True):
        expected = accumulated(None, unsized, cancels)[0]
        in_a_pass = [0, 0, 1, 0, int(not unsized and cancels is not CancelsLast)]  # else those kept are averaged
        counts = [0, 0, *in_a_pass] if cancels is CancelsPass else in_a_pass*2
        for weights_found, counted in found:
            torch.testing.assert_close(weights_found, expected, rtol=0, atol=1e-12)
            assert counted == counts, (unsized, cancels)
