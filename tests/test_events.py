"The events: order, cancels, cleanups, and errors that name what was wrong."
from contextlib import suppress
from functools import wraps
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniai.events import (
    EVENTS,
    PHASES,
    Callback,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    Dispatch,
    as_list,
    run_cbs,
    with_cbs,
)
from small import AROUND, WITHIN, raising

CANCELS = dict(fit=CancelFitException, epoch=CancelEpochException, batch=CancelBatchException)
ALL = (*EVENTS, *PHASES)


class Says:
    "Appends its name to `log` when it hears after_fit."
    def __init__(self, log, name, order=None):
        self.log, self.name = log, name
        if order is not None: self.order = order

    def after_fit(self, learn): self.log.append(self.name)


class Stage:
    "Anything with `.callback(name)`; `act[name]` is called at that event, and `act['work']` in between."
    def __init__(self, **act): self.log, self.act = [], act

    def callback(self, name):
        self.log.append(name)
        if name in self.act: self.act[name]()

    @with_cbs('fit')
    def fit(self, *args, **kwargs): self._work(args, kwargs)
    @with_cbs('epoch')
    def epoch(self): self._work()
    @with_cbs('batch')
    def batch(self): self._work()
    @with_cbs('stage')
    def stage(self): self._work()

    def _work(self, *seen):
        self.log.append(('work', *seen) if seen else 'work')
        if 'work' in self.act: self.act['work']()


def test_the_events_are_those_of_the_loop():
    assert set(EVENTS) == {*AROUND, *WITHIN}
    assert PHASES == ('predict', 'get_loss', 'backward', 'step', 'zero_grad')


# run_cbs and order

@given(st.lists(st.one_of(st.none(), st.integers(-3, 3), st.floats(-2, 2))))
def test_callbacks_run_in_rising_order_and_as_given_where_orders_are_equal(orders):
    log, log2 = [], []
    run_cbs([Says(log, i, o) for i, o in enumerate(orders)], 'after_fit')
    Dispatch([Says(log2, i, o) for i, o in enumerate(orders)], ALL)('after_fit', None)
    expected = [i for _, i in sorted((o or 0, i) for i, o in enumerate(orders))]
    assert log == log2 == expected


def test_run_cbs_passes_the_learner_and_none_by_default():
    seen = []
    cb = SimpleNamespace(after_fit=seen.append)
    run_cbs([cb], 'after_fit', 'learn')
    run_cbs([cb], 'after_fit')
    assert seen == ['learn', None]


def test_run_cbs_passes_over_callbacks_without_the_method():
    log = []
    run_cbs([object(), Says(log, 'a'), Callback()], 'after_fit')
    run_cbs([Says(log, 'a')], 'before_fit')
    assert log == ['a']


def test_the_order_of_a_callback_is_zero_by_default(): assert Callback.order == Callback().order == 0


# with_cbs

@pytest.mark.parametrize('nm', ['fit', 'epoch', 'batch', 'stage'])
def test_a_method_runs_between_before_and_after_and_cleanup_comes_last(nm):
    s = Stage()
    getattr(s, nm)()
    heard = [x if isinstance(x, str) else x[0] for x in s.log]
    assert heard == [f'before_{nm}', 'work', f'after_{nm}', f'cleanup_{nm}']


def test_a_method_with_events_keeps_its_arguments_name_and_doc():
    s = Stage()
    s.fit(1, k=2)
    assert s.log[1] == ('work', (1,), {'k': 2})
    assert Stage.fit.__name__ == 'fit'


@pytest.mark.parametrize('nm', CANCELS)
@pytest.mark.parametrize('at', ['before', 'work', 'after', 'cleanup'])
def test_its_own_cancel_ends_a_method_quietly_without_after_but_with_cleanup(nm, at):
    event = at if at == 'work' else f'{at}_{nm}'
    s = Stage(**{event: raising(CANCELS[nm]())})
    getattr(s, nm)()
    heard = [x if isinstance(x, str) else x[0] for x in s.log]
    upto = {'before': 1, 'work': 2, 'after': 3, 'cleanup': 3}[at]
    assert heard == [f'before_{nm}', 'work', f'after_{nm}'][:upto] + [f'cleanup_{nm}']


@pytest.mark.parametrize('nm', CANCELS)
@pytest.mark.parametrize('other', CANCELS)
def test_another_cancel_passes_through_after_cleanup(nm, other):
    if nm == other: return
    s = Stage(work=raising(CANCELS[other]()))
    with pytest.raises(CANCELS[other]): getattr(s, nm)()
    assert s.log[-1] == f'cleanup_{nm}'
    assert f'after_{nm}' not in s.log


@pytest.mark.parametrize('nm', CANCELS)
def test_a_cleanup_is_told_what_ended_its_method_and_after_it_nothing_is(nm):
    told = []
    for act, failure in (({}, None), (dict(work=raising(CANCELS[nm]())), CANCELS[nm]),
                         ({f'after_{nm}': raising(KeyError('a'))}, KeyError)):
        s = Stage(**act)
        s.act[f'cleanup_{nm}'] = lambda s=s: told.append(s.ended_by)
        with suppress(KeyError): getattr(s, nm)()
        assert type(told[-1]) is (failure or type(None))
        assert s.ended_by is None


def test_cleanups_are_told_what_an_earlier_one_has_raised():
    told, learn = [], SimpleNamespace(ended_by=None)
    early, late = SimpleNamespace(cleanup_fit=raising(CancelFitException())), Callback()
    late.cleanup_fit = lambda learn: told.append(learn.ended_by)
    with pytest.raises(CancelFitException): Dispatch([early, late], ALL)('cleanup_fit', learn)
    assert [type(e) for e in told] == [CancelFitException]


def test_an_event_of_ones_own_has_no_cancel_and_cleans_up():
    s = Stage(work=raising(CancelFitException()))
    with pytest.raises(CancelFitException): s.stage()
    assert s.log == ['before_stage', 'work', 'cleanup_stage']


def test_an_error_passes_through_after_cleanup():
    s = Stage(work=raising(ZeroDivisionError('oh')))
    with pytest.raises(ZeroDivisionError, match='oh'): s.fit()
    assert s.log[-1] == 'cleanup_fit'
    assert 'after_fit' not in s.log


def test_a_cancel_raised_in_cleanup_does_not_hide_an_error_of_the_work():
    s = Stage(work=raising(ZeroDivisionError('oh')), cleanup_fit=raising(CancelFitException()))
    with pytest.raises(ZeroDivisionError, match='oh'): s.fit()


# listed

def test_listed_makes_a_new_list_of_none_of_one_and_of_many():
    a, b, cbs = Callback(), object(), [Callback()]
    assert as_list(None) == []
    assert as_list(a) == [a]
    assert as_list(b) == [b]
    assert as_list((a, b)) == as_list(iter([a, b])) == [a, b]
    assert as_list(cbs) == cbs
    assert as_list(cbs) is not cbs


def test_a_callback_that_can_be_iterated_over_is_one_callback():
    class Iterable(Callback):
        def __iter__(self): return iter([1, 2])

    class Duck:
        def __iter__(self): return iter([1, 2])
        def after_batch(self, learn): pass

    for cb in (Iterable(), Duck()): assert as_list(cb) == [cb]


def test_a_string_is_one_thing(): assert as_list('abc') == ['abc']


# Dispatch

def test_an_exception_carries_a_note_of_its_callback_and_event():
    class Broken:
        def after_loss(self, learn): raise ValueError('oh')
    with pytest.raises(ValueError, match='oh') as e: Dispatch([Broken()], ALL)('after_loss', None)
    assert any('Broken' in n and 'after_loss' in n for n in e.value.__notes__)


def test_a_keyboard_interrupt_carries_a_note_too():
    class Slow:
        def after_loss(self, learn): raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt) as e: Dispatch([Slow()], ALL)('after_loss', None)
    assert any('Slow' in n and 'after_loss' in n for n in e.value.__notes__)


def test_the_note_names_the_callback_whose_method_is_static_or_was_put_on_the_instance():
    class Static:
        @staticmethod
        def after_loss(learn): raise ValueError('oh')

    class OnInstance: pass
    cb = OnInstance()
    cb.after_loss = raising(ValueError('oh'))
    for broken in (Static(), cb):
        with pytest.raises(ValueError, match='oh') as e: Dispatch([broken], ALL)('after_loss', None)
        assert any(type(broken).__name__ in n and 'after_loss' in n for n in e.value.__notes__), e.value.__notes__


@pytest.mark.parametrize('cancel', CANCELS.values())
def test_a_cancel_passes_through_and_stops_the_event(cancel):
    log = []
    first, second = SimpleNamespace(after_fit=raising(cancel())), Says(log, 'second')
    with pytest.raises(cancel): Dispatch([first, second], ALL)('after_fit', None)
    assert log == []


def test_every_cleanup_runs_after_one_has_failed_and_the_first_failure_is_raised_with_the_others_noted():
    class Broken:
        def __init__(self, e): self.e = e
        def cleanup_fit(self, learn): raise self.e
    log = []
    last = SimpleNamespace(cleanup_fit=lambda learn: log.append('last'))
    dispatch = Dispatch([Broken(ValueError('one')), Broken(TypeError('two')), last], ALL)
    with pytest.raises(ValueError, match='one') as e: dispatch('cleanup_fit', SimpleNamespace(ended_by=None))
    notes = '\n'.join(e.value.__notes__)
    assert log == ['last']
    assert 'TypeError: two' in notes
    assert 'Broken in event cleanup_fit' in notes


def test_an_error_in_a_cleanup_is_not_hidden_by_a_cancel_in_an_earlier_one():
    s = Stage()
    cancels, breaks = raising(CancelFitException()), raising(ValueError('real'))
    dispatch = Dispatch([SimpleNamespace(cleanup_fit=cancels), SimpleNamespace(cleanup_fit=breaks)], ALL)
    s.callback = lambda event: dispatch(event, s)
    with pytest.raises(ValueError, match='real'): s.fit()


def test_an_event_that_nobody_hears_does_nothing(): assert Dispatch([Callback()], ALL)('after_loss', None) is None


def test_an_attribute_that_is_no_function_is_no_listener():
    Dispatch([SimpleNamespace(step=3, after_dark='no event, and no method')], ALL)('step', None)


def test_an_unknown_event_is_an_error_with_the_nearest_real_name_and_how_to_declare_it():
    with pytest.raises(AttributeError, match=r"after_backwards.*did you mean 'after_backward'\?.*`events`"):
        Dispatch([], ALL)('after_backwards', None)


@pytest.mark.parametrize(('wrong', 'right'), [('before_bach', 'before_batch'), ('after_epochs', 'after_epoch'),
                                              ('cleanup_fitt', 'cleanup_fit')])
def test_a_misspelt_method_is_an_error_naming_callback_method_and_the_nearest_event(wrong, right):
    typo = type('Typo', (), {wrong: lambda self, learn: None})()
    on_instance = SimpleNamespace(**{wrong: print})
    for cb in (typo, on_instance):
        says = rf"{type(cb).__name__}\.{wrong}.*did you mean '{right}'\?"
        with pytest.raises(AttributeError, match=says): Dispatch([cb], ALL)


def test_without_any_event_an_unknown_one_is_still_a_clear_error():
    with pytest.raises(AttributeError, match='is not an event of this Learner'): Dispatch([], ())('fit', None)


# Listeners wrapped

class Wraps:
    "Says what is called, and before whose method."
    def __init__(self, log): self.log = log

    def wrap_listener(self, cb, event, method):
        @wraps(method)
        def wrapped(learn):
            self.log.append((type(cb).__name__, event))
            method(learn)
        return wrapped


def test_a_callback_may_wrap_what_each_hears_and_without_one_the_very_methods_are_called():
    log, cb = [], Says([], 'a')
    Dispatch([Wraps(log), cb], ALL)('after_fit', None)
    assert (log, cb.log) == ([('Says', 'after_fit')], ['a'])
    assert Dispatch([cb], ALL).table['after_fit'] == (cb.after_fit,)


def test_an_error_within_wrappers_names_the_callback():
    class Broken:
        def after_loss(self, learn): raise ValueError('oh')
    with pytest.raises(ValueError, match='oh') as e: Dispatch([Wraps([]), Wraps([]), Broken()], ALL)('after_loss', None)
    assert e.value.__notes__ == ['raised by callback Broken in event after_loss']


def test_what_answers_to_every_name_is_no_wrapper():
    class Answers:
        def __getattr__(self, name): return print if name == 'after_fit' else None
    Dispatch([Answers()], ALL)
