"Augmentation by the batch, and the Learner's methods that look at data, model and predictions."
import random

import torch
from torch import Generator, Tensor, nn

from miniai.callbacks.capture import CapturePreds as CapturePreds
from miniai.callbacks.capture import capture_preds as capture_preds
from miniai.callbacks.capture import show_image_batch as show_image_batch
from miniai.callbacks.mix import CutMixCB as CutMixCB
from miniai.callbacks.mix import MixUpCB as MixUpCB
from miniai.callbacks.summary import summary as summary
from miniai.callbacks.train_loss import LabelSmoothingCB as LabelSmoothingCB
from miniai.callbacks.train_loss import TrainLossCB as TrainLossCB
from miniai.callbacks.tta import tta as tta
from miniai.moves import RandCrop as RandCrop
from miniai.moves import RandFlip as RandFlip
from miniai.moves import RandTranslate as RandTranslate
from miniai.moves import check_images
from miniai.moves import mirror as mirror
from miniai.moves import rand_crop as rand_crop
from miniai.moves import rand_flip as rand_flip
from miniai.moves import rand_translate as rand_translate

__all__ = ['summary', 'show_image_batch', 'capture_preds', 'CapturePreds', 'rand_erase', 'RandErase',
           'rand_copy', 'RandCopy', 'mirror', 'rand_flip', 'RandFlip', 'rand_crop', 'RandCrop',
           'rand_translate', 'RandTranslate', 'MixUpCB', 'CutMixCB', 'TrainLossCB', 'LabelSmoothingCB', 'tta']


def _patch_size(x: Tensor, pct: float) -> tuple[int, int]:
    check_images(x)
    if not 0 < pct <= 1:
        raise ValueError(f"pct, the side of a patch as a share of the image's, must be in (0, 1], got {pct}")
    return int(pct*x.shape[-2]), int(pct*x.shape[-1])


def _uniform(generator: Generator | None) -> float:
    "A number in [0, 1): Python's `random` draws it where no generator is given, as it always did."
    if generator is None: return random.random()
    return torch.rand((), dtype=torch.float32, generator=generator, device=generator.device).item()


def _up_to(most: int, generator: Generator | None) -> int:
    return random.randint(0, most) if generator is None else int(_uniform(generator)*(most + 1))


def _normal_like(x: Tensor, generator: Generator | None) -> Tensor:
    if generator is None: return torch.randn_like(x)
    return torch.randn(x.shape, dtype=x.dtype, generator=generator, device=generator.device).to(x.device)


def _patch(x: Tensor, pct: float, size: tuple[int, int], generator: Generator | None) -> Tensor:
    "A view of a rectangle of `size` at a random place of every image of the batch."
    top, left = (int(_uniform(generator)*(1 - pct)*n) for n in x.shape[-2:])
    return x[:, :, top:top + size[0], left:left + size[1]]


def rand_erase(x: Tensor, pct: float = 0.2, max_num: int = 4, generator: Generator | None = None) -> Tensor:
    """Replace up to `max_num` rectangles, `pct` of the sides, of the float batch `x` (N, C, H, W) by noise of
    the batch's own mean and standard deviation, kept in its range; in place, the same places in every image.
    Returns `x`. Number, places and noise come from `generator`; without one, from Python's `random` and, the noise,
    from torch's own. After Zhong et al. 2017."""
    size = _patch_size(x, pct)
    if not x.is_floating_point(): raise TypeError(f"rand_erase needs a batch of floats, got {x.dtype}: use x.float()")
    if not x.numel(): return x
    mean, std, low, high = x.mean(), x.std(correction=min(1, x.numel() - 1)), x.min(), x.max()
    for _ in range(_up_to(max_num, generator)):
        patch = _patch(x, pct, size, generator)
        patch.copy_((_normal_like(patch, generator)*std + mean).clamp(low, high))
    return x


def rand_copy(x: Tensor, pct: float = 0.2, max_num: int = 4, generator: Generator | None = None) -> Tensor:
    """Replace up to `max_num` rectangles, `pct` of the sides, of the batch `x` (N, C, H, W) by another part
    of the same images; in place, the same places in every image. Returns `x`. Number and places come from
    `generator`; without one, from Python's `random`."""
    size = _patch_size(x, pct)
    for _ in range(_up_to(max_num, generator)):
        source, target = _patch(x, pct, size, generator), _patch(x, pct, size, generator)
        target.copy_(source.clone())
    return x


class _RandPatches(nn.Module):
    def __init__(self, pct: float = 0.2, max_num: int = 4, generator: Generator | None = None) -> None:
        super().__init__()
        self.pct, self.max_num, self.generator = pct, max_num, generator


class RandErase(_RandPatches):
    "`rand_erase` as a layer."
    def forward(self, x: Tensor) -> Tensor: return rand_erase(x, self.pct, self.max_num, self.generator)


class RandCopy(_RandPatches):
    "`rand_copy` as a layer."
    def forward(self, x: Tensor) -> Tensor: return rand_copy(x, self.pct, self.max_num, self.generator)
