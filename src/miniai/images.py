"Augmentation of image batches: flips, crops and shifts drawn per image; erased and copied patches drawn per batch."
import random
from numbers import Integral

import torch
from torch import Generator, Tensor, nn

__all__ = ['mirror', 'rand_flip', 'RandFlip', 'rand_crop', 'RandCrop', 'rand_translate', 'RandTranslate',
           'rand_erase', 'RandErase', 'rand_copy', 'RandCopy', 'check_images']


def check_images(x: Tensor) -> None:
    "ValueError unless `x` is a batch of images, (N, C, H, W)."
    if x.ndim != 4: raise ValueError(f"a batch of images must have shape (N, C, H, W), got {tuple(x.shape)}")


# Moves: a new tensor, with a random draw for each image

def mirror(x: Tensor) -> Tensor:
    "The images `x` (N, C, H, W), each flipped left to right."
    check_images(x)
    return x.flip(-1)


def rand_flip(x: Tensor, p: float = 0.5, generator: Generator | None = None) -> Tensor:
    """Flip each of the images `x` (N, C, H, W, any dtype) left to right with probability `p`. Random numbers come from
    `generator`, by default torch's own on the device of `x`."""
    if not 0 <= p <= 1: raise ValueError(f"p (the probability of a flip) must be in [0, 1], got {p}")
    flipped = mirror(x)
    chosen = torch.rand(len(x), generator=generator, device=_device(x, generator)) < p
    return torch.where(chosen.to(x.device)[:, None, None, None], flipped, x)


def rand_crop(x: Tensor, pad: int = 4, mode: str = 'reflect', fill: float | None = None,
              generator: Generator | None = None) -> Tensor:
    """Pad the images `x` (N, C, H, W, any dtype) by `pad` pixels on all sides and crop each at a random place to its
    old size (He et al. 2015, section 4.2). `mode` says what the padding is: 'reflect' or 'replicate' as in torch, or
    'constant': `fill`, by default each channel's smallest value in the batch, which is black even after normalization.
    Random numbers as in `rand_flip`."""
    if not isinstance(pad, Integral) or pad < 0: raise ValueError(f"pad must be an integer of at least 0, got {pad!r}")
    check_images(x)
    return _shifted(x, (pad, pad), mode, fill, generator)


def rand_translate(x: Tensor, most: float = 0.1, mode: str = 'constant', fill: float | None = None,
                   generator: Generator | None = None) -> Tensor:
    """Shift each of the images `x` (N, C, H, W, any dtype) by a random number of whole pixels, up to `most` of its
    height and width. The same as `rand_crop` with `pad` as a share of the sides; other arguments as there."""
    if not 0 <= most <= 1:
        raise ValueError(f"most (the largest shift as a share of the image's sides) must be in [0, 1], got {most}")
    check_images(x)
    return _shifted(x, (int(most*x.shape[-2]), int(most*x.shape[-1])), mode, fill, generator)


# Which pixel of a line of n is shown at position i, also for i beyond its ends.
_PADDING = dict(reflect=lambda i, n: (n - 1) - ((n - 1) - i.abs()).abs(), replicate=lambda i, n: i.clamp(0, n - 1),
                constant=lambda i, n: i.clamp(0, n - 1))


def _shifted(x: Tensor, most: tuple[int, int], mode: str, fill: float | None, generator: Generator | None) -> Tensor:
    "Each image of `x` shifted by a uniform draw of up to `most` rows and columns."
    n, c, h, w = x.shape
    if mode not in _PADDING: raise ValueError(f"mode must be one of {', '.join(_PADDING)}, got {mode!r}")
    if fill is not None and mode != 'constant': raise ValueError(f"fill needs mode='constant', got mode={mode!r}")
    if mode == 'reflect' and (most[0] >= h or most[1] >= w):
        raise ValueError(f"mode 'reflect' cannot shift images of {h} by {w} pixels by up to {most[0]} and {most[1]}: "
                         f"shift by less than a side, or use mode='replicate'")
    if not x.numel(): return x.clone()
    rows, cols = _source_lines(x, h, most[0], generator), _source_lines(x, w, most[1], generator)
    places = _PADDING[mode](rows, h)[:, :, None]*w + _PADDING[mode](cols, w)[:, None, :]
    out = x.flatten(2).gather(2, places.view(n, 1, h*w).expand(n, c, h*w)).view(x.shape)
    if mode == 'constant':
        inside = ((rows >= 0) & (rows < h))[:, None, :, None] & ((cols >= 0) & (cols < w))[:, None, None, :]
        out = torch.where(inside, out, x.amin((0, 2, 3), keepdim=True) if fill is None else x.new_full((), fill))
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out


def _source_lines(x: Tensor, n: int, most: int, generator: Generator | None) -> Tensor:
    "Where each of the `n` rows or columns of each image comes from, (N, n); outside 0 to n-1 it is padding."
    shift = torch.randint(-most, most + 1, (len(x), 1), generator=generator, device=_device(x, generator))
    return torch.arange(n, device=x.device) + shift.to(x.device)


def _device(x: Tensor, generator: Generator | None) -> torch.device:
    return x.device if generator is None else generator.device


# Patches: changed in place, at the same places in every image of the batch

def rand_erase(x: Tensor, pct: float = 0.2, max_num: int = 4, generator: Generator | None = None) -> Tensor:
    """Replace up to `max_num` rectangles of the float batch `x` (N, C, H, W) by noise, in place, and return `x`. A
    rectangle's sides are `pct` of the image's; the noise has the batch's mean and standard deviation and stays in its
    range. Random numbers come from `generator`; without one, noise comes from torch and all else from Python's
    `random`. After Zhong et al. 2017."""
    size = _patch_size(x, pct)
    if not x.is_floating_point(): raise TypeError(f"rand_erase needs a batch of floats, got {x.dtype}: use x.float()")
    if not x.numel(): return x
    mean, std, low, high = x.mean(), x.std(correction=min(1, x.numel() - 1)), x.min(), x.max()
    for _ in range(_count(max_num, generator)):
        patch = _patch(x, pct, size, generator)
        if generator is None: noise = torch.randn_like(patch)
        else: noise = torch.randn(patch.shape, dtype=x.dtype, generator=generator, device=generator.device).to(x.device)
        patch.copy_((noise*std + mean).clamp(low, high))
    return x


def rand_copy(x: Tensor, pct: float = 0.2, max_num: int = 4, generator: Generator | None = None) -> Tensor:
    """Replace up to `max_num` rectangles of the batch `x` (N, C, H, W, any dtype) by another part of the same image, in
    place, and return `x`. A rectangle's sides are `pct` of the image's. Random numbers come from `generator`; without
    one, from Python's `random`."""
    size = _patch_size(x, pct)
    for _ in range(_count(max_num, generator)):
        source, target = _patch(x, pct, size, generator), _patch(x, pct, size, generator)
        target.copy_(source.clone())
    return x


def _patch_size(x: Tensor, pct: float) -> tuple[int, int]:
    check_images(x)
    if not 0 < pct <= 1:
        raise ValueError(f"pct (the side of a patch as a share of the image's) must be in (0, 1], got {pct}")
    return int(pct*x.shape[-2]), int(pct*x.shape[-1])


def _patch(x: Tensor, pct: float, size: tuple[int, int], generator: Generator | None) -> Tensor:
    "A view of a rectangle of `size` at a random place."
    top, left = (int(_uniform(generator)*(1 - pct)*n) for n in x.shape[-2:])
    return x[:, :, top:top + size[0], left:left + size[1]]


def _count(most: int, generator: Generator | None) -> int:
    return random.randint(0, most) if generator is None else int(_uniform(generator)*(most + 1))


def _uniform(generator: Generator | None) -> float:
    if generator is None: return random.random()
    return torch.rand((), dtype=torch.float32, generator=generator, device=generator.device).item()


# The same as layers. They work in training and evaluation mode alike; BatchTransformCB limits them to a phase.

class RandFlip(nn.Module):
    "`rand_flip` as a layer, active in training and in evaluation mode."
    def __init__(self, p: float = 0.5, generator: Generator | None = None) -> None:
        super().__init__()
        self.p, self.generator = p, generator

    def forward(self, x: Tensor) -> Tensor: return rand_flip(x, self.p, self.generator)


class RandCrop(nn.Module):
    "`rand_crop` as a layer, active in training and in evaluation mode."
    def __init__(self, pad: int = 4, mode: str = 'reflect', fill: float | None = None,
                 generator: Generator | None = None) -> None:
        super().__init__()
        self.pad, self.mode, self.fill, self.generator = pad, mode, fill, generator

    def forward(self, x: Tensor) -> Tensor: return rand_crop(x, self.pad, self.mode, self.fill, self.generator)


class RandTranslate(nn.Module):
    "`rand_translate` as a layer, active in training and in evaluation mode."
    def __init__(self, most: float = 0.1, mode: str = 'constant', fill: float | None = None,
                 generator: Generator | None = None) -> None:
        super().__init__()
        self.most, self.mode, self.fill, self.generator = most, mode, fill, generator

    def forward(self, x: Tensor) -> Tensor: return rand_translate(x, self.most, self.mode, self.fill, self.generator)


class _RandPatches(nn.Module):
    def __init__(self, pct: float = 0.2, max_num: int = 4, generator: Generator | None = None) -> None:
        super().__init__()
        self.pct, self.max_num, self.generator = pct, max_num, generator


class RandErase(_RandPatches):
    "`rand_erase` as a layer, active in training and in evaluation mode."
    def forward(self, x: Tensor) -> Tensor: return rand_erase(x, self.pct, self.max_num, self.generator)


class RandCopy(_RandPatches):
    "`rand_copy` as a layer, active in training and in evaluation mode."
    def forward(self, x: Tensor) -> Tensor: return rand_copy(x, self.pct, self.max_num, self.generator)
