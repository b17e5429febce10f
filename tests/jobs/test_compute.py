"How a job computes: what is settled for a machine, what is said about it, and what callbacks that makes."
import pytest
import torch

from miniai.accel import ChannelsLastCB, CompileCB, MixedPrecision
from miniai.jobs.compute import build_computing, resolve
from miniai.jobs.config import LRFindConfig, TrainConfig
from miniai.jobs.train import train
from miniai.learner import TrainCB
from tiny import write_tiny


@pytest.fixture
def cpu(monkeypatch):
    "Say what instructions the CPU has: `cpu(avx512_bf16=True, amx_tile=False)`."
    def has(**features):
        for nm in ('avx512_bf16', 'amx_tile'):
            has = features.get(nm, False)
            monkeypatch.setattr(torch.cpu, f'_is_{nm}_supported', lambda has=has: has, raising=False)
    return has


def cuda(monkeypatch, has):
    def supported(including_emulation=True): return has or including_emulation
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', supported)


@pytest.mark.parametrize('feature', ['avx512_bf16', 'amx_tile'])
def test_bfloat16_is_used_without_a_word_where_the_cpu_has_it(cpu, feature):
    cpu(**{feature: True})
    config = resolve(TrainConfig(precision='bfloat16'), 'cpu')
    assert (config.device, config.precision, config.layout) == ('cpu', 'bfloat16', 'channels-last')


def test_bfloat16_is_used_with_a_warning_where_the_cpu_has_no_instructions_for_it(cpu):
    cpu()
    with pytest.warns(UserWarning, match='this cpu has no instructions for it'):
        assert resolve(TrainConfig(precision='bfloat16'), 'cpu').precision == 'bfloat16'


def test_a_torch_that_does_not_tell_is_believed(cpu, monkeypatch):
    cpu()
    monkeypatch.delattr(torch.cpu, '_is_amx_tile_supported')
    assert resolve(TrainConfig(precision='bfloat16'), 'cpu').precision == 'bfloat16'


def test_float16_becomes_bfloat16_on_a_cpu_with_the_reason(cpu):
    cpu(amx_tile=True)
    with pytest.warns(UserWarning, match='float16 is many times slower than float32 on a CPU, so bfloat16 is used'):
        assert resolve(TrainConfig(precision='float16'), 'cpu').precision == 'bfloat16'


def test_cuda_keeps_float16_and_warns_of_bfloat16_that_is_emulated(monkeypatch):
    cuda(monkeypatch, False)
    assert resolve(TrainConfig(precision='float16'), 'cuda').precision == 'float16'
    with pytest.warns(UserWarning, match='this cuda:1 has no instructions for it'):
        resolve(TrainConfig(precision='bfloat16'), 'cuda:1')
    cuda(monkeypatch, True)
    resolve(TrainConfig(precision='bfloat16'), 'cuda')


@pytest.mark.parametrize(('device', 'precision', 'layout'), [
    ('cpu', 'float32', 'channels-last'), ('cpu:0', 'float32', 'channels-last'), ('cuda', 'float32', 'channels-first'),
    ('cuda', 'float16', 'channels-last'), ('mps', 'float32', 'channels-first'), ('mps', 'bfloat16', 'channels-first')])
def test_auto_is_the_layout_that_convolutions_are_quicker_with(device, precision, layout):
    assert resolve(TrainConfig(precision=precision), device).layout == layout


@pytest.mark.parametrize('layout', ['channels-first', 'channels-last'])
@pytest.mark.parametrize('device', ['cpu', 'cuda', 'mps'])
def test_a_layout_asked_for_is_used(device, layout):
    assert resolve(LRFindConfig(layout=layout), device) == LRFindConfig(layout=layout, device=device)


def test_what_is_settled_stays_so_when_settled_again():
    config = resolve(TrainConfig(), 'cpu')
    assert resolve(config, 'cpu') == config


@pytest.mark.parametrize(('options', 'wanted'), [
    (dict(), [TrainCB]), (dict(layout='channels-last'), [TrainCB, ChannelsLastCB]),
    (dict(compile=True), [TrainCB, CompileCB]),
    (dict(precision='bfloat16', layout='channels-last', compile=True), [MixedPrecision, ChannelsLastCB, CompileCB])])
def test_callbacks_are_those_that_the_configuration_names(options, wanted):
    cbs = build_computing(TrainConfig(**options))
    assert [type(cb) for cb in cbs] == wanted
    if 'precision' in options: assert cbs[0].dtype is torch.bfloat16


@pytest.mark.filterwarnings('ignore:precision bfloat16')
def test_a_job_in_bfloat16_trains_in_it_and_keeps_weights_in_float32(tmp_path):
    data, out = str(write_tiny(tmp_path, 64, 32)), str(tmp_path/'run')
    learn = train(TrainConfig(data=data, out=out, epochs=1, batch_size=32, device='cpu', precision='bfloat16'))
    assert learn.preds.dtype is torch.bfloat16
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    left = TrainConfig.from_toml(tmp_path/'run'/'config.toml')
    assert (left.precision, left.layout, left.compile) == ('bfloat16', 'channels-last', False)


def test_a_job_whose_model_cannot_be_compiled_says_why_and_is_done_all_the_same(tmp_path, monkeypatch):
    def unsupported(*args, **kwargs): raise RuntimeError('not on this Python')
    monkeypatch.setattr(torch, 'compile', unsupported)
    data, out = str(write_tiny(tmp_path, 64, 32)), str(tmp_path/'run')
    with pytest.warns(UserWarning, match='trains without compilation: RuntimeError: not on this Python'):
        learn = train(TrainConfig(data=data, out=out, epochs=1, batch_size=32, device='cpu', compile=True))
    assert len(learn.history) == 2
    assert (tmp_path/'run'/'model.safetensors').exists()
