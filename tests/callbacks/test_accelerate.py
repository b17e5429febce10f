"AccelerateCB, against the plain loop."
import gc
import sys
import weakref
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import miniai.callbacks.accelerate as accelerate_cb
from half_precision import IS_SCALED, WAS_SCALED, At, PlainSGD, dtypes_of
from miniai.callbacks.accelerate import AccelerateCB
from miniai.callbacks.train import DeviceCB, TrainCB
from miniai.data import DataLoaders
from miniai.distributed.wrap import unwrapped
from miniai.learner import Callback, CancelFitException, Learner, MetricsCB, SingleBatchCB
from miniai.metrics.accuracy import accuracy
from miniai.resume.checkpoint import CheckpointCB
from ranks import run_ranks
from small import TwoInputs, batches, hooks_on, learner, mlp, raising, same, two_inputs, weights


def scaler(enabled, init_scale=65536.): return torch.amp.GradScaler('cpu', init_scale, enabled=enabled)


@pytest.fixture
def accelerate(monkeypatch):
    "Accelerate on the CPU, without the state that it keeps for the process."
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
def test_after_a_fit_the_learner_has_its_own_model_and_loaders(precision, exception):
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
def test_accelerate_validates_without_training_or_an_optimizer(precision):
    learn = dl_learner(AccelerateCB(mixed_precision=precision), opt_func=None)
    before = weights(learn)
    learn.fit(1, train=False)
    assert torch.isfinite(learn.loss)
    assert same(before, weights(learn))


@pytest.mark.usefixtures('accelerate')
def test_the_scale_is_restored_only_if_both_scale():
    cb, other = AccelerateCB(mixed_precision='no'), AccelerateCB(mixed_precision='no')
    other.load_state_dict(cb.state_dict())
    cb.acc.scaler, none = scaler(True, 4096.), cb.state_dict()
    with pytest.raises(ValueError, match=WAS_SCALED): other.load_state_dict(cb.state_dict())
    with pytest.raises(ValueError, match=IS_SCALED): cb.load_state_dict(none)
    other.acc.scaler = scaler(False)
    with pytest.raises(ValueError, match=WAS_SCALED): other.load_state_dict(cb.state_dict())
    other.acc.scaler = scaler(True)
    other.load_state_dict(cb.state_dict())
    assert other.acc.scaler.get_scale() == 4096.


@pytest.mark.usefixtures('accelerate')
@PRECISIONS
def test_a_run_with_accelerate_resumes_exactly(precision, tmp_path):
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
def test_accelerate_comes_after_the_device_and_takes_n_inp():
    assert AccelerateCB.order == DeviceCB.order + 10
    assert issubclass(AccelerateCB, TrainCB)
    learn = learner(AccelerateCB(2, 'no'), Learner, model=TwoInputs(), dls=two_inputs())
    before = weights(learn)
    learn.fit(1)
    assert not same(before, weights(learn))


@pytest.mark.usefixtures('accelerate')
def test_the_optimizer_of_a_past_fit_is_not_kept_alive():
    learn = dl_learner(AccelerateCB(mixed_precision='no'), opt_func=torch.optim.Adam)
    learn.fit(1)
    first = weakref.ref(learn.opt)
    assert type(learn.opt) is torch.optim.Adam
    learn.fit(1)
    gc.collect()
    assert first() is None


@pytest.mark.usefixtures('accelerate')
def test_a_fit_that_stops_early_leaves_the_next_one_intact():
    learn, stop = dl_learner(AccelerateCB(mixed_precision='no')), SingleBatchCB()
    learn.fit(1, cbs=stop)
    plain = dl_learner(TrainCB(), model=mlp())
    plain.model.load_state_dict(learn.model.state_dict())
    for o in (learn, plain): o.fit(1)
    assert same(weights(learn), weights(plain))


@pytest.mark.usefixtures('accelerate')
def test_fp16_without_an_accelerator_becomes_bf16_with_a_warning(monkeypatch):
    monkeypatch.setattr(accelerate_cb, 'def_device', 'cpu')
    said = 'fp16 needs an accelerator; using bf16 on the CPU'
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


@pytest.fixture
def scaling(accelerate, monkeypatch):
    "Accelerate scales gradients, as with fp16 on an accelerator."
    import accelerate as hf
    class Scales(hf.Accelerator):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.scaler = scaler(True)
    monkeypatch.setattr(hf, 'Accelerator', Scales)


@pytest.mark.usefixtures('scaling')
@pytest.mark.parametrize('own', [False, True])
def test_with_a_gradscaler_callbacks_clip_gradients_that_are_not_scaled(own):
    cb = AccelerateCB(mixed_precision='no')
    def clip(learn):
        if own: cb.scaler.unscale_(learn.opt.optimizer)  # as acc.clip_grad_norm_ does
        nn.utils.clip_grad_norm_(learn.model.parameters(), .1)
    learn, plain = dl_learner([cb, At('after_backward', clip)], opt_func=torch.optim.AdamW), mlp()
    plain.load_state_dict(learn.model.state_dict())
    learn.fit(1, valid=False)
    opt = torch.optim.AdamW(plain.parameters(), .1)
    for xb, yb in learn.dls.train:
        nn.functional.cross_entropy(plain(xb), yb).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), .1)
        opt.step()
        opt.zero_grad()
    assert cb.scaler.is_enabled()
    torch.testing.assert_close(weights(learn), plain.state_dict(), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures('scaling')
def test_an_optimizer_that_no_scaler_can_step_is_refused():
    with pytest.raises(TypeError, match=r'AccelerateCB scales gradients in float16, .* got a PlainSGD'):
        learner(AccelerateCB(mixed_precision='no'), Learner, opt_func=PlainSGD).fit(1)


class Scaled(nn.Module):
    "A loss with a parameter."
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))
    def forward(self, preds, y): return F.cross_entropy(preds*self.scale, y)


class Freeze(Callback):
    "Freezes the first layer, and thaws it in the second epoch."
    def before_fit(self, learn): learn.model[0].requires_grad_(False)
    def before_epoch(self, learn): unwrapped(learn.model)[0].requires_grad_(learn.epoch > 0)


def two_fits():
    "Weights, history and predictions of two fits of the same Learner on a shuffled DataLoader."
    torch.manual_seed(1)
    x, y = torch.randn(43, 4, dtype=torch.float64), torch.randint(0, 3, (43,))
    train, valid = TensorDataset(x[:29], y[:29]), TensorDataset(x[29:], y[29:])
    dls = DataLoaders(DataLoader(train, 6, shuffle=True), DataLoader(valid, 5))
    model, cbs = mlp().double(), [AccelerateCB(mixed_precision='no'), MetricsCB(accuracy), Freeze()]
    learn = Learner(model, dls, Scaled(), .1, cbs)
    history = []
    for n in (2, 1):
        learn.fit(n)
        history += [{k: v for k, v in row.items() if k != 'seconds'} for row in learn.history]
        assert learn.model is model
        assert learn.dls is dls
    drawn = torch.rand(1).item()
    return weights(learn), learn.loss_func.scale.item(), history, learn.capture_preds()[0], drawn


@pytest.mark.usefixtures('accelerate')
@pytest.mark.parametrize('n', [2, 4])
def test_on_several_processes_all_is_as_in_one(n):
    expected, scale, history, preds, _ = two_fits()
    assert scale != 1
    results = run_ranks(two_fits, n)
    for w, s, h, p, _ in results:
        torch.testing.assert_close(w, expected, rtol=0, atol=1e-12)
        assert s == pytest.approx(scale, abs=1e-12)
        for row, one in zip(h, history, strict=True):
            assert row == {k: v if isinstance(v, str) else pytest.approx(v, abs=1e-12) for k, v in one.items()}
        torch.testing.assert_close(p, preds, rtol=0, atol=1e-12)
    assert len({drawn for *_, drawn in results}) == n  # each draws its own dropout
