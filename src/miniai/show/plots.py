"Plots with matplotlib: images, grids of images, and functions."
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

__all__ = ['subplots', 'get_grid', 'show_image', 'show_images', 'plot_func']


def subplots(nrows: int = 1, ncols: int = 1, figsize: tuple[float, float] | None = None, imsize: float = 3,
             suptitle: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
    """Like `plt.subplots`, with a figure of `imsize` inches per image unless `figsize` is given. The axes are always an
    array, even if there is only one."""
    import matplotlib.pyplot as plt
    fig, axs = plt.subplots(nrows, ncols, figsize=figsize or (ncols*imsize, nrows*imsize), **kwargs)
    if suptitle is not None: fig.suptitle(suptitle)
    return fig, axs if isinstance(axs, np.ndarray) else np.array([axs])


def get_grid(n: int, nrows: int | None = None, ncols: int | None = None, title: str | None = None, weight: str = 'bold',
             size: int = 14, **kwargs: Any) -> tuple[Any, Any]:
    """A figure and an array of axes for `n` images, as square as possible, with the unused axes switched off. `title`
    is the figure's, in `weight` and `size`; other arguments go to `subplots`. ValueError if `nrows` by `ncols` is too
    small."""
    if n < 1: raise ValueError(f"a grid needs at least one image, got n={n}")
    if nrows and ncols and nrows*ncols < n: raise ValueError(f"a grid of {nrows} by {ncols} has no room for {n} images")
    if not nrows and not ncols: nrows = round(math.sqrt(n))
    nrows = nrows or math.ceil(n / ncols)
    ncols = ncols or math.ceil(n / nrows)
    fig, axs = subplots(nrows, ncols, **kwargs)
    for ax in axs.flat[n:]: ax.set_axis_off()
    if title is not None: fig.suptitle(title, weight=weight, size=size)
    return fig, axs


def _as_pixels(im: Any) -> np.ndarray:
    "An array as imshow takes it: HWC, or HW for a single channel."
    is_tensor = isinstance(im, torch.Tensor)
    if is_tensor: im = (im.float() if im.is_floating_point() else im).detach().cpu().numpy()
    im = np.asarray(im)
    channels_first = im.ndim == 3 and im.shape[0] in (1, 3, 4) and (is_tensor or im.shape[-1] not in (1, 3, 4))
    if channels_first: im = im.transpose(1, 2, 0)
    return im[..., 0] if im.ndim == 3 and im.shape[-1] == 1 else im


def show_image(im: Any, ax: Any = None, figsize: tuple[float, float] | None = None, title: str | None = None,
               noframe: bool = True, **kwargs: Any) -> Any:
    """Draw an image on `ax`, by default a new one, and return the axis. `im` is a PIL image, an array or a tensor, CHW
    or HWC, with 1, 3 or 4 channels. `kwargs` are imshow's; images of one channel are gray unless they set `cmap`."""
    if ax is None: ax = subplots(figsize=figsize)[1][0]
    pixels = _as_pixels(im)
    ax.imshow(pixels, **(dict(cmap='gray') if pixels.ndim == 2 else {}) | kwargs)
    if title is not None: ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    if noframe: ax.axis('off')
    return ax


def show_images(ims: Sequence, nrows: int | None = None, ncols: int | None = None, titles: Iterable[str] | None = None,
                **kwargs: Any) -> None:
    "Draw the images `ims` in a grid, with their `titles` if given. Other arguments go to `get_grid`."
    axs, titles = get_grid(len(ims), nrows, ncols, **kwargs)[1], [] if titles is None else list(titles)
    for im, title, ax in zip_longest(ims, titles[:len(ims)], axs.flat[:len(ims)]):
        show_image(im, ax=ax, title=title)


def plot_func(f: Callable[[torch.Tensor], torch.Tensor], start: float = -5., end: float = 5., steps: int = 100) -> None:
    "Plot `f` at `steps` points from `start` to `end`, with lines for both axes."
    import matplotlib.pyplot as plt
    x = torch.linspace(start, end, steps)
    plt.plot(x.numpy(), f(x).detach().numpy())
    plt.grid(True, which='both', ls='--')
    plt.axhline(y=0, color='k', linewidth=0.7)
    plt.axvline(x=0, color='k', linewidth=0.7)
