"Layers that models here are built of: the leaky, shifted ReLU and the convolution block. Knows torch alone."
from collections.abc import Callable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['GeneralRelu', 'act_gr', 'conv_block']

_NORMS_WITH_BIAS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class GeneralRelu(nn.Module):
    "ReLU with slope `leak` below zero, shifted down by `sub`, cut off at `maxv`; each where given."
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
    """Convolution with padding `ks//2`, then `norm(nf)` and `act()` where given: (N, ni, H, W) to (N, nf,
    H/stride, W/stride). By default there is a bias unless BatchNorm follows, which has its own; it is drawn all
    the same, so that seeds give the same weights."""
    conv = nn.Conv2d(ni, nf, stride=stride, kernel_size=ks, padding=ks//2, bias=bias is not False)
    layers = [conv] + ([norm(nf)] if norm else []) + ([act()] if act else [])
    if bias is None and any(isinstance(m, _NORMS_WITH_BIAS) for m in layers): conv.bias = None
    return nn.Sequential(*layers)
