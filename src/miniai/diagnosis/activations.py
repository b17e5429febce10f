"""What happens inside the network: hooks for the length of a fit,
and statistics of activations with three pictures of them."""
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from miniai.device import first_tensor
from miniai.diagnosis.hooks import Hook, Hooks
from miniai.events import Callback
from miniai.kernels.histogram import tally, tally_powers
from miniai.show.plots import get_grid, show_image

__all__ = ['HooksCallback', 'append_stats', 'append_gradient_stats', 'get_hist', 'get_min', 'ActivationStats']


_RECORDS = ('stats', 'gradient_stats')


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


def append_stats(hook: Hook, mod: nn.Module, inp: Any, outp: Any) -> None:
    """Append mean, standard deviation and a 40-bin histogram of abs(activation) from 0 to 10 to
    `hook.stats`, a triple of lists."""
    acts = first_tensor(outp)
    _append(hook, 'stats', () if acts is None else tally(acts.detach()))


def append_gradient_stats(hook: Hook, mod: nn.Module, inp: Any, outp: Any) -> None:
    """For an output with a gradient to come: append that gradient's mean, standard deviation and histogram of
    abs(gradient), 40 bins of a power of two from 2**-32, to `hook.gradient_stats`, a triple of lists."""
    acts = first_tensor(outp)
    if acts is None or not acts.requires_grad: return
    acts.register_hook(lambda g: _append(hook, 'gradient_stats', tally_powers(g.detach())))


def _append(hook: Hook, name: str, figures: tuple[Tensor, ...]) -> None:
    if not hasattr(hook, name): setattr(hook, name, ([], [], []))
    if figures: figures = vars(hook).setdefault('blocks', Blocks()).copies(figures)
    for record, figure in zip(getattr(hook, name), figures, strict=False): record.append(figure)


class Blocks:
    """Copies of small tensors, many in one block of memory. Kept each on its own, among activations that come and go,
    they break up the heap, so that none of the large ones fits where another was: 0.3 MiB a record were seen."""
    _ROWS = 256
    def __init__(self) -> None: self.block, self.used = torch.empty(0, 0), 0

    def copies(self, figures: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        "Each of `figures` in memory of the block, of its own shape."
        sizes = [x.numel() for x in figures]
        if self.used == len(self.block): self.block, self.used = figures[0].new_empty(self._ROWS, sum(sizes)), 0
        row, self.used = self.block[self.used], self.used + 1
        return tuple(at.view_as(x).copy_(x) for at, x in zip(row.split(sizes), figures, strict=True))


def _histograms(stats: tuple[list, list, list]) -> Tensor: return _stacked(stats[2]).t().float()


def _stacked(figures: list[Tensor]) -> Tensor:
    "Figures as one tensor on the CPU, read from each device at once; those of a run gone on with came from the CPU."
    return torch.cat([torch.stack([*part]).cpu() for _, part in groupby(figures, attrgetter('device'))])


def get_hist(h: Hook) -> Tensor:
    "The log histogram of a hook's activations: 40 bins by batches."
    return _histograms(h.stats).log1p()


def get_min(h: Hook) -> Tensor:
    "The share of a hook's activations in the lowest bin, a value a batch: how dead the layer is."
    return _lowest(h.stats)


def _columns(stats: tuple[list, list, list]) -> list: return [_stacked(figures) if figures else [] for figures in stats]


def _lowest(stats: tuple[list, list, list]) -> Tensor:
    hist = _histograms(stats)
    return hist[0] / hist.sum(0)


class ActivationStats(HooksCallback):
    """Mean, standard deviation and histogram of the training activations of every module that passes `mod_filter`, in
    every `every`-th batch, and their pictures. With `gradients`, of the gradients of those activations too; a
    picture of these is asked for by `of='gradients'`. Complex numbers count by their size. A forward that
    torch.utils.checkpoint runs again, in the backward, is not recorded again."""
    def __init__(self, mod_filter: Callable[[nn.Module], bool] = _every_module, every: int = 1,
                 gradients: bool = False) -> None:
        if every < 1: raise ValueError(f"every, the number of batches from one record to the next, must be 1 or more, "
                                       f"got {every}")
        super().__init__(self._record, mod_filter)
        self.every, self.gradients, self._in_backward = every, gradients, False

    def after_loss(self, learn: Any) -> None:
        if not learn.training or not getattr(learn.loss, 'requires_grad', False): return
        learn.loss.register_hook(self._backward_begins)

    def _backward_begins(self, grad: Tensor) -> None: self._in_backward = True
    def cleanup_batch(self, learn: Any) -> None: self._in_backward = False

    def _hookfunc(self, learn: Any, *args: Any) -> None:
        if (learn.iter or 0) % self.every == 0: super()._hookfunc(learn, *args)

    def _record(self, *args: Any) -> None:
        if not self._in_backward: append_stats(*args)
        if self.gradients: append_gradient_stats(*args)

    def state_dict(self) -> dict[str, Any]:
        "What the hooks have recorded so far."
        return dict(hooks=[{nm: _columns(getattr(h, nm)) for nm in _RECORDS if hasattr(h, nm)} for h in self])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave. ValueError where it is of another number of modules."
        if len(state['hooks']) != len(self):
            raise ValueError(f"statistics of {len(state['hooks'])} modules were saved, and here are {len(self)}")
        for h, records in zip(self, state['hooks'], strict=True):
            for nm, columns in records.items(): setattr(h, nm, tuple(map(list, columns)))

    def _recorded(self, of: str) -> list[tuple[list, list, list]]:
        name = dict(activations='stats', gradients='gradient_stats').get(of)
        if name is None: raise ValueError(f"of must be 'activations' or 'gradients', got {of!r}")
        found = [getattr(h, name) for h in self if hasattr(h, name)]
        if found: return found
        if of == 'gradients' and not self.gradients:
            raise ValueError("no gradients recorded: train with ActivationStats(…, gradients=True)")
        raise ValueError(f"no {of} recorded yet: train with this callback first, learn.fit(1, cbs=...)")

    def color_dim(self, figsize: tuple[float, float] = (11, 5), of: str = 'activations') -> None:
        """A panel a layer: batches from left to right, activations from 0 at the bottom to 10, or gradients from
        2**-32 by powers of two to 2**8, brighter where there are more."""
        for stats, ax in self._panels(figsize, of):
            show_image(_histograms(stats).log1p(), ax, origin='lower', aspect='auto', cmap='viridis')

    def dead_chart(self, figsize: tuple[float, float] = (11, 5), of: str = 'activations') -> None:
        "A panel a layer: the share of activations, or gradients, near zero, over the batches."
        for stats, ax in self._panels(figsize, of):
            ax.plot(_lowest(stats))
            ax.set_ylim(0, 1)

    def _panels(self, figsize: tuple[float, float], of: str) -> Iterator[tuple]:
        recorded = self._recorded(of)
        return zip(recorded, get_grid(len(recorded), figsize=figsize)[1].flat, strict=False)

    def plot_stats(self, figsize: tuple[float, float] = (10, 4), of: str = 'activations') -> None:
        "Means and standard deviations of every layer, over the batches."
        recorded = self._recorded(of)
        axs = get_grid(2, nrows=1, figsize=figsize)[1]
        for ax, title, i in zip(axs.flat, ('Means', 'Stdevs'), (0, 1), strict=True):
            for stats in recorded: ax.plot(_stacked(stats[i]))
            ax.set_title(title)
        axs.flat[1].legend(range(len(recorded)))
