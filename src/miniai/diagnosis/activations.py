"Callbacks that hook modules during a fit, and statistics of activations and their gradients with three pictures."
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count, groupby
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from miniai.device import first_tensor
from miniai.diagnosis.hooks import Hook, Hooks
from miniai.distributed.ranks import gathered, part, total_on_device, world
from miniai.events import Callback
from miniai.kernels.histogram import BINS, tally, tally_powers
from miniai.show.plots import get_grid

__all__ = ['HooksCallback', 'append_stats', 'append_gradient_stats', 'get_hist', 'get_min', 'ActivationStats']

Stats = tuple[list[Tensor], list[Tensor], list[Tensor]]  # means, standard deviations, histograms


def _every_module(m: nn.Module) -> bool: return True


class HooksCallback(Callback):
    """During a fit, calls `hookfunc(hook, mod, inp, outp)` after the forward pass of each module that `mod_filter`
    accepts, or of each module in `mods`. `hooks`, with what they recorded, and `names`, such as '0.2 GeneralRelu',
    are kept until the next fit. Iterating gives the hooks."""
    def __init__(self, hookfunc: Callable[..., Any], mod_filter: Callable[[nn.Module], bool] = _every_module,
                 on_train: bool = True, on_valid: bool = False, mods: list[nn.Module] | None = None) -> None:
        self.hookfunc, self.mod_filter, self.mods = hookfunc, mod_filter, mods
        self.on_train, self.on_valid, self.hooks, self.names = on_train, on_valid, [], []

    def before_fit(self, learn: Any) -> None:
        names = {m: name for name, m in learn.model.named_modules()}
        mods = self.mods or [m for m in names if self.mod_filter(m)]
        if not mods:
            warnings.warn(f"{type(self).__name__}: mod_filter accepts no module of the model, so nothing is recorded",
                          stacklevel=2)
        self.names = [f'{names.get(m, "")} {type(m).__name__}'.strip() for m in mods]
        self.hooks = Hooks(mods, partial(self._call, learn))

    def _call(self, learn: Any, *args: Any) -> None:
        if self.on_train if learn.model.training else self.on_valid: self.hookfunc(*args)

    def cleanup_fit(self, learn: Any) -> None:
        if self.hooks: self.hooks.remove()

    def __iter__(self) -> Iterator[Hook]: return iter(self.hooks)
    def __len__(self) -> int: return len(self.hooks)

    def __repr__(self) -> str:
        n = len(self.names)
        names = ': ' + ', '.join([*self.names[:3], '...'][:n]) if n else ''
        return f'<{type(self).__name__} on {n} module{"s"*(n != 1)}{names}>'


def append_stats(hook: Hook, mod: nn.Module, inp: Any, outp: Any) -> None:
    """Append mean, standard deviation and a histogram of abs(activation), 40 bins from 0 to 10, to `hook.stats`, a
    triple of lists. Uses the first tensor of the output; without one, appends nothing."""
    acts = first_tensor(outp)
    if acts is not None: _keep(hook, 'stats', tally, acts.detach())


def append_gradient_stats(hook: Hook, mod: nn.Module, inp: Any, outp: Any) -> None:
    """When the gradient of the output arrives, append its mean, standard deviation and a histogram of abs(gradient) to
    `hook.gradient_stats`, a triple of lists. The histogram has a bin for each power of two from 2**-32 to 2**7."""
    acts = first_tensor(outp)
    if acts is None or not acts.requires_grad: return
    acts.register_hook(lambda g: _keep(hook, 'gradient_stats', tally_powers, g.detach()))


def _keep(hook: Hook, name: str, tally: Callable, x: Tensor) -> None:
    "Append the figures of `x` to the lists `name`; on several processes ActivationStats keeps them as those of a part."
    if not hasattr(hook, 'pool'): hook.pool = _TensorPool()
    keep_part = getattr(hook, 'keep_part', None)
    if keep_part is None: _append(hook, name, hook.pool.copy(tally(x)))
    else: keep_part(name, x.numel(), hook.pool.copy(tally(x if name == 'stats' else x/part()[1])))


def _append(hook: Hook, name: str, values: Iterable[Tensor]) -> None:
    if not hasattr(hook, name): setattr(hook, name, ([], [], []))
    for column, value in zip(getattr(hook, name), values, strict=True): column.append(value)


class _TensorPool:
    """Copies groups of small tensors of the same sizes into shared blocks of memory. Small tensors allocated one by one
    between large activations fragment the heap: up to 0.3 MiB per group."""
    _GROUPS_PER_BLOCK = 256
    def __init__(self) -> None: self.block, self.used = torch.empty(0, 0), 0

    def copy(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        sizes = [x.numel() for x in tensors]
        if self.used == len(self.block):
            self.block, self.used = tensors[0].new_empty(self._GROUPS_PER_BLOCK, sum(sizes)), 0
        row, self.used = self.block[self.used], self.used + 1
        return tuple(part.view_as(x).copy_(x) for part, x in zip(row.split(sizes), tensors, strict=True))


def _stack(values: list[Tensor]) -> Tensor:
    """The values as one tensor on the CPU, with one copy per device: after a resume, the first ones are on the CPU and
    the rest on the accelerator."""
    return torch.cat([torch.stack([*part]).cpu() for _, part in groupby(values, attrgetter('device'))])


def _histograms(stats: Stats) -> Tensor: return _stack(stats[2]).t().float()


def _lowest_bin(stats: Stats) -> Tensor:
    hist = _histograms(stats)
    return hist[0] / hist.sum(0)


def _joined(parts: dict[tuple, tuple[int, Stats]]) -> Iterator[tuple[tuple, Iterable[Tensor]]]:
    """Figures of whole batches, in order of their keys, from the parts that all processes have by the same keys: of how
    many numbers, mean, standard deviation and histogram."""
    keys = sorted(set().union(*gathered(list(parts))))
    if not keys: return
    sums, own = torch.zeros(len(keys), 3 + BINS, dtype=torch.float64), [k in parts for k in keys]
    if parts:
        ns, values = zip(*(parts[k] for k in keys if k in parts), strict=True)
        n, (mean, std, hist) = torch.tensor(ns).double(), (_stack(x).double() for x in zip(*values, strict=True))
        moments = torch.stack([n, n*mean, (n - 1)*std**2 + n*mean**2], 1)
        sums[torch.tensor(own)] = torch.cat([moments, hist], 1)
    n, total, squares = total_on_device(sums)[:, :3].T
    mean = total/n
    # Processes that share a part of the data, as with tensor parallelism, count as one.
    std = ((squares - total*mean).clamp(min=0) / (n - world()/part()[1]).clamp(min=1)).sqrt()
    figures = torch.cat([torch.stack([mean, std], 1), sums[:, 3:]*part()[1]/world()], 1).float()
    for k, row in zip(keys, figures, strict=True): yield k, (row[0], row[1], row[2:])


def get_hist(h: Hook) -> Tensor:
    "The log1p histograms of a hook's activations, (40 bins, batches)."
    return _histograms(h.stats).log1p()


def get_min(h: Hook) -> Tensor:
    "The fraction of a hook's activations in the lowest bin, (batches,): near 1 for a dead layer."
    return _lowest_bin(h.stats)


class ActivationStats(HooksCallback):
    """Mean, standard deviation and histogram of the training activations of each module that `mod_filter` accepts, for
    every `every`-th batch, and pictures of them. With `gradients`, also those of the activations' gradients, which the
    pictures show with `of='gradients'`. Complex numbers count by their absolute value. Forward passes that
    torch.utils.checkpoint repeats during the backward pass are not recorded again. On several processes the statistics
    are those of all their data, put together at the end of each epoch."""
    only_shows = True
    def __init__(self, mod_filter: Callable[[nn.Module], bool] = _every_module, every: int = 1,
                 gradients: bool = False) -> None:
        if every < 1: raise ValueError(f"every must be 1 or more batches, got {every}")
        super().__init__(self._record, mod_filter)
        self.every, self.gradients = every, gradients
        self._parts, self._batch = {}, 0  # what was recorded in this epoch of parts of batches, and of which batch

    def before_fit(self, learn: Any) -> None:
        super().before_fit(learn)
        self._parts = {}
        for i, h in enumerate(self.hooks if world() > 1 else ()): h.keep_part = partial(self._keep_part, i)

    def _call(self, learn: Any, *args: Any) -> None:
        self._batch = learn.iter or 0
        if self._batch % self.every == 0 and getattr(learn, 'counts', True): super()._call(learn, *args)

    def _keep_part(self, i: int, name: str, n: int, values: tuple[Tensor, ...]) -> None:
        turn = next(k for k in count() if (self._batch, i, name, k) not in self._parts)
        if n: self._parts[self._batch, i, name, turn] = n, values

    def join_parts(self) -> None:
        "On several processes, put their parts of batches together: see TogetherCB."
        for (_, i, name, _), values in _joined(self._parts): _append(self.hooks[i], name, values)
        self._parts = {}

    def _record(self, *args: Any) -> None:
        repeated_in_backward = torch._C._current_graph_task_id() != -1  # as torch.utils.checkpoint does
        if not repeated_in_backward: append_stats(*args)
        if self.gradients: append_gradient_stats(*args)

    def state_dict(self) -> dict[str, Any]:
        "What the hooks have recorded so far."
        return dict(hooks=[{nm: [_stack(column) for column in getattr(h, nm)]
                            for nm in ('stats', 'gradient_stats') if hasattr(h, nm)} for h in self])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Continue from the records in `state`. Raises ValueError if they are of a different number of modules."
        if len(state['hooks']) != len(self):
            raise ValueError(f"statistics of {len(state['hooks'])} modules were saved, but {len(self)} are hooked now")
        for h, records in zip(self, state['hooks'], strict=True):
            for nm, columns in records.items(): setattr(h, nm, tuple(map(list, columns)))

    def color_dim(self, figsize: tuple[float, float] = (11, 5), of: str = 'activations') -> None:
        """A panel per layer with a histogram per batch, brighter where there are more values: of abs(activation) from 0
        to 10, or of abs(gradient) from 2**-32 to 2**8 on a log scale."""
        ylabel, low, high = ('log2 |gradient|', -32, 8) if of == 'gradients' else ('|activation|', 0, 10)
        for stats, ax in self._panels(figsize, of, ylabel):
            hist = _histograms(stats).log1p().numpy()
            ax.imshow(hist, origin='lower', aspect='auto', cmap='viridis', extent=(0, hist.shape[1], low, high))

    def dead_chart(self, figsize: tuple[float, float] = (11, 5), of: str = 'activations') -> None:
        "A panel per layer: the fraction of activations below 0.25, or of gradients below 2**-31, in each batch."
        for stats, ax in self._panels(figsize, of, f'fraction of {of} near 0'):
            fraction = _lowest_bin(stats).numpy()
            line, = ax.plot(fraction, clip_on=False, zorder=3)  # not cut off at 0 and 1, and above the frame
            ax.fill_between(range(len(fraction)), fraction, color=line.get_color(), alpha=.3, lw=0)
            ax.set(ylim=(0, 1), xmargin=0)

    def plot_stats(self, figsize: tuple[float, float] = (10, 4), of: str = 'activations') -> None:
        "Mean and standard deviation of each layer in each batch. The darkest line is the first layer."
        import matplotlib.pyplot as plt
        recorded = self._recorded(of)
        fig, axs = get_grid(2, nrows=1, figsize=figsize, layout='constrained')
        colors = plt.get_cmap('viridis')(torch.linspace(0, .85, len(recorded)).numpy())
        for i, (ax, title) in enumerate(zip(axs.flat, ('Means', 'Stdevs'), strict=True)):
            for (_, stats), color in zip(recorded, colors, strict=True): ax.plot(_stack(stats[i]), color=color, lw=1)
            ax.set_title(title)
        if of == 'gradients': axs.flat[1].set_yscale('log')
        self._label_batches(fig, axs.flat)
        fig.legend(axs.flat[0].lines, [name for name, _ in recorded], loc='outside right upper', fontsize='small',
                   ncols=math.ceil(len(recorded)/16))

    def _panels(self, figsize: tuple[float, float], of: str, ylabel: str) -> Iterator[tuple[Stats, Any]]:
        "The statistics of each layer and the axes to draw them on, with titles and labels."
        recorded = self._recorded(of)
        fig, axs = get_grid(len(recorded), figsize=figsize, layout='constrained')
        for (name, stats), ax in zip(recorded, axs.flat, strict=False):
            ax.set_title(name, fontsize='medium')
            yield stats, ax
        fig.supylabel(ylabel)
        self._label_batches(fig, axs.flat[:len(recorded)])

    def _label_batches(self, fig: Any, axs: Any) -> None:
        for ax in axs: ax.xaxis.get_major_locator().set_params(integer=True)
        fig.supxlabel('batch' if self.every == 1 else f'record (one every {self.every} batches)')

    def _recorded(self, of: str) -> list[tuple[str, Stats]]:
        "The name and statistics of each module that recorded any."
        attribute = dict(activations='stats', gradients='gradient_stats').get(of)
        if attribute is None: raise ValueError(f"of must be 'activations' or 'gradients', got {of!r}")
        found = [(name, getattr(h, attribute)) for name, h in zip(self.names, self, strict=True)
                 if hasattr(h, attribute)]
        if found: return found
        if of == 'gradients' and not self.gradients:
            raise ValueError("no gradients recorded: train with ActivationStats(..., gradients=True)")
        raise ValueError(f"no {of} recorded yet: train with this callback first, learn.fit(1, cbs=...)")
