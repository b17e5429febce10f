"Models that start well, and memory given back."
import builtins
import math
import sys
import types
import weakref
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import miniai.callbacks.batch
import miniai.init
import miniai.models.layers
import miniai.show.plots
from miniai.device import def_device
from miniai.init import (
    BatchTransformCB,
    GeneralRelu,
    clean_ipython_hist,
    clean_mem,
    clean_tb,
    conv,
    get_model,
    init_weights,
    lsuv_init,
)
from small import hooks_on, learner

act_gr = partial(GeneralRelu, leak=.1, sub=.4)


def test_the_names_are_the_library_s_own():
    assert miniai.init.GeneralRelu is miniai.models.layers.GeneralRelu
    assert miniai.init.plot_func is miniai.show.plots.plot_func
    assert miniai.init.conv is miniai.models.layers.conv_block
    assert miniai.init.BatchTransformCB is miniai.callbacks.batch.BatchTransformCB


# Models

@pytest.mark.parametrize('norm', [None, nn.BatchNorm2d])
def test_seeded_weights_of_get_model_are_those_of_plain_convolutions_in_order(norm):
    torch.manual_seed(42)
    convs = [m for m in get_model(act_gr, norm=norm).modules() if isinstance(m, nn.Conv2d)]
    torch.manual_seed(42)
    widths = [1, 8, 16, 32, 64, 10]
    plain = [nn.Conv2d(ni, nf, 3, stride=2, padding=1) for ni, nf in pairwise(widths)]
    assert all(torch.equal(a.weight.cpu(), b.weight) for a, b in zip(convs, plain, strict=True))
    assert [c.bias is None for c in convs] == [norm is not None]*4 + [False]
    for a, b in zip(convs, plain, strict=True): assert a.bias is None or torch.equal(a.bias.cpu(), b.bias)


@pytest.mark.parametrize('norm', [None, nn.BatchNorm2d])
def test_get_model_computes_convolution_norm_and_activation_then_10_flat_logits(norm):
    model, x = get_model(nfs=[1, 4, 6, 8, 8], norm=norm), torch.randn(5, 1, 28, 28, device=def_device)
    expected = x
    for m in model.modules():
        if isinstance(m, nn.Conv2d): expected = F.conv2d(expected, m.weight, m.bias, stride=2, padding=1)
        if isinstance(m, nn.BatchNorm2d): expected = F.batch_norm(expected, None, None, m.weight, m.bias, True)
        if isinstance(m, nn.ReLU): expected = expected.relu()
    out = model(x)
    assert out.shape == (5, 10)
    torch.testing.assert_close(out, expected.flatten(1))
    assert sum(isinstance(m, nn.ReLU) for m in model.modules()) == 4
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == (4 if norm else 0)


def test_get_model_is_on_the_default_device_with_the_activation_asked_for():
    model = get_model(act_gr)
    assert {p.device.type for p in model.parameters()} == {def_device}
    acts = [m for m in model.modules() if isinstance(m, GeneralRelu)]
    assert [(a.leak, a.sub) for a in acts] == [(.1, .4)]*4
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


def test_conv_is_always_a_sequential_of_convolution_norm_and_activation():
    assert [type(m) for m in conv(1, 2, act=None)] == [nn.Conv2d]
    assert [type(m) for m in conv(1, 2, norm=nn.BatchNorm2d)] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


@pytest.mark.parametrize('kind', [nn.Conv1d, nn.Conv2d, nn.Conv3d])
@pytest.mark.parametrize('leaky', [0., .1])
def test_init_weights_is_kaiming_normal_on_convolutions(kind, leaky):
    m = kind(16, 64, 3)
    bias = m.bias.clone()
    torch.manual_seed(1)
    init_weights(m, leaky)
    fan_in = 16*3**(m.weight.ndim - 2)
    deviation = math.sqrt(2/(1 + leaky**2)/fan_in)
    torch.manual_seed(1)
    torch.testing.assert_close(m.weight.detach(), torch.empty_like(m.weight).normal_(0, deviation))
    assert torch.equal(m.bias, bias)


def test_init_weights_leaves_all_other_layers_and_can_be_applied():
    model = nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1))
    before = [p.clone() for p in model.parameters()]
    model.apply(partial(init_weights, leaky=.1))
    kept = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert kept == [True, True, False, True, True, True]


# Layer-sequential unit variance

def pairs(model, act): return [(m[1], m[0]) for m in model if isinstance(m, nn.Sequential) and isinstance(m[-1], act)]


def outputs(m, model, x):
    seen = []
    hook = m.register_forward_hook(lambda mod, i, o: seen.append(o))
    model(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize('act', [act_gr, nn.Tanh], ids=['act_gr', 'tanh'])
def test_lsuv_init_gives_every_layer_mean_0_and_deviation_1(act):
    model, x = get_model(act), torch.randn(32, 1, 28, 28, device=def_device)*3 + 1
    todo = pairs(model, type(act()))
    assert len(todo) == 4
    if act is nn.Tanh: todo = [(conv, conv) for _, conv in todo]  # no tanh has a deviation of 1
    for m, m_in in todo: lsuv_init(model, m, m_in, x)
    for m, m_in in todo:
        out = outputs(m, model, x)
        assert abs(out.mean().item()) < 2e-3
        assert abs(out.std().item() - 1) < 2e-3
        assert m_in.weight.requires_grad
        assert m_in.weight.grad is None
    assert hooks_on(model) == 0


def test_lsuv_init_works_on_linear_layers_and_shifts_only_the_bias_for_the_mean():
    model, x = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)), torch.randn(40, 5)*.01 + 2
    direction = F.normalize(model[0].weight.detach().flatten(), dim=0)
    lsuv_init(model, model[0], model[0], x)
    assert (model[0](x).mean().item(), model[0](x).std().item()) == pytest.approx((0, 1), abs=2e-3)
    torch.testing.assert_close(F.normalize(model[0].weight.detach().flatten(), dim=0), direction)


def test_lsuv_init_without_a_bias_sets_the_deviation_alone():
    layer, x = nn.Linear(5, 7, bias=False), torch.randn(40, 5) + 2
    lsuv_init(layer, layer, layer, x)
    assert layer(x).std().item() == pytest.approx(1, abs=2e-3)


def test_lsuv_init_stops_within_the_tolerance_asked_for():
    layer, x = nn.Linear(5, 7), torch.randn(40, 5)
    lsuv_init(layer, layer, layer, x, tol=1e-5)
    assert (layer(x).mean().item(), layer(x).std().item()) == pytest.approx((0, 1), abs=2e-5)
    before = layer.weight.clone()
    lsuv_init(layer, layer, layer, x, tol=1e-4)
    assert torch.equal(layer.weight, before)


def test_lsuv_init_says_that_the_model_never_calls_the_layer():
    model, other = nn.Linear(2, 2), nn.Linear(2, 2)
    said = "the model's forward never calls m"
    with pytest.raises(ValueError, match=said): lsuv_init(model, other, model, torch.rand(4, 2))
    assert hooks_on(other) == 0


def test_lsuv_init_says_that_the_output_is_constant():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[0].bias, -1.)
    said = r'the output of m is constant \(std 0\.0\) on this batch'
    with pytest.raises(RuntimeError, match=said): lsuv_init(model, model[1], model[0], torch.rand(4, 2))
    assert hooks_on(model) == 0


def test_lsuv_init_does_not_call_an_output_constant_that_is_nan():
    layer, x = nn.Linear(2, 2), torch.full((4, 2), float('nan'))
    with pytest.raises(RuntimeError, match=r'(?i)nan|finite') as e: lsuv_init(layer, layer, layer, x)
    assert 'constant' not in str(e.value)


def test_lsuv_init_says_how_far_it_came_where_a_norm_undoes_it():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    nn.init.constant_(model[1].weight, 2.)
    said = r'after 7 rounds the output of m has mean .* and std [12].*norm undo it'
    with pytest.raises(RuntimeError, match=said):
        lsuv_init(model, model[1], model[0], torch.randn(50, 2), max_iter=7)
    assert hooks_on(model) == 0


def test_lsuv_init_says_that_the_mean_cannot_be_0_where_relu_is_never_negative():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU())
    with pytest.raises(RuntimeError, match=r'mean|negative'):
        lsuv_init(model, model[1], model[0], torch.randn(40, 5))


# Batches transformed

@pytest.mark.parametrize(('on_train', 'on_val', 'expected'), [
    (True, True, 'tttvv'), (True, False, 'ttt'), (False, True, 'vv'), (False, False, '')])
def test_a_batch_transform_replaces_the_batch_in_training_and_validation_as_told(on_train, on_val, expected):
    seen = []

    def doubled(batch):
        seen.append('t' if learn.training else 'v')
        return batch[0]*2, batch[1]

    dl = [(torch.ones(2, 4), torch.zeros(2).long())]
    learn = learner(BatchTransformCB(doubled, on_train, on_val))
    learn.dls.train, learn.dls.valid = dl*3, dl*2
    learn.fit(1)
    assert ''.join(seen) == expected
    assert learn.batch[0].unique().tolist() == [2. if on_val else 1.]


# Memory

class Big: "Something that should not stay alive."


LAST = ('last_type', 'last_value', 'last_exc', 'last_traceback')


@pytest.fixture
def no_last_error():
    kept = {n: sys.__dict__.pop(n) for n in LAST if hasattr(sys, n)}
    yield
    for name in LAST: sys.__dict__.pop(name, None)
    sys.__dict__.update(kept)


def leave_an_error():
    "An error as an interpreter leaves it in `sys`; a weak reference to what its frame holds."
    def failing():
        big = Big()
        seen.append(weakref.ref(big))
        raise RuntimeError('out of memory')

    seen = []
    try: failing()
    except RuntimeError as e:
        sys.last_type, sys.last_value, sys.last_exc, sys.last_traceback = type(e), e, e, e.__traceback__
    return seen[0]


@pytest.mark.usefixtures('no_last_error')
@pytest.mark.parametrize('clean', [clean_tb, clean_mem])
def test_the_last_error_no_longer_keeps_alive_what_its_frames_held(clean):
    big = leave_an_error()
    before = big() is not None
    clean()
    assert before
    assert big() is None
    assert not [n for n in LAST if hasattr(sys, n)]


@pytest.mark.usefixtures('no_last_error')
def test_there_may_be_no_last_error_no_notebook_and_no_accelerator(monkeypatch):
    monkeypatch.setitem(sys.modules, 'IPython', types.SimpleNamespace(get_ipython=lambda: None))
    clean_mem()
    monkeypatch.delitem(sys.modules, 'IPython')
    clean_mem()


def test_clean_mem_empties_the_accelerator_s_cache_where_there_is_one(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, 'empty_cache', lambda: calls.append('emptied'))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    clean_mem()
    assert calls == []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    clean_mem()
    assert calls == ['emptied']


def notebook(monkeypatch, tmp_path, **settings):
    "A notebook's shell, and none of its traces afterwards."
    IPython = pytest.importorskip('IPython')
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config
    monkeypatch.setenv('IPYTHONDIR', str(tmp_path))
    for name in ('__IPYTHON__', 'display'): monkeypatch.setattr(builtins, name, None, raising=False)
    for name in ('excepthook', 'displayhook', 'ps1', 'ps2', 'ps3'):
        monkeypatch.setattr(sys, name, getattr(sys, name, None), raising=False)
    config = Config(HistoryManager=dict(enabled=False), InteractiveShell=dict(xmode='Plain', **settings))
    shell = InteractiveShell(config=config, user_module=types.ModuleType('notebook'))
    monkeypatch.setattr(IPython, 'get_ipython', lambda: shell)
    return shell


@pytest.mark.parametrize('clean', [clean_ipython_hist, clean_mem])
def test_a_notebook_s_outputs_are_no_longer_kept_alive(monkeypatch, tmp_path, capsys, clean):
    shell = notebook(monkeypatch, tmp_path)
    shell.user_ns.update(Big=Big, clean=clean)
    for cell in ('Big()', 'x = 3', 'Big()'): shell.run_cell(cell, store_history=True)
    kept = [weakref.ref(o) for o in shell.user_ns['Out'].values()]
    before = [r() is not None for r in kept]
    shell.run_cell('clean()', store_history=True)
    assert before == [True, True]
    assert [r() for r in kept] == [None, None]
    assert shell.user_ns['Out'] == {}
    assert shell.user_ns['x'] == 3
    assert not any(isinstance(v, Big) for v in shell.user_ns.values())
    shell.run_cell('Big()', store_history=True)
    assert len(shell.user_ns['Out']) == 1


def test_a_notebook_without_an_output_cache_can_be_cleaned(monkeypatch, tmp_path, capsys):
    shell = notebook(monkeypatch, tmp_path, cache_size=0)
    shell.run_cell('3', store_history=True)
    clean_mem()
