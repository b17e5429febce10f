"MixedPrecision, against a plain loop with autocast and GradScaler."
import pickle
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from half_precision import IS_SCALED, WAS_SCALED, At, PlainSGD, dtypes_of
from miniai.callbacks.accumulate import AccumulateCB
from miniai.callbacks.precision import MixedPrecision
from miniai.callbacks.train import DeviceCB, TrainCB
from miniai.data import DataLoaders
from miniai.learner import CancelBatchException, CancelEpochException, CancelFitException, Learner, SingleBatchCB
from miniai.optim import AdamW
from small import TwoInputs, Unsized, batches, learner, loaders, raising, same, two_inputs, weights


def autocasting(): return torch.is_autocast_enabled('cpu')


@pytest.mark.parametrize(('dtype', 'used'), [
    (None, torch.bfloat16), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float16)])
def test_mixed_precision_is_autocast_and_gradient_scaling_around_the_plain_loop(dtype, used):
    cb = MixedPrecision(dtype=dtype)
    learn, plain = learner(cb, Learner), learner().model
    learn.fit(2)
    opt, scaler = torch.optim.SGD(plain.parameters(), .1), torch.amp.GradScaler('cpu', enabled=used is torch.float16)
    for _ in range(2):
        for xb, yb in learn.dls.train:
            with torch.autocast('cpu', dtype=used): loss = F.cross_entropy(plain(xb), yb)
            scaler.scale(loss).backward()
            scaler.step(opt)
            scaler.update()
            opt.zero_grad()
    assert same(weights(learn), plain.state_dict())
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    assert cb.scaler.is_enabled() == (used is torch.float16)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_predictions_are_in_half_precision_in_training_and_validation(dtype):
    learn = learner(MixedPrecision(dtype=dtype), Learner)
    seen = dtypes_of(learn.model)
    learn.fit(1)
    assert seen == [dtype]*6
    assert learn.preds.dtype == dtype


def test_autocast_covers_predictions_and_loss_and_no_more():
    seen = {}
    events = ('before_batch', 'after_predict', 'after_loss', 'after_backward', 'after_step', 'after_batch', 'after_fit')
    watchers = [At(e, lambda learn, e=e: seen.setdefault(e, autocasting())) for e in events]
    learner([MixedPrecision(), *watchers], Learner).fit(1)
    assert [e for e in events if seen[e]] == ['before_batch', 'after_predict']


@pytest.mark.parametrize('event', ['before_batch', 'after_predict', 'after_loss', 'after_batch'])
@pytest.mark.parametrize('exception', [CancelBatchException, CancelEpochException, CancelFitException, RuntimeError])
@pytest.mark.parametrize('order', [-5, 1000])
def test_autocast_is_left_after_cancels_and_errors(event, exception, order):
    at = At(event, raising(exception()))
    at.order = order
    learn = learner([MixedPrecision(), at], Learner)
    if exception is RuntimeError:
        with pytest.raises(RuntimeError): learn.fit(1)
    else: learn.fit(1)
    assert not autocasting()
    learn.cbs.remove(at)
    before = weights(learn)
    learn.fit(1)
    assert not autocasting()
    assert not same(before, weights(learn))


def test_autocast_is_left_after_an_error_of_the_model():
    learn = learner(MixedPrecision(), Learner)
    learn.model.register_forward_hook(raising(RuntimeError('the model fails')))
    with pytest.raises(RuntimeError, match='the model fails'): learn.fit(1)
    assert not autocasting()


def test_a_step_whose_scaled_gradients_overflow_is_skipped_and_the_scale_halved():
    cb = MixedPrecision(dtype=torch.float16)
    learn = learner([cb, SingleBatchCB()], Learner, loss_func=lambda out, y: F.cross_entropy(out.float(), y)*1e35)
    before = weights(learn)
    learn.fit(1)
    assert same(before, weights(learn))
    assert cb.scaler.get_scale() == 65536/2


def test_mixed_precision_comes_after_the_device_and_takes_n_inp():
    assert MixedPrecision.order == DeviceCB.order + 10
    assert issubclass(MixedPrecision, TrainCB)
    learn = learner(MixedPrecision(n_inp=2), Learner, model=TwoInputs(), dls=two_inputs())
    before = weights(learn)
    learn.fit(1)
    assert not same(before, weights(learn))


@pytest.mark.parametrize('dtype', [torch.float32, 'bf16'])
def test_a_dtype_without_half_precision_is_an_error(dtype):
    said = rf'dtype must be torch\.float16 or torch\.bfloat16, got {dtype}'
    with pytest.raises(ValueError, match=said): MixedPrecision(dtype=dtype)


def test_a_model_without_parameters_can_be_validated_in_mixed_precision():
    learn = Learner(nn.Identity(), loaders(), lambda out, y: out.mean(), cbs=MixedPrecision())
    learn.fit(1, train=False)
    assert torch.isfinite(learn.loss)


def test_without_gradient_scaling_any_optimizer_with_step_and_zero_grad_works():
    learn, plain = learner(MixedPrecision(), Learner, opt_func=PlainSGD), learner(MixedPrecision(), Learner)
    learn.fit(1)
    plain.fit(1)
    torch.testing.assert_close(weights(learn), weights(plain))


def begun(dtype):
    "A MixedPrecision whose fit has begun."
    cb = MixedPrecision(dtype=dtype)
    learner(cb, Learner).fit(1)
    return cb


def test_the_scale_is_restored():
    cb, other = begun(torch.float16), begun(torch.float16)
    cb.scaler.update(4096.)
    other.load_state_dict(cb.state_dict())
    assert other.scaler.get_scale() == 4096.


def test_a_state_with_scaling_is_not_loaded_without_it_and_vice_versa():
    half, brain = begun(torch.float16), begun(torch.bfloat16)
    with pytest.raises(ValueError, match=WAS_SCALED): brain.load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match=IS_SCALED): half.load_state_dict(brain.state_dict())
    brain.load_state_dict(begun(torch.bfloat16).state_dict())


# Gradients are not scaled when callbacks see them

class Clips:
    "Clips gradients to a norm of 0.1. A user who knows GradScalers unscales first."
    def __init__(self, order, cb=None): self.order, self.cb, self.norms = order, cb, []
    def after_backward(self, learn):
        if self.cb: self.cb.scaler.unscale_(learn.opt)
        self.norms.append(nn.utils.clip_grad_norm_(learn.model.parameters(), .1).item())


def clipped_by_hand(groups, cut=()):
    "A plain loop in half precision that clips unscaled gradients; each group of batches is one step."
    model = learner().model
    opt, scaler, norms = torch.optim.AdamW(model.parameters(), .1), torch.amp.GradScaler('cpu'), []
    for i, (xb, yb) in enumerate(groups):
        with torch.autocast('cpu', dtype=torch.float16): loss = F.cross_entropy(model(xb), yb)
        if i in cut: continue
        scaler.scale(loss).backward()
        scaler.unscale_(opt)
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), .1).item())
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
    return model.state_dict(), norms


def half_fit(*cbs, bs=None, opt_func=torch.optim.AdamW):
    learn = learner([*cbs], Learner, dls=DataLoaders(bs or batches(4), []), opt_func=opt_func)
    learn.fit(1, valid=False)
    return learn


@pytest.mark.parametrize('order', [-1, 0, 11])
@pytest.mark.parametrize('own', [False, True])
@pytest.mark.parametrize('opt_func', [torch.optim.AdamW, partial(AdamW, wd=.01)])
def test_clipping_in_after_backward_is_that_of_unscaled_gradients(order, own, opt_func):
    cb = MixedPrecision(dtype=torch.float16)
    clips = Clips(order, cb if own else None)
    learn = half_fit(cb, clips, opt_func=opt_func)
    plain, norms = clipped_by_hand(batches(4))
    assert max(norms) < 10
    torch.testing.assert_close(weights(learn), plain, rtol=1e-3, atol=1e-4)
    assert clips.norms == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize('n', [2, 3])
def test_accumulated_gradients_are_unscaled_once_also_those_of_the_last_smaller_group(n):
    groups = [tuple(map(torch.cat, zip(*batches(5)[i:i + n], strict=True))) for i in range(0, 5, n)]
    plain, norms = clipped_by_hand(groups)
    for bs in (batches(5), Unsized(batches(5))):
        clips = Clips(0)
        learn = half_fit(MixedPrecision(dtype=torch.float16), AccumulateCB(n), clips, bs=bs)
        assert clips.norms == pytest.approx(norms, rel=1e-2)
        torch.testing.assert_close(weights(learn), plain, rtol=1e-2, atol=5e-3)


@pytest.mark.parametrize('exception', [CancelBatchException, CancelEpochException])
def test_a_batch_cut_between_unscaling_and_step_does_not_disturb_the_next(exception):
    def cut(learn):
        if learn.iter == 1 and learn.epoch == 0: raise exception()
    cb, clips = MixedPrecision(dtype=torch.float16), Clips(0)
    learn = learner([cb, clips, At('after_backward', cut)], Learner, opt_func=torch.optim.AdamW)
    learn.fit(2, valid=False)
    first = batches(4) if exception is CancelBatchException else batches(4)[:1]
    done = [b for i, b in enumerate(first) if i != 1]
    plain, _ = clipped_by_hand(done + batches(4))
    torch.testing.assert_close(weights(learn), plain, rtol=1e-3, atol=1e-3)
    pickle.dumps(cb.scaler)


def test_gradients_that_overflow_are_cut_by_a_callback_and_the_scale_falls():
    cb = MixedPrecision(dtype=torch.float16)
    class Skips:
        def after_backward(self, learn):
            if not next(learn.model.parameters()).grad.isfinite().all(): raise CancelBatchException()
    learn = learner([cb, Skips()], Learner, loss_func=lambda out, y: F.cross_entropy(out.float(), y)*1e35)
    learn.fit(1, valid=False)
    assert cb.scaler.get_scale() == 65536/2**4
