"The learning-rate finder: raise the rate with each batch until the loss explodes, and suggest a rate (Smith 2015)."
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from miniai.callbacks.dry_run import dry_run
from miniai.distributed.ranks import is_first
from miniai.events import Callback, CancelEpochException, CancelFitException

__all__ = ['LRFinderCB', 'lr_find', 'suggest_lr']


class LRFinderCB(Callback):
    """Multiplies the learning rate of every group by `gamma` after each batch that steps, and records `lrs` and
    `losses`. Stops the fit at a loss that is NaN or `max_mult` times the best, then plots loss over learning rate;
    `suggestion` is the suggested constant rate, and `peak` the suggested highest rate of a schedule that reaches it
    only briefly, such as one-cycle or cosine. The fit is a dry run: no checkpoints are saved."""
    _was_dry_run: bool | None = None  # None outside a fit

    def __init__(self, gamma: float = 1.3, max_mult: float = 3) -> None:
        if gamma <= 1: raise ValueError(f"LRFinderCB: gamma must be above 1, so that the rate rises, got {gamma}")
        self.gamma, self.max_mult, self.suggestion, self.peak, self.ax = gamma, max_mult, None, None, None
        self.lrs, self.losses, self.sched = [], [], None

    def before_fit(self, learn: Any) -> None:
        self._was_dry_run, learn.dry_run = getattr(learn, 'dry_run', False), True
        self.lrs, self.losses, self.suggestion, self.peak, self.best = [], [], None, None, math.inf
        trains = getattr(learn, 'trains', True)
        if trains and not isinstance(learn.opt, torch.optim.Optimizer):
            raise TypeError(f"LRFinderCB changes the learning rate of a torch.optim.Optimizer, and learn.opt is a "
                            f"{type(learn.opt).__name__}: use an optimizer of torch.optim or miniai.optim")
        self.sched = torch.optim.lr_scheduler.ExponentialLR(learn.opt, self.gamma) if trains else None

    def after_batch(self, learn: Any) -> None:
        if not learn.model.training: raise CancelEpochException()
        loss = float(learn.loss.detach())
        if getattr(learn, 'hold_step', False) and math.isfinite(loss): return
        self.lrs.append(float(learn.opt.param_groups[0]['lr']))
        self.losses.append(loss)
        self.best = min(self.best, loss)
        if not math.isfinite(loss) or loss > self.best + (self.max_mult - 1)*abs(self.best): raise CancelFitException()
        self.sched.step()

    def cleanup_fit(self, learn: Any) -> None:
        if self._was_dry_run is None: return
        learn.dry_run, self._was_dry_run = self._was_dry_run, None
        if self.sched is None or not self.losses: return
        self.sched = None
        self.suggestion, self.peak = (suggest_lr(self.lrs, self.losses, part) for part in (0.5, 0.95))
        self.ax = self.plot()

    def plot(self, ax: Any = None) -> Any:
        "Plot loss over learning rate, with both suggestions, on `ax`, by default a new axis. Returns the axis."
        if ax is None:
            from miniai.show.plots import subplots
            ax = subplots(figsize=(6, 4), layout='constrained')[1][0]
        ax.plot(self.lrs, self.losses)
        if self.suggestion:
            ax.axvline(self.suggestion, ls='--', color='C1', label=f'suggested: {self.suggestion:.1e}')
            ax.axvline(self.peak, ls='-.', color='C3', label=f'peak of a schedule: {self.peak:.1e}')
            ax.legend()
        ax.set(xscale='log', xlabel='learning rate', ylabel='loss')
        return ax


def suggest_lr(lrs: Sequence[float], losses: Sequence[float], part: float = 0.5) -> float | None:
    """The learning rate at which the smoothed loss has fallen by `part` of the way to its minimum. Half suits constant
    rates. A `part` near 1 gives the highest rate that still helps, which Smith (2015) uses as the peak of a cycle. None
    if the loss does not fall by more than its noise."""
    ok = np.isfinite(losses)
    x, raw = np.log(np.asarray(lrs)[ok]), np.asarray(losses)[ok]
    if len(raw) < 5: return None
    smooth = np.convolve(np.pad(raw, 2, mode='edge'), np.ones(5)/5, mode='valid')
    end = int(smooth.argmin()) + 1
    noise = np.std((raw - smooth)[:end])
    if end < 3 or smooth[0] - smooth[end - 1] <= 2*noise: return None
    fall = smooth[0] - smooth[:end]
    return float(np.exp(x[(fall >= part*fall[-1]).argmax()]))


def lr_find(self: Any, gamma: float = 1.3, max_mult: float = 3, start_lr: float = 1e-5,
            max_epochs: int = 10) -> float | None:
    """Train from `start_lr` on, multiplying the learning rate by `gamma` after each batch, until the loss explodes or
    `max_epochs` are over. Plots loss over learning rate and returns the suggested rate, None if the loss never fell.
    Schedules are left out. Afterwards model and optimizer are as they were."""
    finder = LRFinderCB(gamma=gamma, max_mult=max_mult)
    with dry_run(self, trains=True):
        self.cbs = [cb for cb in self.cbs if not callable(getattr(cb, 'sched', None))]
        for group in getattr(self.opt, 'param_groups', ()) if self.opt_func is None else (): group['lr'] = start_lr
        self.fit(max_epochs, valid=False, lr=start_lr, cbs=finder)
    if finder.suggestion is None and is_first():
        print(f"lr_find: no suggestion, because the loss never fell clearly from lr={start_lr:g} on. "
              f"Look at the curve. Is the model already trained?")
    return finder.suggestion
