"""Stochastic rounding to bfloat16: up or down at random, so that the mean of the stored values is the computed value.
Gives the same bits as the kernels, with torch's integers."""
import torch
from torch import Tensor

__all__ = ['dithered', 'noise', 'key_of']

_MASK = 0xffffffff


def _mixed(x: Tensor) -> Tensor:
    "One round of a 32-bit hash of integers held in int64."
    x = ((x ^ (x >> 15)) * 0x846ca68b) & _MASK
    return x ^ (x >> 16)


def key_of(seed: int, step: int, place: int) -> int:
    "A 32-bit key for one tensor at one step, from `seed`, `step` and the tensor's `place`."
    x = (seed ^ (step*0x9e3779b97f4a7c15) ^ (place*0xbf58476d1ce4e5b9)) & (2**64 - 1)
    x = ((x ^ (x >> 30)) * 0xbf58476d1ce4e5b9) & (2**64 - 1)
    x = ((x ^ (x >> 27)) * 0x94d049bb133111eb) & (2**64 - 1)
    return (x ^ (x >> 31)) & _MASK


def noise(x: Tensor, key: int, turn: int = 0, places: Tensor | None = None) -> Tensor:
    """16 random bits for each element of `x`, by its place in memory, `key`, and the `turn` of this tensor among those
    rounded with that key. `places` has the places if `x` is a part of a tensor. Two turns share a 32-bit random number,
    half each."""
    bits = torch.empty_like(x, dtype=torch.int64)
    in_memory = sorted(range(x.ndim), key=lambda d: (-bits.stride(d), d))
    if places is None: places = torch.arange(x.numel(), device=x.device)
    bits.permute(in_memory).view(-1).copy_((places*0x9e3779b9 + key) & _MASK)
    for _ in range(1 + turn//2): bits = _mixed(bits)
    return (bits >> 16*(turn % 2)) & 0xffff


def dithered(x: Tensor, key: int, turn: int = 0, places: Tensor | None = None) -> Tensor:
    "`x` as bfloat16, rounded at random by its `noise`. NaN and infinities stay."
    x = x.float()
    upper = (((x.view(torch.int32).long() & _MASK) + noise(x, key, turn, places)) >> 16) & 0xffff
    rounded = ((upper ^ 0x8000) - 0x8000).to(torch.int16).view(torch.bfloat16)
    return torch.where(x.isfinite(), rounded, x.bfloat16())
