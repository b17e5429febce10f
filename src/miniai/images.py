"Batches of images moved: each image mirrored or shifted by a draw of its own. Knows torch alone."
import random
from collections.abc import Callable
from numbers import Integral

import torch
from torch import Generator, Tensor, nn

__all__ = ['mirror', 'rand_flip', 'RandFlip', 'rand_crop', 'RandCrop', 'rand_translate', 'RandTranslate',
           'check_images']


def check_images(x: Tensor) -> None:
    "ValueError unless `x` is a batch of images, (N, C, H, W)."
    if x.ndim != 4: raise ValueError(f"a batch of images must have shape (N, C, H, W), got {tuple(x.shape)}")


def mirror(x: Tensor) -> Tensor:
    "The images `x` (N, C, H, W), each mirrored left to right."
    check_images(x)
    return x.flip(-1)


def rand_flip(x: Tensor, p: float = 0.5, generator: Generator | None = None) -> Tensor:
    """The images `x` (N, C, H, W) of any dtype, each mirrored left to right with probability `p`; a new tensor. Draws
    come from `generator`, by default torch's own for the device of `x`; one on that device spares a copy."""
    _check_share('p, the probability of a mirror image,', p)
    flipped = mirror(x)
    chosen = torch.rand(len(x), generator=generator, device=_home(x, generator)) < p
    return torch.where(chosen.to(x.device)[:, None, None, None], flipped, x)


def rand_crop(x: Tensor, pad: int = 4, mode: str = 'reflect', fill: float | None = None,
              generator: Generator | None = None) -> Tensor:
    """The images `x` (N, C, H, W) of any dtype, padded by `pad` pixels on all sides and each cropped to its old size at
    a place of its own, every place as likely; a new tensor. `mode` says what is beyond the edge: 'reflect' or
    'replicate' as in torch, or 'constant': `fill`, by default the channel's smallest value in the batch, which is black
    however images are normalised. Draws as in `rand_flip`. After He et al. 2015, section 4.2."""
    if not isinstance(pad, Integral) or pad < 0: raise ValueError(f"pad must be a whole number, 0 or more, got {pad!r}")
    check_images(x)
    return _moved(x, (pad, pad), mode, fill, generator)


def rand_translate(x: Tensor, most: float = 0.1, mode: str = 'constant', fill: float | None = None,
                   generator: Generator | None = None) -> Tensor:
    """The images `x` (N, C, H, W) of any dtype, each shifted by whole pixels of its own draw, at most `most` of the
    sides, every shift as likely; a new tensor. It is `rand_crop` measured in shares: `mode`, `fill` and draws are as
    there, and what moves in is black by default."""
    _check_share("most, the largest shift as a share of the image's sides,", most)
    check_images(x)
    return _moved(x, (int(most*x.shape[-2]), int(most*x.shape[-1])), mode, fill, generator)


def _home(x: Tensor, generator: Generator | None) -> torch.device:
    return x.device if generator is None else generator.device


def _check_share(what: str, share: float) -> None:
    if not 0 <= share <= 1: raise ValueError(f"{what} must be in [0, 1], got {share}")


def _reflected(i: Tensor, n: int) -> Tensor: return (n - 1) - ((n - 1) - i.abs()).abs()
def _nearest(i: Tensor, n: int) -> Tensor: return i.clamp(0, n - 1)


_BEYOND = dict(reflect=_reflected, replicate=_nearest, constant=_nearest)


def _check_mode(size: tuple[int, int], most: tuple[int, int], mode: str, fill: float | None) -> None:
    if mode not in _BEYOND: raise ValueError(f"mode must be one of {', '.join(_BEYOND)}, got {mode!r}")
    if fill is not None and mode != 'constant': raise ValueError(f"fill is for mode='constant', and mode is {mode!r}")
    if mode == 'reflect' and any(m >= n for m, n in zip(most, size, strict=True)):
        raise ValueError(f"mode 'reflect' shifts by less than a side, and images of {size[0]} by {size[1]} were to "
                         f"move by up to {most[0]} and {most[1]} pixels: allow less, or take mode='replicate'")


def _moved(x: Tensor, most: tuple[int, int], mode: str, fill: float | None, generator: Generator | None) -> Tensor:
    _check_mode(tuple(x.shape[-2:]), most, mode, fill)
    if not x.numel(): return x.clone()
    rows, cols = (_sources(x, n, m, generator) for n, m in zip(x.shape[-2:], most, strict=True))
    out = _picked(x, rows, cols, _BEYOND[mode])
    if mode == 'constant':
        black = x.amin((0, 2, 3), keepdim=True) if fill is None else x.new_full((), fill)
        inside = _inside(rows, x.shape[-2])[:, None, :, None] & _inside(cols, x.shape[-1])[:, None, None, :]
        out = torch.where(inside, out, black)
    return out.contiguous(memory_format=torch.channels_last) if _is_channels_last(x) else out


def _sources(x: Tensor, n: int, most: int, generator: Generator | None) -> Tensor:
    "For each image, from which of its `n` rows or columns each comes, (N, n): below 0, or n and more, beyond the edge."
    shift = torch.randint(-most, most + 1, (len(x), 1), generator=generator, device=_home(x, generator))
    return torch.arange(n, device=x.device) + shift.to(x.device)


def _picked(x: Tensor, rows: Tensor, cols: Tensor, beyond: Callable) -> Tensor:
    "The pixels of each image at its own rows (N, H) and columns (N, W), by one gather over flat images."
    n, c, h, w = x.shape
    places = beyond(rows, h)[:, :, None]*w + beyond(cols, w)[:, None, :]
    return x.flatten(2).gather(2, places.view(n, 1, h*w).expand(n, c, h*w)).view(x.shape)


def _inside(i: Tensor, n: int) -> Tensor: return (i >= 0) & (i < n)


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


class RandFlip(nn.Module):
    "`rand_flip` as a layer. It works in either mode: BatchTransformCB says in which phases."
    def __init__(self, p: float = 0.5, generator: Generator | None = None) -> None:
        super().__init__()
        self.p, self.generator = p, generator

    def forward(self, x: Tensor) -> Tensor: return rand_flip(x, self.p, self.generator)


class RandCrop(nn.Module):
    "`rand_crop` as a layer. It works in either mode: BatchTransformCB says in which phases."
    def __init__(self, pad: int = 4, mode: str = 'reflect', fill: float | None = None,
                 generator: Generator | None = None) -> None:
        super().__init__()
        self.pad, self.mode, self.fill, self.generator = pad, mode, fill, generator

    def forward(self, x: Tensor) -> Tensor: return rand_crop(x, self.pad, self.mode, self.fill, self.generator)


class RandTranslate(nn.Module):
    "`rand_translate` as a layer. It works in either mode: BatchTransformCB says in which phases."
    def __init__(self, most: float = 0.1, mode: str = 'constant', fill: float | None = None,
                 generator: Generator | None = None) -> None:
        super().__init__()
        self.most, self.mode, self.fill, self.generator = most, mode, fill, generator

    def forward(self, x: Tensor) -> Tensor: return rand_translate(x, self.most, self.mode, self.fill, self.generator)


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
