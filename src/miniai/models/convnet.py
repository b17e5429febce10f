"The small convolutional net of the course."
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from miniai.device import def_device
from miniai.models.layers import conv_block

__all__ = ['get_model']


def get_model(act: Callable[[], nn.Module] = nn.ReLU, nfs: list[int] | None = None,
              norm: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    """A classifier of 28x28 grey images on `def_device`: convolutions of widths `nfs` (default 1, 8, 16, 32, 64), each
    halving the size, then one to 10 logits, flattened to (N, 10)."""
    nfs = nfs or [1, 8, 16, 32, 64]
    layers = [conv_block(ni, nf, act=act, norm=norm) for ni, nf in pairwise(nfs)]
    return nn.Sequential(*layers, conv_block(nfs[-1], 10, act=None, bias=True), nn.Flatten()).to(def_device)
