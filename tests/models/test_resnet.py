"Residual networks: the block, against its equation, and the classifier."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai.device import def_device
from miniai.models.layers import GeneralRelu
from miniai.models.resnet import ResBlock, get_resnet


def acted(x): return F.leaky_relu(x, .1) - .4


def by_hand(block, x, stride, normed):
    "act(norm(conv(act(norm(conv(x))))) + identity), from the parameters of `block`."
    convs = [m for m in block.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in block.modules() if isinstance(m, nn.BatchNorm2d)]

    def conv(i, x, stride=1):
        x = F.conv2d(x, convs[i].weight, convs[i].bias, stride, convs[i].weight.shape[-1]//2)
        return F.batch_norm(x, None, None, norms[i].weight, norms[i].bias, training=True) if normed and i < 2 else x

    identity = x if stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True)
    if x.shape[1] != convs[0].out_channels: identity = conv(2, identity)
    return acted(conv(1, acted(conv(0, x)), stride) + identity)


@pytest.mark.parametrize('size', [8, 7])
@pytest.mark.parametrize('norm', [None, nn.BatchNorm2d])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('ni', 'nf'), [(3, 3), (3, 5)])
@pytest.mark.parametrize('ks', [3, 5])
def test_a_block_is_the_activation_of_two_convolutions_plus_the_identity_path(ni, nf, stride, norm, ks, size):
    block, x = ResBlock(ni, nf, stride, ks, norm=norm), torch.randn(4, ni, size, size)
    for m in block.modules():
        if isinstance(m, nn.BatchNorm2d): nn.init.normal_(m.weight)
    out = block(x)
    assert out.shape == (4, nf, -(-size // stride), -(-size // stride))
    torch.testing.assert_close(out, by_hand(block, x, stride, norm is not None))


def test_seeded_weights_are_those_of_convolutions_drawn_in_order():
    torch.manual_seed(2)
    ours = [m for m in ResBlock(2, 3, 2, norm=nn.BatchNorm2d).modules() if isinstance(m, nn.Conv2d)]
    torch.manual_seed(2)
    plain = [nn.Conv2d(2, 3, 3), nn.Conv2d(3, 3, 3), nn.Conv2d(2, 3, 1)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, plain, strict=True))
    assert [m.bias is None for m in ours] == [True, True, False]
    assert torch.equal(ours[2].bias, plain[2].bias)


def test_the_identity_path_has_no_norm_and_has_weights_only_if_the_width_changes():
    assert [tuple(p.shape) for p in ResBlock(3, 3, stride=2).parameters()] == [(3, 3, 3, 3), (3,)]*2
    assert sum(isinstance(m, nn.BatchNorm2d) for m in ResBlock(2, 3, norm=nn.BatchNorm2d).modules()) == 2


def test_the_activation_may_be_replaced():
    acts = [m for m in ResBlock(2, 2, act=partial(nn.ELU, alpha=.5)).modules() if isinstance(m, nn.ELU)]
    assert len(acts) == 2
    assert not any(isinstance(m, GeneralRelu) for m in ResBlock(2, 2, act=nn.ReLU).modules())


def test_the_residual_classifier_gives_10_logits_on_the_default_device():
    model = get_resnet(nfs=(4, 8, 16))
    assert {p.device.type for p in model.parameters()} == {def_device}
    assert model(torch.randn(6, 1, 28, 28, device=def_device)).shape == (6, 10)
    blocks = [m for m in model.modules() if isinstance(m, ResBlock)]
    assert [sum(isinstance(m, nn.AvgPool2d) for m in b.modules()) for b in blocks] == [0, 1, 1]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in model.modules()) == 6
    assert len([m for m in get_resnet().modules() if isinstance(m, ResBlock)]) == 5


def test_a_residual_classifier_learns_to_tell_two_kinds_of_image():
    x = torch.zeros(20, 1, 28, 28, device=def_device)
    x[:10, :, :14] = 1.
    x[10:, :, 14:] = 1.
    y = torch.arange(20, device=def_device)//10
    model = get_resnet(nfs=(4, 8))
    opt = torch.optim.Adam(model.parameters(), lr=.05)
    for _ in range(15):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()
    assert torch.equal(model(x).argmax(1), y)
