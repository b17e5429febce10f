"Layers: the leaky, shifted, clamped ReLU and the convolution block."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from miniai.models.layers import GeneralRelu, act_gr, conv_block

floats = st.floats(-10, 10, width=32)
maybe = st.none() | st.floats(-2, 2, width=32)


@given(st.lists(floats, min_size=1), maybe, maybe, maybe)
def test_general_relu_is_a_leaky_relu_shifted_down_then_clamped(xs, leak, sub, maxv):
    highest = float('inf') if maxv is None else maxv
    expected = [min(max(x, 0.) + (leak or 0.)*min(x, 0.) - (sub or 0.), highest) for x in xs]
    assert GeneralRelu(leak, sub, maxv)(torch.tensor(xs)).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_general_relu_leaves_its_input_and_passes_gradients():
    x = torch.tensor([-1., 2., 9.], requires_grad=True)
    GeneralRelu(leak=.1, sub=.4, maxv=6.)(x).sum().backward()
    assert x.tolist() == [-1, 2, 9]
    assert x.grad.tolist() == pytest.approx([.1, 1., 0.])


def test_the_repr_of_general_relu_has_its_arguments():
    assert repr(GeneralRelu(leak=.1, maxv=0.)) == 'GeneralRelu(leak=0.1, maxv=0.0)'
    assert repr(GeneralRelu()) == 'GeneralRelu()'


def test_act_gr_has_leak_a_tenth_and_sub_four_tenths():
    act = act_gr()
    assert isinstance(act, GeneralRelu)
    assert (act.leak, act.sub, act.maxv) == (.1, .4, None)
    assert act(torch.tensor([-1., 1.])).tolist() == pytest.approx([-.5, .6])


def test_conv_block_is_convolution_then_norm_then_activation():
    def kinds(m): return [type(o) for o in m]
    assert kinds(conv_block(1, 2)) == [nn.Conv2d, nn.ReLU]
    assert kinds(conv_block(1, 2, act=None)) == [nn.Conv2d]
    assert kinds(conv_block(1, 2, norm=nn.BatchNorm2d, act=act_gr)) == [nn.Conv2d, nn.BatchNorm2d, GeneralRelu]
    assert kinds(conv_block(1, 2, norm=nn.InstanceNorm2d, act=None)) == [nn.Conv2d, nn.InstanceNorm2d]
    assert conv_block(1, 2, norm=nn.BatchNorm2d)[1].num_features == 2


@given(st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 3, 5, 7]), st.integers(1, 3), st.integers(7, 12))
def test_conv_block_gives_a_strided_size_rounded_up_for_odd_kernels(ni, nf, ks, stride, size):
    out = conv_block(ni, nf, ks, stride)(torch.rand(2, ni, size, size))
    assert out.shape == (2, nf, -(-size // stride), -(-size // stride))


def test_conv_block_computes_the_padded_strided_convolution():
    block, x = conv_block(2, 3, ks=5, stride=2), torch.randn(4, 2, 9, 9)
    assert torch.equal(block(x), F.conv2d(x, block[0].weight, block[0].bias, stride=2, padding=2).relu())


@pytest.mark.parametrize(('norm', 'bias', 'has'), [
    (None, None, True), (None, False, False), (None, True, True), (nn.BatchNorm2d, None, False),
    (nn.BatchNorm2d, True, True), (nn.BatchNorm2d, False, False), (partial(nn.BatchNorm2d, eps=.1), None, False),
    (nn.InstanceNorm2d, None, True), (partial(nn.GroupNorm, 1), None, True)])
def test_conv_block_has_a_bias_by_default_unless_batchnorm_follows(norm, bias, has):
    conv = conv_block(1, 2, norm=norm, bias=bias)[0]
    assert (conv.bias is not None) == has
    assert ('bias' in dict(conv.named_parameters())) == has
    assert ('bias' in conv.state_dict()) == has


@pytest.mark.parametrize('norm', [None, nn.BatchNorm2d])
def test_seeded_weights_are_those_of_a_convolution_with_bias(norm):
    torch.manual_seed(3)
    blocks = [conv_block(2, 3, norm=norm), conv_block(3, 4, norm=norm)]
    after = torch.rand(1)
    torch.manual_seed(3)
    plain = [nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Conv2d(3, 4, 3, stride=2, padding=1)]
    assert all(torch.equal(b[0].weight, p.weight) for b, p in zip(blocks, plain, strict=True))
    assert torch.equal(after, torch.rand(1))
    if norm is None: assert all(torch.equal(b[0].bias, p.bias) for b, p in zip(blocks, plain, strict=True))


def test_a_convolution_without_bias_draws_as_pytorch_does_without_bias():
    torch.manual_seed(3)
    conv_block(2, 3, bias=False)
    after = torch.rand(1)
    torch.manual_seed(3)
    nn.Conv2d(2, 3, 3, bias=False)
    assert torch.equal(after, torch.rand(1))
