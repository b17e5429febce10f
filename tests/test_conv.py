"The convolution of the first lessons, and the device names that go with it, by the names that notebooks import."
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.conv import conv
from reexports import check_reexports


def test_the_device_names_are_those_of_the_library():
    check_reexports('conv', dict(device='def_device to_device collate_device'), own='conv')


@pytest.mark.parametrize(('ks', 'stride'), [(3, 2), (3, 1), (5, 2), (1, 1)])
def test_conv_is_a_convolution_padded_by_half_its_kernel_then_relu(ks, stride):
    layer, x = conv(2, 3, ks, stride), torch.randn(4, 2, 8, 8)
    assert [type(m) for m in layer] == [nn.Conv2d, nn.ReLU]
    assert torch.equal(layer(x), F.conv2d(x, layer[0].weight, layer[0].bias, stride, ks//2).relu())


def test_conv_without_activation_is_the_convolution_alone():
    layer = conv(2, 3, act=False)
    assert type(layer) is nn.Conv2d
    assert (layer.kernel_size, layer.stride, layer.padding) == ((3, 3), (2, 2), (1, 1))
    assert layer.bias is not None


def test_conv_halves_the_size_by_default():
    assert conv(1, 4)(torch.rand(2, 1, 28, 28)).shape == (2, 4, 14, 14)
    assert conv(1, 4)(torch.rand(2, 1, 7, 7)).shape == (2, 4, 4, 4)


def test_seeded_weights_are_those_of_pytorchs_convolution():
    torch.manual_seed(1)
    ours = conv(2, 3)[0]
    torch.manual_seed(1)
    plain = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    assert torch.equal(ours.weight, plain.weight)
    assert torch.equal(ours.bias, plain.bias)
