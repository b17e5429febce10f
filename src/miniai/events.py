"The events of training, and how callbacks hear them: what the loop and the callbacks share. Knows neither."
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from types import NoneType
from typing import Any

__all__ = ['CancelFitException', 'CancelEpochException', 'CancelBatchException', 'PHASES', 'EVENTS', 'Callback',
           'run_cbs', 'with_cbs', 'is_cancel', 'listed', 'CallbackList', 'Dispatch']


class CancelFitException(Exception):
    "Raised by a callback: the fit stops here; `after_fit` is skipped, every cleanup runs."
class CancelEpochException(Exception):
    "Raised by a callback: this epoch stops here; `after_epoch` is skipped, its cleanups run."
class CancelBatchException(Exception):
    "Raised by a callback: this batch stops here; `after_batch` is skipped, its cleanup runs."


_CANCELS = dict(fit=CancelFitException, epoch=CancelEpochException, batch=CancelBatchException)
PHASES = ('predict', 'get_loss', 'backward', 'step', 'zero_grad')
EVENTS = (*(f'{when}_{what}' for what in ('fit', 'epoch', 'batch') for when in ('before', 'after', 'cleanup')),
          'after_predict', 'after_loss', 'after_backward', 'after_step')


class Callback:
    """Base of callbacks: methods named after events are called with the Learner. Those of lower `order` run first. In a
    cleanup `learn.ended_by` is what cut its batch, epoch or fit short, a Cancel…Exception or an error; else None."""
    order: float = 0


def listed(x: Any) -> list:
    "`x` as a new list: None is empty, one thing is a list of one."
    if x is None: return []
    return list(x) if isinstance(x, Iterable) and not isinstance(x, str) and not _hears_anything(x) else [x]


def _hears_anything(x: Any) -> bool:
    return isinstance(x, Callback) or any(hasattr(x, e) for e in EVENTS + PHASES)


class CallbackList(list):
    "A list that calls its `on_change()` after each of its changes."
    on_change: Callable[[], Any] = staticmethod(lambda: None)


def _telling(change: Callable) -> Callable:
    @wraps(change)
    def changed(self: CallbackList, *args: Any, **kwargs: Any) -> Any:
        try: return change(self, *args, **kwargs)
        finally: self.on_change()
    return changed


for _nm in ('append', 'extend', 'insert', 'remove', 'pop', 'clear', 'sort', 'reverse',
            '__setitem__', '__delitem__', '__iadd__', '__imul__'):
    setattr(CallbackList, _nm, _telling(getattr(list, _nm)))


def _in_order(cbs: Iterable) -> list: return sorted(cbs, key=lambda cb: getattr(cb, 'order', 0))


def run_cbs(cbs: Iterable, method_nm: str, learn: Any = None) -> None:
    "Call `cb.method_nm(learn)` on each of `cbs` that has it, in rising `order`."
    for cb in _in_order(cbs):
        method = getattr(cb, method_nm, None)
        if method is not None: method(learn)


def with_cbs(nm: str) -> Callable:
    """Decorator: runs a method between the events `before_nm` and `after_nm`, then `cleanup_nm`, whatever happened.
    For 'fit', 'epoch' and 'batch' the matching Cancel…Exception ends the method quietly, without `after_nm`.
    The method's object needs `.callback(name)`; during the cleanup its `ended_by` is what was raised, or None."""
    before, after, cleanup, cancel = f'before_{nm}', f'after_{nm}', f'cleanup_{nm}', _CANCELS.get(nm, ())

    def decorate(f: Callable) -> Callable:
        @wraps(f)
        def surrounded(o: Any, *args: Any, **kwargs: Any) -> None:
            failure = None
            try:
                o.callback(before)
                f(o, *args, **kwargs)
                o.callback(after)
            except BaseException as e: failure = e
            o.ended_by = failure
            try: o.callback(cleanup)
            except BaseException as e: failure = _graver(failure, e)
            o.ended_by = None
            try:
                if failure is not None and not isinstance(failure, cancel): raise failure
            finally: del failure  # a frame that keeps its own exception keeps every tensor of its frames alive
        return surrounded
    return decorate


def _graver(first: BaseException | None, then: BaseException) -> BaseException:
    "Which of two failures goes on: errors before cancels, wider cancels before narrower, else the first."
    if first is None or then is first or _gravity(then) > _gravity(first): return then
    if not is_cancel(then): first.add_note(f"and then {type(then).__name__}: {then}")
    return first


def is_cancel(e: BaseException | None) -> bool:
    "Is it one of the Cancel…Exceptions?"
    return isinstance(e, tuple(_CANCELS.values()))


def _gravity(e: BaseException) -> int:
    widths = (CancelBatchException, CancelEpochException, CancelFitException)
    return next((i for i, cancel in enumerate(widths) if isinstance(e, cancel)), len(widths))


class Dispatch:
    """Who hears what: a table from event to the callbacks' bound methods, built once for a list of
    callbacks, so that an event that nobody hears costs nothing. An AttributeError names a callback's method
    that looks like an event and is none. A callback whose class has `wrap_listener(cb, event, method)` says what is
    called in the place of each method: a timer around it, say."""
    def __init__(self, cbs: list, events: tuple[str, ...]) -> None:
        self.cbs, self.events = list(cbs), events
        ordered = _in_order(cbs)
        for cb in ordered: _check_names(cb, events)
        wrappers = [cb.wrap_listener for cb in ordered if hasattr(type(cb), 'wrap_listener')]
        self.table = {e: _listeners(ordered, e, wrappers) for e in events}
        self.cleanups = {e for e in events if e.startswith('cleanup_')}
        self.silent = {e for e, methods in self.table.items() if not methods}

    def __call__(self, event: str, learn: Any) -> None:
        "Call everything that hears `event`, in order. An exception carries a note of its callback and event."
        methods = self.table.get(event)
        if methods is None: raise _unknown(f"learn.callback({event!r})", event, self.events)
        if event in self.cleanups: return self._clean_all(methods, event, learn)
        method = None
        try:
            for method in methods: method(learn)
        except BaseException as e:
            self._note(e, method, event)
            raise

    def _clean_all(self, methods: tuple, event: str, learn: Any) -> None:
        "Every cleanup runs, even after one has failed; then, where one has, what is gravest is raised."
        failed = False
        for method in methods:
            try: method(learn)
            except BaseException as e:
                self._note(e, method, event)
                learn.ended_by, failed = _graver(learn.ended_by, e), True
        if failed: raise learn.ended_by

    def _note(self, e: BaseException, method: Callable, event: str) -> None:
        owner = next((cb for cb in self.cbs if _is_own(getattr(cb, event, None), method)), method)
        e.add_note(f"raised by callback {type(owner).__name__} in event {event}")


def _listeners(ordered: list, event: str, wrappers: list[Callable]) -> tuple:
    found = ((cb, getattr(cb, event, None)) for cb in ordered)
    return tuple(_wrapped(wrappers, cb, event, m) for cb, m in found if callable(m))


def _wrapped(wrappers: list[Callable], cb: Any, event: str, method: Callable) -> Callable:
    for wrap in wrappers: method = wrap(cb, event, method)
    return method


def _is_own(method: Any, called: Any) -> bool:
    "Is a callback's `method` what was `called`, or inside the wrappers that were?"
    while method != called and hasattr(called, '__wrapped__'): called = called.__wrapped__
    return method == called


def _check_names(cb: Any, events: tuple[str, ...]) -> None:
    if isinstance(cb, type):
        raise TypeError(f"cbs holds the class {cb.__name__}; pass an instance of it: {cb.__name__}()")
    if isinstance(cb, NoneType | str | int | float | list | tuple | dict) and not isinstance(cb, Callback):
        raise TypeError(f"cbs holds {cb!r}, which is no callback; pass a flat list of callbacks")
    for nm in dir(type(cb)) + list(getattr(cb, '__dict__', ())):
        if nm.startswith(('before_', 'after_', 'cleanup_')) and nm not in events and callable(getattr(cb, nm, None)):
            raise _unknown(f"{type(cb).__name__}.{nm}", nm, events)


def _unknown(where: str, event: str, events: tuple[str, ...]) -> AttributeError:
    near = get_close_matches(event, events, n=1, cutoff=0)
    hint = f"did you mean {near[0]!r}? " if near else ''
    return AttributeError(f"{where}: {event!r} is no event of this Learner; {hint}"
                          f"A Learner with events of its own lists them in its class attribute `events`: "
                          f"events = (*Learner.events, {event!r})")
