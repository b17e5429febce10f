"What HealthCB sees of layers, compared with torch."
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from miniai.diagnosis.layer_watch import MOST, LayerWatch, part_of, read
from small import hooks_on


def watched(model, x, looks=1):
    watch = LayerWatch(model)
    for _ in range(looks):
        watch.start(nullcontext())
        out = model(x)
        watch.stop()
        out.square().sum().backward()
    return watch.values, out


def test_figures_are_those_of_torch():
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.Tanh()), torch.randn(40, 5)
    values, out = watched(model, x)
    acts = model[1](model[0](x))
    assert values['1']['mean'].item() == pytest.approx(acts.mean().item())
    assert values['1']['std'].item() == pytest.approx(acts.std().item())
    assert values['1']['near_zero'].item() == pytest.approx((acts == 0).float().mean().item())
    assert values['3']['saturated'].item() == pytest.approx((out.abs() > 0.96).float().mean().item())
    assert values['3']['gradient'].item() == pytest.approx((2*out).norm().item(), rel=1e-5)
    assert list(values) == ['0', '1', '2', '3']


def test_a_unit_is_dead_if_it_was_0_in_the_last_three_looks():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    nn.init.constant_(model[0].bias[:2], -100.)
    assert watched(model, torch.rand(30, 4), looks=3)[0]['1']['dead'].item() == pytest.approx(
        (model(torch.rand(500, 4)) == 0).all(0).float().mean().item())
    model = nn.Sequential(nn.ReLU())
    watch = LayerWatch(model)
    for x in (-torch.ones(2, 4), torch.ones(2, 4), -torch.ones(2, 4)):
        watch.start(nullcontext())
        model(x)
        watch.stop()
    assert watch.values['0']['dead'] == 0


def test_channels_of_images_and_features_of_sequences_are_units():
    for shape, units in (((3, 4, 5, 5), 4), ((3, 5, 6), 6)):
        watch, x = LayerWatch(nn.Sequential(nn.ReLU())), torch.ones(shape)
        x.select(1 if x.ndim == 4 else 2, 0).zero_()
        watch.start(nullcontext())
        watch.layers['0'](x)
        assert watch.values['0']['dead'].item() == pytest.approx(1/units)


def test_a_batch_norm_is_compared_with_its_running_statistics():
    norm = nn.Sequential(nn.BatchNorm1d(2, momentum=0.))
    x = torch.randn(1000, 2)*3 + 8
    v = watched(norm, x)[0]['0']
    assert v['shift'].item() == pytest.approx((8/(1 + 3)), rel=0.1)
    assert v['stretch'].item() == pytest.approx(torch.tensor(9.).log().item(), rel=0.1)
    assert not watched(norm.eval(), x.requires_grad_())[0]['0']


def test_hooks_are_only_there_between_start_and_stop():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    watch = LayerWatch(model)
    assert hooks_on(model) == 0
    watch.start(nullcontext())
    assert hooks_on(model) == 2
    watch.stop()
    assert hooks_on(model) == 0


def test_large_tensors_are_seen_in_part_and_their_gradient_is_scaled_to_the_whole():
    x = torch.ones(100, MOST//10)
    assert part_of(x).shape == (10, MOST//10)
    watch, relu = LayerWatch(nn.Sequential(nn.ReLU())), None
    watch.start(nullcontext())
    relu = watch.layers['0'](x.requires_grad_())
    relu.sum().backward()
    assert watch.values['0']['gradient'].item() == pytest.approx(x.numel()**0.5)


def test_outputs_without_numbers_are_left_out():
    class Words(nn.ReLU):
        def forward(self, x): return 'words'
    assert watched(nn.Sequential(nn.ReLU()), torch.ones(2, 2, requires_grad=True))[0]
    watch = LayerWatch(nn.Sequential(Words()))
    watch.start(nullcontext())
    watch.layers['0'](1)
    assert watch.values == {}


def test_many_numbers_are_read_at_once_in_any_precision():
    kinds = torch.float32, torch.int64, torch.bfloat16
    assert read([torch.tensor(i, dtype=kind) for i, kind in enumerate(kinds)]) == [0, 1, 2]
    assert read([]) == []
