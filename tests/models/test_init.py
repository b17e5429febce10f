"Initialization: Kaiming, and layer-sequential unit variance."
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.device import def_device
from miniai.models.convnet import get_model
from miniai.models.init import init_weights, lsuv_init
from miniai.models.layers import act_gr
from small import hooks_on


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
    said = "the model never calls m"
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


def test_lsuv_init_says_how_far_it_came_if_a_norm_undoes_it():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    nn.init.constant_(model[1].weight, 2.)
    said = r'after 7 rounds the output of m has mean .* and std [12].*norm undo it'
    with pytest.raises(RuntimeError, match=said):
        lsuv_init(model, model[1], model[0], torch.randn(50, 2), max_iter=7)
    assert hooks_on(model) == 0


def test_lsuv_init_says_that_the_mean_of_a_relu_cannot_be_0():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU())
    with pytest.raises(RuntimeError, match=r'mean|negative'):
        lsuv_init(model, model[1], model[0], torch.randn(40, 5))
