"The learning-rate finder: raise the rate with each batch until the loss explodes, and suggest a rate (Smith 2015)."
import math
from typing import Any

import torch

from miniai.callbacks.dry_run import dry_run
from miniai.callbacks.lr_suggestions import LRSuggestions, suggest_lr, suggestions
from miniai.distributed.ranks import is_first
from miniai.events import Callback, CancelEpochException, CancelFitException

__all__ = ['LRFinderCB', 'LRSuggestions', 'lr_find', 'suggest_lr']


class LRFinderCB(Callback):
    """Multiplies the learning rate of every group by `gamma` after each batch that steps, and records `lrs` and
    `losses`. Stops the fit at a loss that is NaN or `max_mult` times the best, which is the lowest mean of `average`
    losses in a row, then plots loss over learning rate; `suggestion` is the suggested constant rate, and `peak` the
    suggested highest rate of a schedule that reaches it only briefly, such as one-cycle or cosine. `suggestions` holds
    others as well, how far they agree, and when to believe none: an LRSuggestions. The fit is a dry run: no checkpoints
    are saved."""
    plots = True
    _was_dry_run: bool | None = None  # None outside a fit

    def __init__(self, gamma: float = 1.3, max_mult: float = 3, average: int = 1) -> None:
        if gamma <= 1: raise ValueError(f"LRFinderCB: gamma must be above 1, so that the rate rises, got {gamma}")
        self.gamma, self.max_mult, self.average, self.suggestions, self.ax = gamma, max_mult, average, None, None
        self.lrs, self.losses, self.sched = [], [], None

    suggestion = property(lambda self: self.suggestions and self.suggestions.half, doc="The suggested constant rate.")
    peak = property(lambda self: self.suggestions and self.suggestions.peak, doc="The suggested peak of a schedule.")

    @property
    def ended_early(self) -> bool:
        "Did a high loss end the search before its suggestions could be believed?"
        return bool(self.suggestions and self.suggestions.doubt) and self._too_high(self.losses[-1])

    def more_patient(self) -> 'LRFinderCB':
        "A finder that a high loss, or a batch with a low one, ends less easily."
        return LRFinderCB(self.gamma, 4*self.max_mult, average=5)

    def _too_high(self, loss: float) -> bool: return loss > self.best + (self.max_mult - 1)*abs(self.best)

    def before_fit(self, learn: Any) -> None:
        self._was_dry_run, learn.dry_run = getattr(learn, 'dry_run', False), True
        self.lrs, self.losses, self.suggestions, self.best = [], [], None, math.inf
        trains = getattr(learn, 'trains', True)
        if trains and not isinstance(learn.opt, torch.optim.Optimizer):
            raise TypeError(f"LRFinderCB changes the learning rate of a torch.optim.Optimizer, and learn.opt is a "
                            f"{type(learn.opt).__name__}: use an optimizer of torch.optim or miniai.optim")
        self.sched = torch.optim.lr_scheduler.ExponentialLR(learn.opt, self.gamma) if trains else None
        if trains: learn.opt._opt_called = False  # torch's scheduler notes there whether it has stepped

    def after_batch(self, learn: Any) -> None:
        if not learn.model.training: raise CancelEpochException()
        loss = float(learn.loss.detach())
        if getattr(learn, 'hold_step', False) and math.isfinite(loss): return
        self.lrs.append(float(learn.opt.param_groups[0]['lr']))
        self.losses.append(loss)
        self.best = min(self.best, sum(self.losses[-self.average:])/len(self.losses[-self.average:]))
        ends = not math.isfinite(loss) or self._too_high(loss)
        if ends or len(self.losses) == 20: self._check_steps(learn)
        if ends: raise CancelFitException()
        self.sched.step()

    def after_fit(self, learn: Any) -> None: self._check_steps(learn)

    def _check_steps(self, learn: Any) -> None:
        if self.losses and not learn.opt._opt_called:
            raise RuntimeError(f"LRFinderCB: the optimizer made no step in {len(self.losses)} batches, so no "
                               f"learning rate can be found: call learn.opt.step() in the `step` phase")

    def cleanup_fit(self, learn: Any) -> None:
        if self._was_dry_run is None: return
        learn.dry_run, self._was_dry_run = self._was_dry_run, None
        if self.sched is None or not self.losses: return
        self.sched = None
        self.suggestions = suggestions(self.lrs, self.losses)
        if self.plots: self.ax = self.plot()

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


def lr_find(self: Any, gamma: float = 1.3, max_mult: float = 3, start_lr: float = 1e-5,
            max_epochs: int = 10, full: bool = False) -> float | LRSuggestions | None:
    """Train from `start_lr` on, multiplying the learning rate by `gamma` after each batch, until the loss explodes or
    `max_epochs` are over. If a single loss ends that too early, search once more, to four times `max_mult`. Plots
    loss over learning rate and returns the suggested rate, None if the loss never fell. With `full` it returns an
    LRSuggestions: several suggestions, how far they agree, and the curve as data. Prints the reason if none should be
    believed. Schedules are left out. Afterwards model and optimizer are as they were."""
    finder = _search(self, LRFinderCB(gamma, max_mult), start_lr, max_epochs)
    if finder.ended_early: finder = _search(self, finder.more_patient(), start_lr, max_epochs)
    if finder.losses: finder.plot()
    found = finder.suggestions or suggestions([], [])  # a fit without batches
    if is_first() and found.half is None:
        print(f"lr_find: no suggestion, because the loss never fell clearly from lr={start_lr:g} on. "
              f"Look at the curve. Is the model already trained?")
    elif is_first() and found.doubt: print(f"lr_find: do not rely on {found.half:.2g}: {found.doubt}")
    return found if full else found.half


def _search(learn: Any, finder: LRFinderCB, start_lr: float, max_epochs: int) -> LRFinderCB:
    "The finder after its fit, which leaves no trace. It plots only if the fit fails."
    finder.plots = False
    with dry_run(learn, trains=True):
        learn.cbs = [cb for cb in learn.cbs if not callable(getattr(cb, 'sched', None))]
        for group in getattr(learn.opt, 'param_groups', ()) if learn.opt_func is None else (): group['lr'] = start_lr
        try: learn.fit(max_epochs, valid=False, lr=start_lr, cbs=finder)
        except BaseException:
            if finder.losses: finder.plot()
            raise
    return finder
