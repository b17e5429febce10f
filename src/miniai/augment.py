"Augmentation by the batch, and the Learner's methods that look at data, model and predictions."
import random

import torch
from torch import Tensor, nn

from miniai.callbacks.capture import CapturePreds as CapturePreds
from miniai.callbacks.capture import capture_preds as capture_preds
from miniai.callbacks.capture import show_image_batch as show_image_batch
from miniai.callbacks.summary import summary as summary

__all__ = ['summary', 'show_image_batch', 'capture_preds', 'CapturePreds', 'rand_erase', 'RandErase',
           'rand_copy', 'RandCopy']


def _patch_size(x: Tensor, pct: float) -> tuple[int, int]:
    _check_images(x, pct)
    return int(pct*x.shape[-2]), int(pct*x.shape[-1])


def _check_images(x: Tensor, pct: float) -> None:
    if x.ndim != 4: raise ValueError(f"a batch of images must have shape (N, C, H, W), got {tuple(x.shape)}")
    if not 0 < pct <= 1:
        raise ValueError(f"pct, the side of a patch as a share of the image's, must be in (0, 1], got {pct}")


def _patch(x: Tensor, pct: float, size: tuple[int, int]) -> Tensor:
    "A view of a rectangle of `size` at a random place of every image of the batch."
    top, left = (int(random.random()*(1 - pct)*n) for n in x.shape[-2:])
    return x[:, :, top:top + size[0], left:left + size[1]]


def rand_erase(x: Tensor, pct: float = 0.2, max_num: int = 4) -> Tensor:
    """Replace up to `max_num` rectangles, `pct` of the sides, of the float batch `x` (N, C, H, W) by noise of
    the batch's own mean and standard deviation, kept in its range; in place, the same places in every image.
    Returns `x`. After Zhong et al. 2017."""
    size, mean, std, low, high = _patch_size(x, pct), x.mean(), x.std(), x.min(), x.max()
    for _ in range(random.randint(0, max_num)):
        patch = _patch(x, pct, size)
        patch.copy_((torch.randn_like(patch)*std + mean).clamp(low, high))
    return x


def rand_copy(x: Tensor, pct: float = 0.2, max_num: int = 4) -> Tensor:
    """Replace up to `max_num` rectangles, `pct` of the sides, of the batch `x` (N, C, H, W) by another part
    of the same images; in place, the same places in every image. Returns `x`."""
    size = _patch_size(x, pct)
    for _ in range(random.randint(0, max_num)):
        source, target = _patch(x, pct, size), _patch(x, pct, size)
        target.copy_(source.clone())
    return x


class _RandPatches(nn.Module):
    def __init__(self, pct: float = 0.2, max_num: int = 4) -> None:
        super().__init__()
        self.pct, self.max_num = pct, max_num


class RandErase(_RandPatches):
    "`rand_erase` as a layer."
    def forward(self, x: Tensor) -> Tensor: return rand_erase(x, self.pct, self.max_num)


class RandCopy(_RandPatches):
    "`rand_copy` as a layer."
    def forward(self, x: Tensor) -> Tensor: return rand_copy(x, self.pct, self.max_num)
