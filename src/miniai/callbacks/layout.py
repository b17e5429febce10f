"Images and weights in channels-last memory layout for the length of a fit."
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from miniai.callbacks.train import DeviceCB
from miniai.device import map_tensors
from miniai.events import Callback

__all__ = ['ChannelsLastCB']


class ChannelsLastCB(Callback):
    """For the length of a fit, stores weights and batches of four dimensions (N, C, H, W) in memory as (N, H, W, C).
    This makes convolutions faster on CPUs, and on GPUs in half precision. Shapes, values and Parameter objects stay
    the same; gradients and optimizer state follow. Sums are added in another order, so results differ in the last bits.
    After the fit the weights have their old layout again."""
    order = DeviceCB.order + 5
    _strides: tuple[tuple[Tensor, tuple[int, ...]], ...] = ()

    def before_fit(self, learn: Any) -> None:
        weights = chain(learn.model.parameters(), learn.model.buffers())
        self._strides = tuple((p, p.stride()) for p in weights if _is_changed(p))
        for p, _ in self._strides: _set_strides(learn, p, _channels_last(p.data).stride())

    def before_batch(self, learn: Any) -> None: learn.batch = map_tensors(_channels_last, learn.batch)

    def cleanup_fit(self, learn: Any) -> None:
        for p, strides in self._strides: _set_strides(learn, p, strides)
        self._strides = ()


def _is_changed(p: Tensor) -> bool:
    if p.ndim != 4 or type(p.data) is not Tensor or p.is_contiguous(memory_format=torch.channels_last): return False
    return all(s > 0 or n == 1 for s, n in zip(p.stride(), p.shape, strict=True))  # expanded tensors stay as they are


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _set_strides(learn: Any, p: Tensor, strides: tuple[int, ...]) -> None:
    "Give `p`, its gradient and its optimizer state of the same shape new memory with these strides."
    def moved(x: Tensor) -> Tensor:
        return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)
    p.data = moved(p.data)
    if p.grad is not None: p.grad = moved(p.grad)
    state = getattr(learn.opt, 'state', {}).get(p, {})
    for k, x in state.items():
        if isinstance(x, Tensor) and x.shape == p.shape: state[k] = moved(x)
