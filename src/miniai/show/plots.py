"Pictures of images and functions on matplotlib axes. Knows numpy and, once something is drawn, matplotlib."
import math
from collections.abc import Callable, Iterable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

__all__ = ['subplots', 'get_grid', 'show_image', 'show_images', 'plot_func']


def subplots(nrows: int = 1, ncols: int = 1, figsize: tuple[float, float] | None = None, imsize: float = 3,
             suptitle: str | None = None, **kwargs: Any) -> tuple[Any, Any]:
    """A figure and its axes as `plt.subplots` gives them, `imsize` inches an image unless `figsize` says otherwise.
    The axes are always an array, for a single image too."""
    import matplotlib.pyplot as plt
    fig, axs = plt.subplots(nrows, ncols, figsize=figsize or (ncols*imsize, nrows*imsize), **kwargs)
    if suptitle is not None: fig.suptitle(suptitle)
    return fig, axs if isinstance(axs, np.ndarray) else np.array([axs])


def get_grid(n: int, nrows: int | None = None, ncols: int | None = None, title: str | None = None, weight: str = 'bold',
             size: int = 14, **kwargs: Any) -> tuple[Any, Any]:
    """A figure and an array of axes with room for `n` images, as square as may be, the unused axes
    switched off. `title` heads the figure in `weight` and `size`; other arguments go to `subplots`.
    ValueError where `nrows` by `ncols` is too small."""
    nrows, ncols = _grid_shape(n, nrows, ncols)
    fig, axs = subplots(nrows, ncols, **kwargs)
    for ax in axs.flat[n:]: ax.set_axis_off()
    if title is not None: fig.suptitle(title, weight=weight, size=size)
    return fig, axs


def _grid_shape(n: int, nrows: int | None, ncols: int | None) -> tuple[int, int]:
    if n < 1: raise ValueError(f"a grid needs at least one image, got n={n}")
    if nrows and ncols and nrows*ncols < n: raise ValueError(f"a grid of {nrows} by {ncols} has no room for {n} images")
    if not nrows and not ncols: nrows = round(math.sqrt(n))
    nrows = nrows or math.ceil(n / ncols)
    return nrows, ncols or math.ceil(n / nrows)


def _as_image(im: Any) -> np.ndarray:
    tensor = isinstance(im, torch.Tensor)
    if tensor: im = (im.float() if im.is_floating_point() else im).detach().cpu().numpy()
    im = np.asarray(im)
    channels_first = im.ndim == 3 and im.shape[0] in (1, 3, 4) and (tensor or im.shape[-1] not in (1, 3, 4))
    if channels_first: im = im.transpose(1, 2, 0)
    return im[..., 0] if im.ndim == 3 and im.shape[-1] == 1 else im


def show_image(im: Any, ax: Any = None, figsize: tuple[float, float] | None = None, title: str | None = None,
               noframe: bool = True, **kwargs: Any) -> Any:
    """Draw `im` (PIL image, array, or tensor; CHW or HWC, with 1, 3 or 4 channels) on `ax`, a new one by default,
    and return the axis. `kwargs` are imshow's."""
    if ax is None: ax = subplots(figsize=figsize)[1][0]
    ax.imshow(_as_image(im), **kwargs)
    if title is not None: ax.set_title(title)
    ax.set_xticks([])
    ax.set_yticks([])
    if noframe: ax.axis('off')
    return ax


def show_images(ims: Sequence, nrows: int | None = None, ncols: int | None = None, titles: Iterable[str] | None = None,
                **kwargs: Any) -> None:
    "Draw every image of `ims` in a grid, with `titles` where given; other arguments go to `get_grid`."
    axs, titles = get_grid(len(ims), nrows, ncols, **kwargs)[1], [] if titles is None else list(titles)
    for im, title, ax in zip_longest(ims, titles[:len(ims)], axs.flat[:len(ims)]):
        show_image(im, ax=ax, title=title)


def plot_func(f: Callable[[torch.Tensor], torch.Tensor], start: float = -5., end: float = 5., steps: int = 100) -> None:
    "Draw `f` over `steps` points from `start` to `end`, with both axes through the origin."
    import matplotlib.pyplot as plt
    x = torch.linspace(start, end, steps)
    plt.plot(x.numpy(), f(x).detach().numpy())
    plt.grid(True, which='both', ls='--')
    plt.axhline(y=0, color='k', linewidth=0.7)
    plt.axvline(x=0, color='k', linewidth=0.7)
