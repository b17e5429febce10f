"Pictures as inputs: files, PIL images and arrays, brought to one size and number of channels."
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.data.memory import MemoryLoader
from miniai.data.picture_files import PictureError, labelled_files, opened, picture_files
from miniai.data.picture_rows import PictureRows
from miniai.data.recipe import Recipe
from miniai.show.plots import show_images

__all__ = ['PictureRecipe', 'recipe_of']

_MOST_CLASSES = 10_000  # larger integers are no places of classes
_FEW = 64  # more files are decoded by several threads, a batch at a time


class PictureRecipe(Recipe):
    """Inputs from pictures: turned upright, resized by their shorter side and cropped in the middle to `size` (height,
    width), or with `fit='squash'` resized to it whatever their shape; gray if `channels` is 1, else color. They are
    kept as uint8, (H, W) or (3, H, W), and scaled by `mean` and `std`, numbers from 0 to 1, one for each channel."""
    kind = 'pictures'
    def __init__(self, size: int | Sequence[int], channels: int = 3, fit: str = 'crop', mean: Any = None,
                 std: Any = None, **targets: Any) -> None:
        if fit not in ('crop', 'squash'): raise ValueError(f"fit must be 'crop' or 'squash', got {fit!r}")
        if channels not in (1, 3): raise ValueError(f"channels must be 1 for gray or 3 for color, got {channels}")
        self.size, self.channels, self.fit = _checked_size(size), channels, fit
        self.mean, self.std = mean, std
        row = self.size if channels == 1 else (3, *self.size)
        super().__init__([row], ['uint8'], [dict(mean=mean, std=std)], **targets)

    def read(self, x: Any) -> tuple[list[Tensor], bool]:
        """The rows that a MemoryLoader would keep, as uint8, and whether `x` was one picture: a path, a PIL image, an
        array (H, W), (H, W, C) or (C, H, W). Many are a list or what else has them one after the other, a folder, or
        an array of 4 dimensions or of such rows."""
        pictures, single = self._listed(x)
        if not len(pictures): raise PictureError("there are no pictures to read")
        if len(pictures) > _FEW and all(isinstance(p, str | PathLike) for p in pictures):
            return [self.rows([Path(p) for p in pictures], keep=False)], single
        return [torch.from_numpy(np.stack([self.decode(p) for p in pictures]))], single

    def _listed(self, x: Any) -> tuple[Sequence, bool]:
        if isinstance(x, str | PathLike): return (picture_files(x), False) if Path(x).is_dir() else ([x], True)
        if not hasattr(x, 'ndim'): return (list(x), False) if _is_many(x) else ([x], True)
        if x.ndim == 1 and getattr(x.dtype, 'kind', 'O') not in 'biuf': return x.tolist(), False  # a Series of paths
        return (x, False) if x.ndim == 4 or tuple(x.shape[1:]) == self.shapes[0] else ([x], True)

    def rows(self, files: Sequence[Path], keep: bool = True, workers: int | None = None) -> PictureRows:
        "The pictures in `files` as rows of a MemoryLoader, decoded when first needed."
        return PictureRows(files, self.decode, self.shapes[0], keep, workers)

    def decode(self, x: Any) -> np.ndarray:
        """One picture, a path, open file, PIL image or array, as an array of the recipe's size. PictureError if it
        cannot be read."""
        from PIL import Image
        if hasattr(x, 'ndim'): return self._sized(_from_array(x))
        if isinstance(x, Image.Image): return self._sized(x)
        if not isinstance(x, str | PathLike) and not hasattr(x, 'read'):
            raise PictureError(f"an object of type {type(x).__name__} is not a picture: give a path, a PIL image or an "
                               f"array")
        with opened(x) as im:
            side = max(self.size)
            im.draft(None, (side, side))  # a JPEG is decoded at a half, a quarter or an eighth if that is large enough
            return self._sized(im)

    def _sized(self, im: Any) -> np.ndarray:
        from PIL import Image, ImageOps
        mode, (h, w) = 'L' if self.channels == 1 else 'RGB', self.size
        im = ImageOps.exif_transpose(im)
        if im.mode.startswith('I'):  # 16 bits
            im = Image.fromarray((np.asarray(im)/257).round().clip(0, 255).astype(np.uint8))
        if im.has_transparency_data: im = _on_white(im)
        if im.mode != mode: im = im.convert(mode)
        if im.size != (w, h):
            how = Image.Resampling.BILINEAR
            im = im.resize((w, h), how) if self.fit == 'squash' else ImageOps.fit(im, (w, h), how)
        return np.asarray(im) if mode == 'L' else np.asarray(im).transpose(2, 0, 1)

    def test(self, x: Any, y: Any = None, bs: int = 256, device: Any = None) -> Any:
        """A loader of other pictures, prepared as the training data were. A folder with one folder per class has the
        targets; one with pictures alone has none."""
        if y is not None or not isinstance(x, str | PathLike) or not Path(x).is_dir():
            return super().test(x, y, bs, device)
        files = picture_files(x)
        rows = self.rows(files, keep=False)
        if not self.classes or all(p.parent == Path(x) for p in files): return self.loader([rows], bs, device)
        return self.loader([rows, self.target([nm for _, nm in labelled_files(Path(x))])], bs, device)

    def show(self, kept: Sequence[Tensor], targets: Tensor, **kwargs: Any) -> None:
        "Draw pictures as they are kept, each with its class or number. `kwargs` go to `show_images`."
        titles = [self.classes[t] if self.classes else f'{t:.4g}' for t in targets.tolist()]
        show_images(list(kept[0]), titles=titles, **kwargs)

    @property
    def facts(self) -> dict[str, Any]:
        return dict(channels=self.channels, outputs=len(self.classes) if self.classes else 1)

    def to_dict(self) -> dict[str, Any]:
        return dict(kind=self.kind, size=list(self.size), channels=self.channels, fit=self.fit, mean=self.mean,
                    std=self.std) | self.targets


def _checked_size(size: Any) -> tuple[int, int]:
    h, w = size if isinstance(size, list | tuple) and len(size) == 2 else (size, size)
    if all(isinstance(n, Integral) and n > 0 for n in (h, w)): return int(h), int(w)
    raise ValueError(f"size must be a number of pixels, or a height and a width, got {size!r}")


def _is_many(x: Any) -> bool:
    "Whether `x` is pictures: anything to iterate over that is not one picture itself."
    from PIL import Image
    return isinstance(x, Iterable) and not isinstance(x, Image.Image | bytes | Mapping) and not hasattr(x, 'read')


def _from_array(x: Any) -> Any:
    "A PIL image from an array or tensor: (H, W), (H, W, C) or (C, H, W); uint8, or floats from 0 to 1."
    from PIL import Image
    a = x.numpy(force=True) if isinstance(x, Tensor) else np.asarray(x)
    if not a.size: raise PictureError(f"an array of shape {tuple(a.shape)} has no pixels")
    if a.dtype.kind == 'f' and a.size and a.min() >= 0 and a.max() <= 1: a = (a*255).round().astype(np.uint8)
    if a.dtype != np.uint8:
        raise PictureError(f"an array must hold uint8, or floats from 0 to 1, to be a picture; got {a.dtype}")
    if a.ndim == 3 and a.shape[2] not in (1, 3, 4) and a.shape[0] in (1, 3, 4): a = a.transpose(1, 2, 0)
    if a.ndim == 3 and a.shape[2] == 1: a = a[:, :, 0]
    if a.ndim != 2 and not (a.ndim == 3 and a.shape[2] in (3, 4)):
        raise PictureError(f"an array of shape {tuple(a.shape)} is not a picture: give (H, W), (H, W, 3) or (3, H, W)")
    return Image.fromarray(np.ascontiguousarray(a))


def _on_white(im: Any) -> Any:
    "A picture with transparent parts, on a white background."
    from PIL import Image
    im = im.convert('RGBA')
    return Image.alpha_composite(Image.new('RGBA', im.size, 'white'), im).convert('RGB')


def recipe_of(dl: MemoryLoader, classes: Any = None) -> Recipe:
    "The recipe of a loader of arrays. Pixels of one or three channels are pictures."
    scalings = [dict(channels_last=last) | (dict(mean=s.mean.tolist(), std=s.std.tolist()) if s.normalises else {})
                for s, last in zip((dl.scaling, *dl.other_scalings), dl.channels_last, strict=False)]
    x, targets = dl.tensors[0], dl.tensors[dl.n_inp:]
    if classes is None and len(targets) == 1 and targets[0].ndim == 1 and dl.dtypes[-1] == torch.int64 and dl.n:
        n = int(targets[0].max()) + 1
        classes = range(n) if n <= _MOST_CLASSES else None
    gray, color = x.ndim == 3 or (x.ndim == 4 and x.shape[1] == 1), x.ndim == 4 and x.shape[1] == 3
    if dl.n_inp == 1 and dl.scaling.pixels and (gray or color):
        return PictureRecipe(x.shape[-2:], 3 if color else 1, mean=scalings[0].get('mean'), std=scalings[0].get('std'),
                             classes=classes)
    shapes = [(*t.shape[2:], t.shape[1]) if last else t.shape[1:]
              for t, last in zip(dl.tensors[:dl.n_inp], dl.channels_last, strict=True)]
    return Recipe(shapes, [str(d).removeprefix('torch.') for d in dl.dtypes[:dl.n_inp]], scalings, classes)
