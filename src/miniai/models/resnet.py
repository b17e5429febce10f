"Residual networks: the block, and a small classifier."
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from miniai.device import def_device
from miniai.models.layers import act_gr, conv_block

__all__ = ['ResBlock', 'get_resnet']


class ResBlock(nn.Module):
    """Two convolutions with `norm`, the second with `stride` and no activation, plus an identity path; `act` after the
    sum (He et al. 2015). The identity path pools if `stride` is not 1, and has a 1x1 convolution if the width changes.
    (N, ni, H, W) to (N, nf, H/stride, W/stride)."""
    def __init__(self, ni: int, nf: int, stride: int = 1, ks: int = 3,
                 act: Callable[[], nn.Module] = act_gr, norm: Callable | None = None) -> None:
        super().__init__()
        self.convs = nn.Sequential(conv_block(ni, nf, ks, stride=1, act=act, norm=norm),
                                   conv_block(nf, nf, ks, stride=stride, act=None, norm=norm))
        self.idconv = nn.Identity() if ni == nf else conv_block(ni, nf, ks=1, stride=1, act=None)
        self.pool = nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor: return self.act(self.convs(x) + self.idconv(self.pool(x)))


def get_resnet(act: Callable[[], nn.Module] = act_gr, nfs: tuple[int, ...] = (8, 16, 32, 64, 128),
               norm: Callable | None = nn.BatchNorm2d, channels: int = 1, outputs: int = 10) -> nn.Sequential:
    """A classifier of images on `def_device`, by default gray ones of 10 classes: a ResBlock of each of the widths
    `nfs`, all but the first halving the size, then average pooling and a linear layer."""
    blocks = [ResBlock(channels, nfs[0], act=act, norm=norm)]
    blocks += [ResBlock(ni, nf, stride=2, act=act, norm=norm) for ni, nf in pairwise(nfs)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(nfs[-1], outputs, bias=False), nn.BatchNorm1d(outputs)]
    return nn.Sequential(*blocks, *head).to(def_device)
