"The events of training, and how callbacks hear them. Shared by the loop and the callbacks."
import inspect
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from types import NoneType
from typing import Any

__all__ = ['CancelFitException', 'CancelEpochException', 'CancelBatchException', 'PHASES', 'EVENTS', 'Callback',
           'run_cbs', 'with_cbs', 'is_cancel', 'as_list', 'CallbackList', 'Dispatch', 'check_callback']


class CancelBatchException(Exception):
    "Raised by a callback: this batch stops here. `after_batch` is skipped, its cleanup runs."
class CancelEpochException(Exception):
    "Raised by a callback: this epoch stops here. `after_epoch` is skipped, its cleanup runs."
class CancelFitException(Exception):
    "Raised by a callback: the fit stops here. `after_fit` is skipped, every cleanup runs."


_CANCELS = dict(batch=CancelBatchException, epoch=CancelEpochException, fit=CancelFitException)  # from narrow to wide
PHASES = ('predict', 'get_loss', 'backward', 'step', 'zero_grad')
EVENTS = (*(f'{when}_{what}' for what in ('fit', 'epoch', 'batch') for when in ('before', 'after', 'cleanup')),
          'after_predict', 'after_loss', 'after_backward', 'after_step')


class Callback:
    """Base class of callbacks. A method named after an event is called with the Learner when the event happens;
    callbacks with a lower `order` come first. In a cleanup event `learn.ended_by` is the exception that ended the
    batch, epoch or fit early, or None."""
    order: float = 0
    only_shows = False  # such a callback does not change training: a run may resume with or without it

    def __repr__(self) -> str:
        names = [nm for nm in inspect.signature(type(self).__init__).parameters if nm in vars(self)]
        return f"{type(self).__name__}({', '.join(f'{nm}={_short(vars(self)[nm])}' for nm in names)})"


def _short(x: Any) -> str: return repr(x) if len(repr(x)) <= 40 else f'<{type(x).__name__}>'


def as_list(cbs: Any) -> list:
    "A new list of callbacks from None, one callback, or several."
    if cbs is None: return []
    is_callback = isinstance(cbs, Callback) or any(hasattr(cbs, e) for e in EVENTS + PHASES)
    return list(cbs) if isinstance(cbs, Iterable) and not isinstance(cbs, str) and not is_callback else [cbs]


class CallbackList(list):
    "A list of callbacks with `dispatch`, the table of who hears what, which each change sets to None."
    dispatch: 'Dispatch | None' = None
    def __getstate__(self) -> None: "The table is made again where it is needed."


def _forgetting(change: Callable) -> Callable:
    @wraps(change)
    def changed(self: CallbackList, *args: Any, **kwargs: Any) -> Any:
        try: return change(self, *args, **kwargs)
        finally: self.dispatch = None
    return changed


for _nm in ('append', 'extend', 'insert', 'remove', 'pop', 'clear', 'sort', 'reverse',
            '__setitem__', '__delitem__', '__iadd__', '__imul__'):
    setattr(CallbackList, _nm, _forgetting(getattr(list, _nm)))


def _in_order(cbs: Iterable) -> list: return sorted(cbs, key=lambda cb: getattr(cb, 'order', 0))


def run_cbs(cbs: Iterable, method_nm: str, learn: Any = None) -> None:
    "Call `cb.method_nm(learn)` on each of `cbs` that has it, in rising `order`."
    for cb in _in_order(cbs):
        method = getattr(cb, method_nm, None)
        if method is not None: method(learn)


def with_cbs(nm: str) -> Callable:
    """Decorator: runs a method between the events `before_nm` and `after_nm`, then `cleanup_nm` in any case.
    For 'fit', 'epoch' and 'batch' the matching Cancel…Exception ends the method quietly, without `after_nm`.
    The method's object needs `.callback(name)`. During cleanup its `ended_by` holds the exception, or None."""
    before, after, cleanup, cancel = f'before_{nm}', f'after_{nm}', f'cleanup_{nm}', _CANCELS.get(nm, ())

    def decorate(f: Callable) -> Callable:
        @wraps(f)
        def with_events(o: Any, *args: Any, **kwargs: Any) -> None:
            failure = None
            try:
                o.callback(before)
                f(o, *args, **kwargs)
                o.callback(after)
            except BaseException as e: failure = e
            o.ended_by = failure
            try: o.callback(cleanup)
            except BaseException as e: failure = _more_severe(failure, e)
            o.ended_by = None
            try:
                if failure is not None and not isinstance(failure, cancel): raise failure
            finally: del failure  # a frame that holds its own exception keeps its tensors alive
        return with_events
    return decorate


def is_cancel(e: BaseException | None) -> bool:
    "Is `e` a CancelBatchException, CancelEpochException or CancelFitException?"
    return isinstance(e, tuple(_CANCELS.values()))


def _more_severe(first: BaseException | None, second: BaseException) -> BaseException:
    "The failure to raise: an error rather than a cancel, a wider cancel rather than a narrower one, else the first."
    def severity(e: BaseException) -> int:
        return next((i for i, cancel in enumerate(_CANCELS.values()) if isinstance(e, cancel)), len(_CANCELS))
    if first is None or second is first or severity(second) > severity(first): return second
    if not is_cancel(second): first.add_note(f"and then {type(second).__name__}: {second}")
    return first


class Dispatch:
    """Who hears what: a table from each event to the methods that hear it, built once for a list of callbacks, so that
    an event without listeners costs nothing. A callback may have `wrap_listener(cb, event, method)`, which returns what
    to call instead of each method: a timer around it, for example. AttributeError for a method that looks like an event
    but isn't one."""
    def __init__(self, cbs: list, events: tuple[str, ...]) -> None:
        self.cbs, self.events, ordered = list(cbs), events, _in_order(cbs)
        for cb in ordered: check_callback(cb, events)
        self.wrappers = [cb.wrap_listener for cb in ordered if hasattr(type(cb), 'wrap_listener')]
        self.table = {e: self._listeners(ordered, e) for e in events}
        self.cleanups = {e for e in events if e.startswith('cleanup_')}
        self.silent = {e for e, methods in self.table.items() if not methods}

    def _listeners(self, cbs: list, event: str) -> tuple:
        found = []
        for cb in cbs:
            method = getattr(cb, event, None)
            if not callable(method): continue
            for wrap in self.wrappers: method = wrap(cb, event, method)
            found.append(method)
        return tuple(found)

    def __call__(self, event: str, learn: Any) -> None:
        "Call all listeners of `event` in order. Cleanups all run, even after one has failed."
        if event not in self.table: raise _unknown_event(f"learn.callback({event!r})", event, self.events)
        failed = False
        for method in self.table[event]:
            try: method(learn)
            except BaseException as e:
                self._add_note(e, method, event)
                if event not in self.cleanups: raise
                learn.ended_by, failed = _more_severe(learn.ended_by, e), True
        if failed: raise learn.ended_by

    def _add_note(self, e: BaseException, method: Callable, event: str) -> None:
        unwrapped = [method]
        while hasattr(unwrapped[-1], '__wrapped__'): unwrapped.append(unwrapped[-1].__wrapped__)
        owner = next((cb for cb in self.cbs if getattr(cb, event, None) in unwrapped), method)
        e.add_note(f"raised by callback {type(owner).__name__} in event {event}")


def check_callback(cb: Any, events: tuple[str, ...]) -> None:
    "TypeError for a class or a plain value, AttributeError for a method that looks like an event but isn't one."
    if isinstance(cb, type):
        raise TypeError(f"cbs holds the class {cb.__name__}; pass an instance of it: {cb.__name__}()")
    if isinstance(cb, NoneType | str | int | float | list | tuple | dict) and not isinstance(cb, Callback):
        raise TypeError(f"cbs holds {cb!r}, which is not a callback; pass a flat list of callbacks")
    for nm in dir(type(cb)) + list(getattr(cb, '__dict__', ())):
        if nm.startswith(('before_', 'after_', 'cleanup_')) and nm not in events and callable(getattr(cb, nm, None)):
            raise _unknown_event(f"{type(cb).__name__}.{nm}", nm, events)


def _unknown_event(where: str, event: str, events: tuple[str, ...]) -> AttributeError:
    near = get_close_matches(event, events, n=1, cutoff=0)
    hint = f"did you mean {near[0]!r}? " if near else ''
    return AttributeError(f"{where}: {event!r} is not an event of this Learner; {hint}"
                          f"A Learner with its own events lists them in its class attribute `events`: "
                          f"events = (*Learner.events, {event!r})")
