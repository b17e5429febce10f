"""The learning-rate finder: raise the rate each batch until the loss explodes, draw the curve,
suggest a rate (Smith 2015)."""
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from miniai.callbacks.dry_run import as_it_was
from miniai.events import Callback, CancelEpochException, CancelFitException

__all__ = ['LRFinderCB', 'lr_find', 'suggest_lr']


class LRFinderCB(Callback):
    """Multiplies the learning rate of every group by `gamma` after each batch that steps, records `lrs` and `losses`,
    and stops the fit at a loss that is NaN or `max_mult` times the best. At the end it draws loss over rate;
    `suggestion` is the rate it suggests."""
    def __init__(self, gamma: float = 1.3, max_mult: float = 3) -> None:
        if gamma <= 1: raise ValueError(f"gamma must be above 1, so that the rate rises, got {gamma}")
        self.gamma, self.max_mult, self.suggestion, self.ax = gamma, max_mult, None, None
        self.lrs, self.losses, self.sched = [], [], None

    def before_fit(self, learn: Any) -> None:
        self.lrs, self.losses, self.suggestion, self.best = [], [], None, math.inf
        if learn.trains and not isinstance(learn.opt, torch.optim.Optimizer):
            raise TypeError(f"the rate finder needs a torch.optim.Optimizer, whose rate it can move, and the optimizer "
                            f"is a {type(learn.opt).__name__}: those of miniai.optim are such")
        self.sched = torch.optim.lr_scheduler.ExponentialLR(learn.opt, self.gamma) if learn.trains else None

    def after_batch(self, learn: Any) -> None:
        if not learn.training: raise CancelEpochException()
        loss = float(learn.loss.detach())
        if learn.hold_step and math.isfinite(loss): return
        self.lrs.append(float(learn.opt.param_groups[0]['lr']))
        self.losses.append(loss)
        self.best = min(self.best, loss)
        if not math.isfinite(loss) or loss > self.best + (self.max_mult - 1)*abs(self.best): raise CancelFitException()
        self.sched.step()

    def cleanup_fit(self, learn: Any) -> None:
        if self.sched is None or not self.losses: return
        self.sched = None
        self.suggestion = suggest_lr(self.lrs, self.losses)
        self.ax = self.plot()

    def plot(self, ax: Any = None) -> Any:
        "Draw loss over learning rate, with the suggestion, on `ax`, by default a new one; return the axis."
        if ax is None:
            from miniai.show.plots import subplots
            ax = subplots(figsize=(6, 4), layout='constrained')[1][0]
        ax.plot(self.lrs, self.losses)
        if self.suggestion: ax.axvline(self.suggestion, ls='--', color='C1', label=f'suggested: {self.suggestion:.1e}')
        if self.suggestion: ax.legend()
        ax.set(xscale='log', xlabel='learning rate', ylabel='loss')
        return ax


def suggest_lr(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """The rate at which the smoothed loss falls most steeply over log rate, before its minimum.
    None where it does not fall by more than its own noise."""
    ok = np.isfinite(losses)
    x, raw = np.log(np.asarray(lrs)[ok]), np.asarray(losses)[ok]
    if len(raw) < 5: return None
    smooth = _smoothed(raw)
    upto = int(smooth.argmin()) + 1
    noise = np.std((raw - smooth)[:upto])
    if upto < 3 or smooth[0] - smooth[upto - 1] <= 2*noise: return None
    return float(np.exp(x[np.gradient(smooth[:upto], x[:upto]).argmin()]))


def _smoothed(y: np.ndarray, width: int = 5) -> np.ndarray:
    return np.convolve(np.pad(y, width//2, mode='edge'), np.ones(width)/width, mode='valid')


def lr_find(self: Any, gamma: float = 1.3, max_mult: float = 3, start_lr: float = 1e-5,
            max_epochs: int = 10) -> float | None:
    """Raise the learning rate from `start_lr` by `gamma` a batch, for at most `max_epochs`, until the loss explodes;
    draw loss over rate and return the suggested rate, None where the loss never fell. Schedules are left out meanwhile;
    model and optimizer are put back as they were."""
    finder = LRFinderCB(gamma=gamma, max_mult=max_mult)
    with as_it_was(self):
        self.cbs = [cb for cb in self.cbs if not callable(getattr(cb, 'sched', None))]
        for group in getattr(self.opt, 'param_groups', ()) if self.opt_func is None else (): group['lr'] = start_lr
        self.fit(max_epochs, valid=False, lr=start_lr, cbs=finder)
    if finder.suggestion is None:
        print(f"lr_find: no suggestion, as the loss never fell clearly from lr={start_lr:g} on. "
              f"Is the model trained already? Look at the curve.")
    return finder.suggestion
