"Mixed precision and Hugging Face Accelerate, as callbacks of the Learner."
import gc
import sys
import weakref
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import miniai.accel
from miniai.accel import AccelerateCB, MixedPrecision
from miniai.callbacks.train import DeviceCB, TrainCB
from miniai.data import DataLoaders
from miniai.learner import (
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    Learner,
    SingleBatchCB,
)
from miniai.resume.checkpoint import CheckpointCB
from small import batches, hooks_on, learner, loaders, mlp, raising, same, weights


class PlainSGD:
    "An optimizer with step and zero_grad and nothing else."
    def __init__(self, params, lr): self.params, self.lr = list(params), lr

    @torch.no_grad()
    def step(self):
        for p in self.params: p -= self.lr*p.grad

    def zero_grad(self):
        for p in self.params: p.grad = None


class Summed(nn.Linear):
    "A model of two inputs."
    def forward(self, a, b): return super().forward(a + b)


class At:
    "Calls `f` at `event`, after all others."
    order = 1000
    def __init__(self, event, f): setattr(self, event, f)


def autocasting(): return torch.is_autocast_enabled('cpu')


def dtypes_of(model):
    "The dtypes that the model's first layer computes in, as they come."
    seen = []
    next(model.children()).register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    return seen


# MixedPrecision

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


def test_mixed_precision_stands_after_the_device_and_takes_n_inp():
    assert MixedPrecision.order == AccelerateCB.order == DeviceCB.order + 10
    assert issubclass(MixedPrecision, TrainCB)
    assert issubclass(AccelerateCB, TrainCB)

    learn = learner(MixedPrecision(n_inp=2), Learner, model=Summed(4, 3))
    learn.dls = DataLoaders([(x, x, y) for x, y in batches()], [(x, x, y) for x, y in batches()])
    before = weights(learn)
    learn.fit(1)
    assert not same(before, weights(learn))


@pytest.mark.parametrize('dtype', [torch.float32, 'bf16'])
def test_a_dtype_that_is_no_half_precision_is_an_error(dtype):
    said = rf'dtype must be torch\.float16 or torch\.bfloat16, got {dtype}'
    with pytest.raises(ValueError, match=said): MixedPrecision(dtype=dtype)


def test_a_model_without_parameters_can_be_validated_in_mixed_precision():
    learn = Learner(nn.Identity(), loaders(), lambda out, y: out.mean(), cbs=MixedPrecision())
    learn.fit(1, train=False)
    assert torch.isfinite(learn.loss)


def test_any_object_with_step_and_zero_grad_will_do_without_gradient_scaling():
    learn, plain = learner(MixedPrecision(), Learner, opt_func=PlainSGD), learner(MixedPrecision(), Learner)
    learn.fit(1)
    plain.fit(1)
    torch.testing.assert_close(weights(learn), weights(plain))


def scaler(enabled, init_scale=65536.): return torch.amp.GradScaler('cpu', init_scale, enabled=enabled)


def begun(dtype):
    "A MixedPrecision whose fit has begun."
    cb = MixedPrecision(dtype=dtype)
    learner(cb, Learner).fit(1)
    return cb


def test_the_scale_of_mixed_precision_is_taken_back():
    cb, other = begun(torch.float16), begun(torch.float16)
    cb.scaler.update(4096.)
    other.load_state_dict(cb.state_dict())
    assert other.scaler.get_scale() == 4096.


SCALED = 'gradients were scaled, as float16 needs, in the checkpoint and are not scaled, as in bfloat16 or float32'
NOT = 'gradients were not scaled, as in bfloat16 or float32, in the checkpoint and are scaled, as float16 needs, here'


def test_mixed_precision_with_and_without_scaling_take_no_state_from_each_other():
    half, brain = begun(torch.float16), begun(torch.bfloat16)
    with pytest.raises(ValueError, match=SCALED): brain.load_state_dict(half.state_dict())
    with pytest.raises(ValueError, match=NOT): half.load_state_dict(brain.state_dict())
    brain.load_state_dict(begun(torch.bfloat16).state_dict())


# AccelerateCB

@pytest.fixture
def accelerate(monkeypatch):
    "Accelerate on the CPU, without the state that it keeps for a whole process."
    pytest.importorskip('accelerate')
    from accelerate.state import AcceleratorState
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def dl_learner(cbs, shuffle=False, **kwargs):
    x, y = (torch.cat(o) for o in zip(*batches(), strict=True))
    ds = TensorDataset(x, y)
    return learner(cbs, Learner, dls=DataLoaders(DataLoader(ds, 6, shuffle=shuffle), DataLoader(ds, 12)), **kwargs)


PRECISIONS = pytest.mark.parametrize('precision', ['no', 'bf16'])


@pytest.mark.usefixtures('accelerate')
@pytest.mark.parametrize('shuffle', [False, True])
def test_accelerate_in_full_precision_trains_as_the_plain_loop(shuffle):
    ours, plain = dl_learner(AccelerateCB(mixed_precision='no'), shuffle), dl_learner(TrainCB(), shuffle)
    for learn in (ours, plain):
        torch.manual_seed(5)
        learn.fit(2)
    assert same(weights(ours), weights(plain))


@pytest.mark.usefixtures('accelerate')
def test_accelerate_computes_in_bf16_in_every_fit():
    learn = dl_learner(AccelerateCB(mixed_precision='bf16'))
    seen = dtypes_of(learn.model)
    for _ in range(2):
        seen.clear()
        before = weights(learn)
        learn.fit(1)
        assert not same(before, weights(learn))
        assert set(seen) == {torch.bfloat16}
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}


@pytest.mark.usefixtures('accelerate')
@PRECISIONS
@pytest.mark.parametrize('exception', [None, CancelFitException, RuntimeError])
def test_after_a_fit_the_learner_has_its_own_model_and_loaders_again(precision, exception):
    at = [At('after_loss', raising(exception()))] if exception else []
    learn = dl_learner([AccelerateCB(mixed_precision=precision), *at])
    model, loader_pair, x = learn.model, (learn.dls.train, learn.dls.valid), torch.rand(2, 4)
    names, forward = set(vars(model)), model.forward
    if exception is RuntimeError:
        with pytest.raises(RuntimeError): learn.fit(1)
    else: learn.fit(1)
    assert learn.model is model
    assert (learn.dls.train, learn.dls.valid) == loader_pair
    assert model.forward == forward
    assert hooks_on(model) == 0
    assert torch.equal(model(x), nn.Sequential(*model)(x))
    assert set(vars(model)) == names


@pytest.mark.usefixtures('accelerate')
@PRECISIONS
def test_accelerate_validates_alone_and_without_an_optimizer(precision):
    learn = dl_learner(AccelerateCB(mixed_precision=precision), opt_func=None)
    before = weights(learn)
    learn.fit(1, train=False)
    assert torch.isfinite(learn.loss)
    assert same(before, weights(learn))


@pytest.mark.usefixtures('accelerate')
def test_the_scale_of_accelerate_is_taken_back_where_both_scale_alone():
    cb, other = AccelerateCB(mixed_precision='no'), AccelerateCB(mixed_precision='no')
    other.load_state_dict(cb.state_dict())
    cb.acc.scaler, none = scaler(True, 4096.), cb.state_dict()
    with pytest.raises(ValueError, match=SCALED): other.load_state_dict(cb.state_dict())
    with pytest.raises(ValueError, match=NOT): cb.load_state_dict(none)
    other.acc.scaler = scaler(False)
    with pytest.raises(ValueError, match=SCALED): other.load_state_dict(cb.state_dict())
    other.acc.scaler = scaler(True)
    other.load_state_dict(cb.state_dict())
    assert other.acc.scaler.get_scale() == 4096.


@pytest.mark.usefixtures('accelerate')
@PRECISIONS
def test_a_run_with_accelerate_goes_on_to_the_bit(precision, tmp_path):
    def fit(folder, stop=None, resume=False):
        learn = dl_learner([AccelerateCB(mixed_precision=precision), CheckpointCB(tmp_path/folder, batches=1),
                            *([At('after_step', stop)] if stop else [])], shuffle=True)
        with suppress(KeyError): learn.fit(2, resume=resume)
        return weights(learn)
    def stop(learn):
        if (learn.epoch, learn.iter) == (1, 2): raise KeyError('stopped by a test')
    want = fit('whole')
    assert not same(fit('run', stop), want)
    torch.manual_seed(99)
    assert same(fit('run', resume=True), want)


@pytest.mark.usefixtures('accelerate')
def test_accelerate_keeps_an_optimizer_that_is_there():
    learn = dl_learner(AccelerateCB(mixed_precision='no'), opt_func=None)
    learn.opt = torch.optim.SGD(learn.model.parameters(), lr=.1)
    plain = dl_learner(TrainCB())
    for _ in range(2): learn.fit(1), plain.fit(1)
    assert same(weights(learn), weights(plain))


@pytest.mark.usefixtures('accelerate')
def test_accelerate_takes_loaders_and_optimizers_of_any_kind():
    learn = learner(AccelerateCB(mixed_precision='no'), Learner, opt_func=PlainSGD)
    plain = learner(TrainCB(), Learner)
    for o in (learn, plain): o.fit(1)
    torch.testing.assert_close(weights(learn), weights(plain))


@pytest.mark.usefixtures('accelerate')
def test_accelerate_takes_n_inp():
    learn = learner(AccelerateCB(2, 'no'), Learner, model=Summed(4, 3))
    learn.dls = DataLoaders([(x, x, y) for x, y in batches()], [(x, x, y) for x, y in batches()])
    before = weights(learn)
    learn.fit(1)
    assert not same(before, weights(learn))


@pytest.mark.usefixtures('accelerate')
def test_a_past_fit_s_optimizer_is_not_kept_alive():
    learn = dl_learner(AccelerateCB(mixed_precision='no'), opt_func=torch.optim.Adam)
    learn.fit(1)
    first = weakref.ref(learn.opt)
    assert type(learn.opt) is torch.optim.Adam
    learn.fit(1)
    gc.collect()
    assert first() is None


@pytest.mark.usefixtures('accelerate')
def test_a_fit_that_stopped_midway_leaves_the_next_one_whole():
    learn, stop = dl_learner(AccelerateCB(mixed_precision='no')), SingleBatchCB()
    learn.fit(1, cbs=stop)
    plain = dl_learner(TrainCB(), model=mlp())
    plain.model.load_state_dict(learn.model.state_dict())
    for o in (learn, plain): o.fit(1)
    assert same(weights(learn), weights(plain))


@pytest.mark.usefixtures('accelerate')
def test_fp16_without_an_accelerator_becomes_bf16_with_a_warning(monkeypatch):
    monkeypatch.setattr(miniai.callbacks.accelerate, 'def_device', 'cpu')
    said = 'fp16 needs an accelerator, so bf16 is used on the CPU'
    with pytest.warns(UserWarning, match=said) as seen: cb = AccelerateCB()
    assert seen[0].filename == __file__
    assert cb.acc.mixed_precision == 'bf16'
    learn = dl_learner(cb)
    dtypes = dtypes_of(learn.model)
    learn.fit(1)
    assert set(dtypes) == {torch.bfloat16}


def test_without_the_package_accelerate_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'accelerate', None)
    said = r"needs the package accelerate: pip install 'miniai-torch\[hf\]'"
    with pytest.raises(ImportError, match=said): AccelerateCB()
