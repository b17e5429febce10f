"The convolution of the first lessons and the default device, by the names that notebooks import."
from torch import nn

from miniai.device import collate_device as collate_device
from miniai.device import def_device as def_device
from miniai.device import to_device as to_device

__all__ = ['def_device', 'to_device', 'collate_device', 'conv']


def conv(ni: int, nf: int, ks: int = 3, stride: int = 2, act: bool = True) -> nn.Module:
    "Conv2d with padding `ks//2`; with `act` a Sequential of it and a ReLU."
    layer = nn.Conv2d(ni, nf, kernel_size=ks, stride=stride, padding=ks//2)
    return nn.Sequential(layer, nn.ReLU()) if act else layer
