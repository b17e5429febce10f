"What HealthCB sees of parameters in one step, compared with torch."
from functools import partial

import pytest
import torch
from torch import nn

from miniai import SGD
from miniai.diagnosis.parameter_watch import ParameterWatch


def model(): return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def test_norms_gradients_and_updates_are_those_of_the_step():
    net = model()
    watch, opt, before = ParameterWatch(net), SGD(net.parameters(), 0.1), net[0].weight.detach().clone()
    net(torch.randn(8, 3)).sum().backward()
    watch.start()
    watch.copy()
    watch.look_at_gradients()
    opt.step()
    watch.look_at_step()
    v, g = watch.values['0.weight'], net[0].weight.grad
    assert v['norm'].item() == pytest.approx(before.norm().item())
    assert v['gradient'].item() == v['clipped'].item() == pytest.approx(g.norm().item())
    assert v['moved'].item() == pytest.approx(0.1*g.norm().item(), rel=1e-4)
    assert v['update'].item() == pytest.approx(0.1*g.norm().item()/before.norm().item(), rel=1e-4)


def test_frozen_parameters_and_missing_gradients_are_left_out():
    net = model()
    net[0].weight.requires_grad_(False)
    watch = ParameterWatch(net)
    watch.start()
    watch.copy()
    watch.look_at_gradients()
    watch.look_at_step()
    assert list(watch.values) == ['0.bias', '1.weight', '1.bias']
    assert 'gradient' not in watch.values['0.bias']
    assert watch.values['0.bias']['moved'] == 0


def test_the_noise_scale_is_the_variance_of_a_samples_gradient_over_the_squared_mean():
    net, g = nn.Linear(1, 1, bias=False), torch.Generator().manual_seed(1)
    watch, bs = ParameterWatch(net), 50
    watch.copy()
    for _ in range(400):
        for look in (watch.look_at_gradients, partial(watch.look_at_noise, bs)):
            net.zero_grad()
            net(1 + 4*torch.randn(bs, 1, generator=g)).mean().backward()  # of a sample: mean 1, deviation 4
            watch.values = {}
            found = look()
        watch._noise = tuple(x/0.9*0.999 for x in watch._noise)  # remember longer than a fit does
    assert found == pytest.approx(16, rel=0.25)


def test_without_a_sample_before_there_is_no_noise_scale():
    assert ParameterWatch(model()).look_at_noise(8) is None
