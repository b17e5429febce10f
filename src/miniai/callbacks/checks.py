"What must hold before a fit starts, and the watch over its loss: errors that say what is wrong and what to do."
import math
import time
import warnings
from collections.abc import Iterable
from typing import Any, SupportsIndex

import torch

from miniai.data.loaders import length_of
from miniai.device import is_number, to_scalar
from miniai.events import PHASES, Callback

__all__ = ['NonFiniteLossError', 'FiniteLossCB', 'SkippedStepsCB', 'check_fit', 'check_lr', 'check_optimizer',
           'check_names']

_ONLY_VALIDATING = PHASES[:2]


def check_fit(learn: Any, n_epochs: int, train: bool, valid: bool, own_phases: set[str]) -> None:
    """Raise for what can be known to fail in this fit: epochs, loaders, phases, loss. `own_phases` are those that the
    Learner itself has; the others must come from a callback. Only what will run is looked at."""
    if isinstance(n_epochs, bool) or not isinstance(n_epochs, SupportsIndex) or n_epochs < 0:
        raise ValueError(f"n_epochs must be a whole number, 0 or more, got {n_epochs!r}")
    if not train and not valid: raise ValueError("nothing to do: fit was called with train=False and valid=False")
    if train: _check_loader(learn, 'train')
    if valid: _check_loader(learn, 'valid')
    _check_phases(learn, PHASES if train else _ONLY_VALIDATING, own_phases)
    _warn_of_rivals(learn, PHASES if train else _ONLY_VALIDATING, own_phases)
    if train and not callable(learn.loss_func) and _needs_loss_func(learn, own_phases):
        raise ValueError(f"no loss function: loss_func is {learn.loss_func!r}; pass one, "
                         f"such as torch.nn.functional.cross_entropy, to {type(learn).__name__}")


def _check_loader(learn: Any, which: str) -> None:
    dl = getattr(learn.dls, which, None)
    if dl is None:
        raise ValueError(f"no {which} loader: dls is {_short(learn.dls)}; "
                         f"pass DataLoaders(train, valid), or call fit with {which}=False")
    if length_of(dl) == 0:
        raise ValueError(f"the {which} loader is empty: it has no batch. "
                         f"Fill learn.dls.{which}, or call fit with {which}=False")


def _short(x: Any) -> str: return repr(x) if len(repr(x)) < 60 else f"a {type(x).__name__}"


def _check_phases(learn: Any, phases: tuple[str, ...], own: set[str]) -> None:
    missing = [p for p in phases if p not in own and not _providers(learn, p)]
    if not missing: return
    raise ValueError(f"{type(learn).__name__} has no {', '.join(missing)} phase, and no callback has: "
                     f"add TrainCB() to cbs, use TrainLearner, or write the missing method")


def _providers(learn: Any, phase: str) -> list: return [cb for cb in learn.cbs if callable(getattr(cb, phase, None))]


def _warn_of_rivals(learn: Any, phases: tuple[str, ...], own: set[str]) -> None:
    for phase in (ph for ph in phases if ph not in vars(learn)):
        who = ([type(learn).__name__] if phase in own else []) + [
            type(cb).__name__ for cb in _providers(learn, phase) if not getattr(cb, 'stands_in', False)]
        if len(who) < 2: continue
        what = f"{who[0]}'s alone runs" if phase in own else 'all of them run'
        return warnings.warn(f"the phase {phase} is defined by {' and '.join(who)}: {what}. Use Learner with one such "
                             f"callback, or TrainLearner without", stacklevel=4)


def _needs_loss_func(learn: Any, own: set[str]) -> bool:
    "Is the get_loss that will run one of the library's own?"
    providers = [learn] if 'get_loss' in own else [cb for cb in learn.cbs if hasattr(cb, 'get_loss')]
    return any(getattr(p.get_loss, '__module__', '').startswith('miniai.') for p in providers)


def check_lr(lr: Any) -> None:
    "ValueError unless `lr` is a number, 0 or more."
    if lr is None: raise ValueError("no learning rate: pass lr to the Learner or to fit")
    if isinstance(lr, int | float | torch.Tensor) and not lr >= 0: raise ValueError(f"lr must be 0 or more, got {lr}")


def check_optimizer(opt: Any, opt_func: Any = None) -> None:
    "An error unless `opt` has `step()` and `zero_grad()`."
    if opt is None:
        if opt_func: raise ValueError("no optimizer: opt_func returned None, and must return an optimizer")
        raise ValueError("no optimizer: opt_func is None and learn.opt is not set; "
                         "pass opt_func, or set learn.opt before fit")
    lacks = [m for m in ('step', 'zero_grad') if not callable(getattr(opt, m, None))]
    if lacks:
        raise TypeError(f"the optimizer, a {type(opt).__name__}, has no {' or '.join(lacks)}(): "
                        f"opt_func(params, lr) must return an object with step() and zero_grad()")


def check_names(what: str, saved: Iterable[str], here: Iterable[str]) -> None:
    "ValueError, naming both, where what was saved goes by other names than what is here."
    a, b = sorted(saved), sorted(here)
    if a != b: raise ValueError(f"{what} {a} were saved, and here are {b}")


class NonFiniteLossError(RuntimeError): "The training loss became NaN or infinite."


class SkippedStepsCB(Callback):
    "Warns, after each epoch, of the steps that an optimizer with `skip_nonfinite` has skipped in it."
    def before_epoch(self, learn: Any) -> None: self.opt, self.before = learn.opt, getattr(learn.opt, 'skipped', 0)

    def after_epoch(self, learn: Any) -> None:
        if learn.opt is not self.opt or not getattr(self.opt, 'skip_nonfinite', False): return
        skipped = self.opt.skipped - self.before
        if skipped: warnings.warn(f"{skipped} step(s) of epoch {learn.epoch} were skipped: their gradients were not "
                                  f"finite", stacklevel=2)


class FiniteLossCB(Callback):
    """Stops a fit whose training loss is not finite, with a NonFiniteLossError that names epoch and batch. It runs
    last, so that a rate finder sees the loss first. Losses on the CPU are looked at before the weights change, which
    they then do not; those on an accelerator every `every` seconds and at the end of the epoch."""
    order = math.inf
    def __init__(self, every: float = 0.5) -> None: self.every, self._unread = every, []

    def before_epoch(self, learn: Any) -> None: self._unread, self._due = [], time.perf_counter() + self.every

    def after_loss(self, learn: Any) -> None:
        loss = learn.loss
        if not learn.training or not is_number(loss): learn.skip_backward = False
        elif not isinstance(loss, torch.Tensor): learn.skip_backward = not math.isfinite(loss)
        elif loss.is_cpu: learn.skip_backward = not math.isfinite(loss.item())
        else: self._unread.append((learn.iter, loss.detach()))

    def after_batch(self, learn: Any) -> None:
        if learn.skip_backward:
            learn.skip_backward = False
            loss = float(to_scalar(learn.loss))
            self._fail(learn, learn.iter, loss, "The weights are as they were before this batch.")
        if self._unread and time.perf_counter() >= self._due: self.read(learn)

    def after_epoch(self, learn: Any) -> None: self.read(learn)

    def read(self, learn: Any) -> None:
        "Look at the losses that are on the device yet, and wait for them."
        if not self._unread: return
        iters, losses = zip(*self._unread, strict=True)
        for i, x in zip(iters, torch.stack([x.reshape(()) for x in losses]).tolist(), strict=True):
            if not math.isfinite(x): self._fail(learn, i, x, "The weights have been stepped since.")
        self.before_epoch(learn)

    def _fail(self, learn: Any, batch: int, loss: float, weights: str) -> None:
        raise NonFiniteLossError(
            f"the training loss is {loss} in epoch {learn.epoch}, batch {batch} (both counted from 0). {weights} "
            f"Usual causes: a learning rate too high (try learn.lr_find()), inputs that are not normalised, "
            f"a log or division by zero in the loss. To train on regardless, set learn.check_finite = False")
