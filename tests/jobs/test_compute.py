"How a job computes: what is chosen for a machine, the warnings, and the callbacks."
import pytest
import torch

from miniai.accel import ChannelsLastCB, CompileCB, MixedPrecision
from miniai.distributed import DistributedCB
from miniai.jobs.compute import build_computing, resolve
from miniai.jobs.config import ConfigError, LRFindConfig, TrainConfig
from miniai.jobs.train import train
from miniai.learner import DeviceCB, TrainCB
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
def test_bfloat16_is_used_silently_where_the_cpu_has_it(cpu, feature):
    cpu(**{feature: True})
    config = resolve(TrainConfig(precision='bfloat16'), 'cpu')
    assert (config.device, config.precision, config.layout) == ('cpu', 'bfloat16', 'channels-last')


def test_bfloat16_is_used_with_a_warning_where_the_cpu_has_no_instructions_for_it(cpu, monkeypatch):
    cpu()
    with pytest.warns(UserWarning, match='cpu has no bfloat16 instructions .*: float32 may be faster'):
        assert resolve(TrainConfig(precision='bfloat16'), 'cpu').precision == 'bfloat16'
    monkeypatch.delattr(torch.cpu, '_is_amx_tile_supported')  # a torch that cannot tell
    assert resolve(TrainConfig(precision='bfloat16'), 'cpu').precision == 'bfloat16'


def test_float16_becomes_bfloat16_on_a_cpu_with_a_warning(cpu):
    cpu(amx_tile=True)
    with pytest.warns(UserWarning, match='float16 is many times slower than float32 on a CPU: using bfloat16 instead'):
        assert resolve(TrainConfig(precision='float16'), 'cpu').precision == 'bfloat16'


def test_cuda_keeps_float16_and_warns_about_emulated_bfloat16(monkeypatch):
    cuda(monkeypatch, False)
    assert resolve(TrainConfig(precision='float16'), 'cuda').precision == 'float16'
    with pytest.warns(UserWarning, match='cuda:1 has no bfloat16 instructions'):
        resolve(TrainConfig(precision='bfloat16'), 'cuda:1')
    cuda(monkeypatch, True)
    resolve(TrainConfig(precision='bfloat16'), 'cuda')


@pytest.mark.parametrize(('device', 'precision', 'layout'), [
    ('cpu', 'float32', 'channels-last'), ('cpu:0', 'float32', 'channels-last'), ('cuda', 'float32', 'channels-first'),
    ('cuda', 'float16', 'channels-last'), ('mps', 'float32', 'channels-first'), ('mps', 'bfloat16', 'channels-first')])
def test_auto_is_the_layout_with_faster_convolutions(device, precision, layout):
    assert resolve(TrainConfig(precision=precision), device).layout == layout


@pytest.mark.parametrize('layout', ['channels-first', 'channels-last'])
def test_a_layout_that_was_asked_for_is_used_and_a_resolved_configuration_stays_as_it_is(layout):
    for device in ('cpu', 'cuda', 'mps'):
        config = resolve(LRFindConfig(layout=layout), device)
        assert config == LRFindConfig(layout=layout, device=device) == resolve(config, device)


@pytest.mark.parametrize(('options', 'wanted'), [
    (dict(), [DeviceCB, TrainCB]), (dict(layout='channels-last'), [DeviceCB, TrainCB, ChannelsLastCB]),
    (dict(compile=True), [DeviceCB, TrainCB, CompileCB]), (dict(distributed='fsdp'), [DistributedCB, TrainCB]),
    (dict(precision='bfloat16', layout='channels-last', compile=True),
     [DeviceCB, MixedPrecision, ChannelsLastCB, CompileCB])])
def test_callbacks_are_those_that_the_configuration_names(options, wanted):
    cbs = build_computing(TrainConfig(device='cpu', **options))
    assert [type(cb) for cb in cbs] == wanted
    if 'precision' in options: assert cbs[1].dtype is torch.bfloat16


def test_sharded_models_keep_the_usual_layout_of_weights():
    assert resolve(TrainConfig(distributed='fsdp'), 'cpu').layout == 'channels-first'
    with pytest.raises(ConfigError, match='--layout channels-last does not work with --distributed fsdp'):
        resolve(TrainConfig(distributed='fsdp', layout='channels-last'), 'cpu')


@pytest.mark.filterwarnings('ignore:.* has no bfloat16')
def test_a_job_in_bfloat16_trains_in_it_and_keeps_weights_in_float32(tmp_path):
    data, out = str(write_tiny(tmp_path, 64, 32)), str(tmp_path/'run')
    learn = train(TrainConfig(data=data, out=out, epochs=1, batch_size=32, device='cpu', precision='bfloat16'))
    assert learn.preds.dtype is torch.bfloat16
    assert {p.dtype for p in learn.model.parameters()} == {torch.float32}
    saved = TrainConfig.from_toml(tmp_path/'run'/'config.toml')
    assert (saved.precision, saved.layout, saved.compile) == ('bfloat16', 'channels-last', False)


def test_a_job_whose_model_cannot_be_compiled_says_why_and_runs_without(tmp_path, monkeypatch):
    def unsupported(*args, **kwargs): raise RuntimeError('not on this Python')
    monkeypatch.setattr(torch, 'compile', unsupported)
    data, out = str(write_tiny(tmp_path, 64, 32)), str(tmp_path/'run')
    with pytest.warns(UserWarning, match='RuntimeError: not on this Python'):
        learn = train(TrainConfig(data=data, out=out, epochs=1, batch_size=32, device='cpu', compile=True))
    assert len(learn.history) == 2
    assert (tmp_path/'run'/'model.safetensors').exists()
