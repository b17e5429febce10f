"The small convolutional net of the course."
from collections.abc import Callable
from itertools import pairwise

from torch import nn

from miniai.device import def_device
from miniai.models.layers import conv_block

__all__ = ['get_model']


def get_model(act: Callable[[], nn.Module] = nn.ReLU, nfs: list[int] | None = None,
              norm: Callable[[int], nn.Module] | None = None, outputs: int = 10, pool: bool = False) -> nn.Sequential:
    """A classifier of 28x28 gray images on `def_device`: convolutions of widths `nfs` (default 1, 8, 16, 32, 64; the
    first is the number of channels), each halving the size, then one to logits, flattened to (N, `outputs`). With
    `pool` the logits are averaged over what is left of the image, so that any size will do."""
    nfs = nfs or [1, 8, 16, 32, 64]
    layers = [conv_block(ni, nf, act=act, norm=norm) for ni, nf in pairwise(nfs)]
    head = [conv_block(nfs[-1], outputs, act=None, bias=True), *[nn.AdaptiveAvgPool2d(1)]*pool, nn.Flatten()]
    return nn.Sequential(*layers, *head).to(def_device)
