"How images lie in memory while a fit runs: channels last. Knows events and optimizers' state."
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from miniai.callbacks.train import DeviceCB
from miniai.device import map_tensors
from miniai.events import Callback

__all__ = ['ChannelsLastCB']


class ChannelsLastCB(Callback):
    """For the length of a fit, weights and batches of four dimensions (N, C, H, W) lie in memory as (N, H, W, C), which
    convolutions are quicker with: on CPUs, and on GPUs in half precision. Shapes and values stay, and so do the
    Parameter objects; gradients and the optimizer's state follow. Sums are taken in another order, so that last bits
    differ. When the fit ends, weights lie as they did."""
    order = DeviceCB.order + 5
    _strides: tuple[tuple[Tensor, tuple[int, ...]], ...] = ()

    def before_fit(self, learn: Any) -> None:
        weights = chain(learn.model.parameters(), learn.model.buffers())
        self._strides = tuple((p, p.stride()) for p in weights if _is_to_change(p))
        for p, _ in self._strides: _lay(learn, p, _channels_last(p.data).stride())

    def before_batch(self, learn: Any) -> None: learn.batch = map_tensors(_channels_last, learn.batch)

    def cleanup_fit(self, learn: Any) -> None:
        for p, strides in self._strides: _lay(learn, p, strides)
        self._strides = ()


def _is_to_change(p: Tensor) -> bool:
    if p.ndim != 4 or type(p.data) is not Tensor or p.is_contiguous(memory_format=torch.channels_last): return False
    return all(s > 0 or n == 1 for s, n in zip(p.stride(), p.shape, strict=True))  # what is expanded stays


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _lay(learn: Any, p: Tensor, strides: tuple[int, ...]) -> None:
    "Let `p`, its gradient and its state of the same shape lie in memory by `strides`, with the values they have."
    p.data = _laid(p.data, strides)
    if p.grad is not None: p.grad = _laid(p.grad, strides)
    state = getattr(learn.opt, 'state', {}).get(p, {})
    for k, x in state.items():
        if isinstance(x, Tensor) and x.shape == p.shape: state[k] = _laid(x, strides)


def _laid(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)
