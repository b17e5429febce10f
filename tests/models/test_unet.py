"The U-Net: images of any size to images of the same size, by the equation."
import pytest
import torch
import torch.nn.functional as F

from miniai.models.unet import UNet


@pytest.mark.parametrize('size', [(28, 28), (7, 10)])
def test_the_output_has_the_size_of_the_input(size):
    assert UNet(3, 2, widths=(4, 6, 8))(torch.randn(2, 3, *size)).shape == (2, 2, *size)


def test_it_is_one_way_down_and_one_up_which_sees_what_the_way_down_had():
    net, x = UNet(widths=(2, 3, 4), norm=None), torch.randn(2, 1, 8, 8)
    def conv(block, x, stride=1): return F.leaky_relu(F.conv2d(x, block[0].weight, block[0].bias, stride, 1), .1) - .4
    def twice(x): return x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    a = conv(net.first, x)
    b = conv(net.down[0], a, 2)
    c = conv(net.down[1], b, 2)
    up = conv(net.up[0], torch.cat([twice(c), b], 1))
    up = conv(net.up[1], torch.cat([twice(up), a], 1))
    expected = (net.last[0].weight.flatten()[None, :, None, None]*up).sum(1, keepdim=True) + net.last[0].bias
    torch.testing.assert_close(net(x), expected)
