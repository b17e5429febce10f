"The small convolutional net: plain convolutions, norms and activations in order."
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.device import def_device
from miniai.models.convnet import get_model
from miniai.models.layers import GeneralRelu, act_gr


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


def test_get_model_is_on_the_default_device_with_the_given_activation():
    model = get_model(act_gr)
    assert {p.device.type for p in model.parameters()} == {def_device}
    acts = [m for m in model.modules() if isinstance(m, GeneralRelu)]
    assert [(a.leak, a.sub) for a in acts] == [(.1, .4)]*4
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())
