"Layers: the leaky, shifted ReLU and the convolution block."
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['GeneralRelu', 'act_gr', 'conv_block']

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GeneralRelu(nn.Module):
    "ReLU with slope `leak` below zero, then shifted down by `sub`, then clamped to at most `maxv`. All are optional."
    def __init__(self, leak: float | None = None, sub: float | None = None, maxv: float | None = None) -> None:
        super().__init__()
        self.leak, self.sub, self.maxv = leak, sub, maxv

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x) if self.leak is None else F.leaky_relu(x, self.leak)
        if self.sub is not None: x = x - self.sub
        return x if self.maxv is None else x.clamp_max(self.maxv)

    def extra_repr(self) -> str:
        return ', '.join(f'{k}={v}' for k in ('leak', 'sub', 'maxv') if (v := getattr(self, k)) is not None)


act_gr = partial(GeneralRelu, leak=0.1, sub=0.4)


def conv_block(ni: int, nf: int, ks: int = 3, stride: int = 2, act: Callable[[], nn.Module] | None = nn.ReLU,
               norm: Callable[[int], nn.Module] | None = None, bias: bool | None = None) -> nn.Sequential:
    """A convolution with padding `ks//2`, then `norm(nf)` and `act()` if given: (N, ni, H, W) to (N, nf, H/stride,
    W/stride). `bias=None` means a bias unless BatchNorm follows, which has its own."""
    conv = nn.Conv2d(ni, nf, stride=stride, kernel_size=ks, padding=ks//2, bias=bias is not False)
    layers = [conv] + ([norm(nf)] if norm else []) + ([act()] if act else [])
    # Dropped only now, so that the same random numbers are drawn, and a seed gives the same weights, with any norm.
    if bias is None and any(isinstance(m, _BATCH_NORMS) for m in layers): conv.bias = None
    return nn.Sequential(*layers)
