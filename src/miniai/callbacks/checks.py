"Checks before a fit starts: errors that say what is wrong and what to do."
import warnings
from collections.abc import Iterable
from typing import Any, SupportsIndex

import torch
from torch import nn

from miniai import optim
from miniai.callbacks.names import check_names_of
from miniai.data.loaders import length_of
from miniai.events import PHASES

__all__ = ['check_fit', 'check_lr', 'check_optimizer', 'check_names']


def check_fit(learn: Any, n_epochs: int, train: bool, valid: bool, resume: bool, own_phases: set[str]) -> None:
    """Raise an error for anything that is sure to fail in this fit: epochs, loaders, phases, loss, resume. `own_phases`
    are those that the Learner itself has; callbacks must provide the others. Only what will run is checked."""
    if isinstance(n_epochs, bool) or not isinstance(n_epochs, SupportsIndex) or n_epochs < 0:
        raise ValueError(f"n_epochs must be a whole number, 0 or more, got {n_epochs!r}")
    if not train and not valid: raise ValueError("nothing to do: fit was called with train=False and valid=False")
    _check_arguments(learn)
    check_names_of(learn)
    for name, runs in (('train', train), ('valid', valid)):
        if runs: _check_loader(learn, name)
    _check_phases(learn, PHASES if train else PHASES[:2], own_phases)
    if train and learn.loss_func is None and _uses_loss_func(learn, own_phases):
        raise ValueError("no loss function: loss_func is None; pass one, "
                         f"such as torch.nn.functional.cross_entropy, to {type(learn).__name__}")
    if resume: _check_resume(learn, train)


def _check_arguments(learn: Any) -> None:
    "TypeError for a name or a class where an object or function is meant."
    for nm in ('model', 'loss_func'):
        x = getattr(learn, nm)
        if isinstance(x, type) and issubclass(x, nn.Module):
            raise TypeError(f"{nm} is the class {x.__name__}; pass an instance of it: {x.__name__}(…)")
    if learn.loss_func is not None and not callable(learn.loss_func):
        raise TypeError(f"loss_func must be a function of (preds, targets), such as torch.nn.functional.cross_entropy, "
                        f"got {learn.loss_func!r}")
    if learn.opt_func is None or callable(learn.opt_func): return
    if hasattr(learn.opt_func, 'step'):
        raise TypeError(f"opt_func is an optimizer ({type(learn.opt_func).__name__}); pass what makes one, such as its "
                        f"class; or set learn.opt to it, with opt_func=None")
    name = next((nm for nm in optim.__all__ if nm.lower() == str(learn.opt_func).lower()), 'Adam')
    raise TypeError(f"opt_func must be a function of (params, lr) or an optimizer class, got {learn.opt_func!r}: "
                    f"write opt_func={name}, with `from miniai import {name}`")


def _check_loader(learn: Any, name: str) -> None:
    dl = getattr(learn.dls, name, None)
    if dl is None:
        shown = repr(learn.dls) if len(repr(learn.dls)) < 60 else f"a {type(learn.dls).__name__}"
        raise ValueError(f"no {name} loader: dls is {shown}; pass DataLoaders(train, valid), "
                         f"or call fit with {name}=False")
    if length_of(dl) == 0:
        raise ValueError(f"the {name} loader is empty: it has no batch. "
                         f"Fill learn.dls.{name}, or call fit with {name}=False")


def _check_phases(learn: Any, phases: tuple[str, ...], own: set[str]) -> None:
    "ValueError for a phase that nothing provides, a warning for one that is provided twice."
    providers = {p: [cb for cb in learn.cbs if callable(getattr(cb, p, None))] for p in phases}
    missing = [p for p in phases if p not in own and not providers[p]]
    if missing:
        raise ValueError(f"{type(learn).__name__} has no {', '.join(missing)} phase, and neither has any callback: "
                         f"add TrainCB() to cbs, use TrainLearner, or write the missing method")
    for phase in phases:
        if phase in vars(learn): continue  # replaced on the instance, on purpose
        names = [type(learn).__name__] if phase in own else []
        names += [type(cb).__name__ for cb in providers[phase] if not getattr(cb, 'stands_in', False)]
        if len(names) < 2: continue
        what = f"only {names[0]}'s runs" if phase in own else 'all of them run'
        return warnings.warn(f"the phase {phase} is defined by {' and '.join(names)}: {what}. Use TrainLearner "
                             f"without such a callback, or Learner with one. It may derive from two: class Both(HFCB, "
                             f"MixedPrecision): pass", stacklevel=4)


def _uses_loss_func(learn: Any, own: set[str]) -> bool:
    "Is the get_loss that will run one of the library's own?"
    providers = [learn] if 'get_loss' in own else [cb for cb in learn.cbs if hasattr(cb, 'get_loss')]
    return any(getattr(p.get_loss, '__module__', '').startswith('miniai.') for p in providers
               if getattr(p, 'uses_loss_func', True))


def _check_resume(learn: Any, train: bool) -> None:
    if not train: raise ValueError("fit(…, resume=True) continues training, but was called with train=False")
    able = sum(getattr(cb, 'can_resume', False) for cb in learn.cbs)
    if able != 1:
        raise ValueError(f"fit(…, resume=True) needs one CheckpointCB(folder) in cbs; there are {able}")


def check_lr(lr: Any) -> None:
    "ValueError or TypeError unless `lr` is a number, 0 or more."
    if lr is None: raise ValueError("no learning rate: pass lr to the Learner or to fit")
    if isinstance(lr, slice | tuple | list): raise TypeError(
        f"lr must be a number, got {lr!r}; for a rate by layer: fit_one_cycle(n_epochs, lr=slice(1e-5, 1e-3))")
    if isinstance(lr, int | float | torch.Tensor) and not lr >= 0: raise ValueError(f"lr must be 0 or more, got {lr}")


def check_optimizer(opt: Any, opt_func: Any = None) -> None:
    "An error unless `opt` has `step()` and `zero_grad()`."
    if opt is None:
        if opt_func: raise ValueError("no optimizer: opt_func returned None; it must return an optimizer")
        raise ValueError("no optimizer: opt_func is None and learn.opt is not set; "
                         "pass opt_func, or set learn.opt before fit")
    lacks = [m for m in ('step', 'zero_grad') if not callable(getattr(opt, m, None))]
    if lacks:
        raise TypeError(f"the optimizer, a {type(opt).__name__}, has no {' or '.join(lacks)}(): "
                        f"opt_func(params, lr) must return an object with step() and zero_grad()")


def check_names(what: str, saved: Iterable[str], here: Iterable[str]) -> None:
    "ValueError, naming both, if saved names differ from those here."
    a, b = sorted(saved), sorted(here)
    if a != b: raise ValueError(f"{what} in the checkpoint are {a}, but here they are {b}")
