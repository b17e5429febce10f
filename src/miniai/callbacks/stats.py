"""What happens inside the network: hooks for the length of a fit,
and statistics of activations with three pictures of them."""
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from miniai.device import first_tensor
from miniai.events import Callback
from miniai.hooks import Hook, Hooks
from miniai.plot import get_grid, show_image

__all__ = ['HooksCallback', 'append_stats', 'get_hist', 'get_min', 'ActivationStats']


def _every_module(m: nn.Module) -> bool: return True


class HooksCallback(Callback):
    """For the length of a fit, calls `hookfunc(hook, mod, inp, outp)` after the forward of each
    module that `mod_filter` accepts, or of `mods`. Iterating gives the hooks, which stay, with
    what they recorded, until the next fit."""
    def __init__(self, hookfunc: Callable[..., Any], mod_filter: Callable[[nn.Module], bool] = _every_module,
                 on_train: bool = True, on_valid: bool = False, mods: list[nn.Module] | None = None) -> None:
        self.hookfunc, self.mod_filter, self.mods = hookfunc, mod_filter, mods
        self.on_train, self.on_valid, self.hooks = on_train, on_valid, []

    def before_fit(self, learn: Any) -> None:
        mods = self.mods or [m for m in learn.model.modules() if self.mod_filter(m)]
        if not mods:
            warnings.warn(f"{type(self).__name__}: no module of the model passes mod_filter, so nothing is recorded",
                          stacklevel=2)
        self.hooks = Hooks(mods, partial(self._hookfunc, learn))

    def _hookfunc(self, learn: Any, *args: Any) -> None:
        if self.on_train if learn.training else self.on_valid: self.hookfunc(*args)

    def cleanup_fit(self, learn: Any) -> None:
        if self.hooks: self.hooks.remove()

    def __iter__(self) -> Iterator[Hook]: return iter(self.hooks)
    def __len__(self) -> int: return len(self.hooks)


@torch.no_grad()
def append_stats(hook: Hook, mod: nn.Module, inp: Any, outp: Any) -> None:
    """Append mean, standard deviation and a 40-bin histogram of abs(activation) from 0 to 10 to
    `hook.stats`, a triple of lists."""
    if not hasattr(hook, 'stats'): hook.stats = ([], [], [])
    acts = first_tensor(outp)
    if acts is None: return
    acts = acts.detach().float()
    for stat, value in zip(hook.stats, (acts.mean(), acts.std(), acts.abs().histc(40, 0, 10)), strict=True):
        stat.append(value)


def _histograms(h: Hook) -> Tensor: return torch.stack(h.stats[2]).t().float().cpu()


def get_hist(h: Hook) -> Tensor:
    "The log histogram of a hook's activations: 40 bins by batches."
    return _histograms(h).log1p()


def get_min(h: Hook) -> Tensor:
    "The share of a hook's activations in the lowest bin, a value a batch: how dead the layer is."
    hist = _histograms(h)
    return hist[0] / hist.sum(0)


class ActivationStats(HooksCallback):
    """Mean, standard deviation and histogram of the training activations of every module that passes
    `mod_filter`, and their pictures."""
    def __init__(self, mod_filter: Callable[[nn.Module], bool] = _every_module) -> None:
        super().__init__(append_stats, mod_filter)

    def _recorded(self) -> list[Hook]:
        hooks = [h for h in self if hasattr(h, 'stats')]
        if not hooks:
            raise ValueError("no activations recorded yet: train with this callback first, learn.fit(1, cbs=...)")
        return hooks

    def color_dim(self, figsize: tuple[float, float] = (11, 5)) -> None:
        """A panel a layer: batches from left to right, activations from 0 at the bottom to 10,
        brighter where there are more."""
        hooks = self._recorded()
        for h, ax in zip(hooks, get_grid(len(hooks), figsize=figsize)[1].flat, strict=False):
            show_image(get_hist(h), ax, origin='lower', aspect='auto')

    def dead_chart(self, figsize: tuple[float, float] = (11, 5)) -> None:
        "A panel a layer: the share of activations near zero, over the batches."
        hooks = self._recorded()
        for h, ax in zip(hooks, get_grid(len(hooks), figsize=figsize)[1].flat, strict=False):
            ax.plot(get_min(h))
            ax.set_ylim(0, 1)

    def plot_stats(self, figsize: tuple[float, float] = (10, 4)) -> None:
        "Means and standard deviations of every layer, over the batches."
        hooks = self._recorded()
        axs = get_grid(2, nrows=1, figsize=figsize)[1]
        for ax, title, i in zip(axs.flat, ('Means', 'Stdevs'), (0, 1), strict=True):
            for h in hooks: ax.plot(torch.stack(h.stats[i]).cpu())
            ax.set_title(title)
        axs.flat[1].legend(range(len(hooks)))
