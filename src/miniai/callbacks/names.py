"Methods that are never called, because their names only look like events, and objects in `cbs` that are not callbacks."
import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from miniai.events import EVENTS, PHASES, Callback, check_callback

__all__ = ['check_names_of']

_LIBRARIES = 'miniai', 'torch', 'builtins', 'abc', 'typing', 'types', 'enum'
_WITH_STEP = nn.Module, Optimizer, LRScheduler  # or zero_grad, which are not phases
_WHEN = dict(begin='before', start='before', end='after', finish='after')
_WHAT = dict(fit='fit', train='fit', training='fit', epoch='epoch', validation='epoch', val='epoch', valid='epoch',
             eval='epoch', test='epoch', batch='batch', step='batch')
_ELSEWHERE = re.compile(rf'on_(?:\w+_)?({"|".join(_WHAT)})_({"|".join(_WHEN)})')
_ALSO_ELSEWHERE = dict(on_before_backward='after_loss', on_after_backward='after_backward',
                       on_before_optimizer_step='after_backward', on_pre_optimizer_step='after_backward',
                       on_optimizer_step='after_step', on_before_zero_grad='after_step', on_exception='cleanup_fit',
                       training_step='predict and get_loss', validation_step='predict and get_loss',
                       configure_optimizers='opt_func', begin_fit='before_fit', begin_epoch='before_epoch',
                       begin_batch='before_batch')
_PASSES = 'train', 'valid', 'validate', 'eval'
_ALMOST_OURS = {f'{when}_{what}': f'{when}_epoch' for when in ('before', 'after') for what in _PASSES} | dict(
    before_backward='after_loss', before_step='after_backward')


def check_names_of(learn: Any) -> None:
    """TypeError for an object in `cbs` without any event or phase, such as a function. AttributeError for a method of a
    callback or of a user's Learner that would never be called: its name is almost an event, or is one in another
    library, or it is an event in a Learner."""
    for cb in learn.cbs:
        for where, nm, _ in _methods(cb):
            if nm in _ALMOST_OURS and nm not in learn.events: raise _never_called(where, nm, _ALMOST_OURS[nm])
        check_callback(cb, learn.events)
    sends_itself = 'callback' in vars(learn) or not type(learn).callback.__module__.startswith('miniai.')
    for where, nm, _ in _methods(learn) if not sends_itself else ():
        if nm in learn.events and nm not in PHASES: raise AttributeError(
            f"{where}.{nm} would never be called: callbacks hear events. Move it to a Callback, and put that in cbs")
    for o in (learn, *learn.cbs):
        for where, nm, defined in _methods(o):
            if (meant := _meant(nm, learn.events)) and meant not in defined: raise _never_called(where, nm, meant)
    for cb in learn.cbs:
        heard = (*EVENTS, 'wrap_listener') if isinstance(cb, _WITH_STEP) else (*learn.events, *PHASES, 'wrap_listener')
        if not isinstance(cb, Callback) and not any(hasattr(cb, e) for e in heard): raise _no_callback(cb)


def _methods(o: Any) -> Iterator[tuple[str, str, dict]]:
    "The public methods that a user has written: class, name, and all that is defined there."
    places = [(c.__name__, vars(c)) for c in type(o).__mro__ if c.__module__.partition('.')[0] not in _LIBRARIES]
    if not isinstance(o, nn.Module): places.append((type(o).__name__, getattr(o, '__dict__', {})))
    for where, defined in places:
        for nm, f in defined.items():
            if not nm.startswith('_') and callable(f) and not isinstance(f, type): yield where, nm, defined


def _meant(name: str, events: tuple[str, ...]) -> str | None:
    "The event or phase that a method of this name was probably meant to be; None if it is one, or none."
    if name in (*events, *PHASES): return None
    if found := _ELSEWHERE.fullmatch(name): return f'{_WHEN[found[2]]}_{_WHAT[found[1]]}'
    if name in _ALSO_ELSEWHERE: return _ALSO_ELSEWHERE[name]
    if name.startswith(PHASES): return None  # a helper such as predict_all
    return next(iter(get_close_matches(name.lower(), events, n=1, cutoff=0.85)), None)


def _never_called(where: str, name: str, meant: str) -> AttributeError:
    return AttributeError(f"{where}.{name} would never be called: {name!r} is not an event; did you mean {meant}? "
                          f"If it is a helper, begin its name with an underscore")


def _no_callback(cb: Any) -> TypeError:
    name = getattr(cb, '__name__', f'an object of type {type(cb).__name__}')
    if isinstance(cb, LRScheduler): hint = "For a schedule, write BatchSchedCB(lambda opt: …)"
    elif callable(cb) or all(hasattr(cb, nm) for nm in ('update', 'compute', 'reset')):
        hint = f"If it is a metric, write MetricsCB({getattr(cb, '__name__', '…')})"
    else: hint = "Give it a method such as after_epoch"
    return TypeError(f"cbs holds {name}, which is not a callback: no event calls it. {hint}")
