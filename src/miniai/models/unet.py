"A small U-Net: images to images of the same size."
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.models.layers import act_gr, conv_block

__all__ = ['UNet']


class UNet(nn.Module):
    """A U-Net (Ronneberger, Fischer & Brox 2015): a convolution of each of `widths` on the way down, all but the first
    halving the size, then back up, where each convolution also sees what the way down had at that size. (N,
    `channels`, H, W) to (N, `outputs`, H, W)."""
    def __init__(self, channels: int = 1, outputs: int = 1, widths: Sequence[int] = (16, 32, 64),
                 act: Callable[[], nn.Module] = act_gr, norm: Callable[[int], nn.Module] | None = nn.BatchNorm2d,
                 ) -> None:
        super().__init__()
        self.first = conv_block(channels, widths[0], stride=1, act=act, norm=norm)
        self.down = nn.ModuleList(conv_block(ni, nf, act=act, norm=norm) for ni, nf in pairwise(widths))
        self.up = nn.ModuleList(conv_block(ni + nf, nf, stride=1, act=act, norm=norm)
                                for ni, nf in pairwise(reversed(widths)))
        self.last = conv_block(widths[0], outputs, ks=1, stride=1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.first(x)]
        for block in self.down: skips.append(block(skips[-1]))
        x = skips.pop()
        for block in self.up:
            skip = skips.pop()
            x = block(torch.cat([F.interpolate(x, size=skip.shape[-2:]), skip], 1))
        return self.last(x)
