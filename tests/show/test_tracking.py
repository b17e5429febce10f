"Progress of long work."
import time

import pytest

from miniai.show import tracking
from screen import shown as shown


def test_a_bar_appears_after_two_seconds_and_is_removed(shown, monkeypatch):
    now = iter(range(100))
    monkeypatch.setattr(time, 'perf_counter', lambda: next(now))
    assert list(tracking.tracked('abcd', 'caching train', quiet=2.)) == list('abcd')
    assert shown == [('caching train', 2, 4, ''), ('caching train', 3, 4, ''), ('caching train', 4, 4, ''), 'closed']
    shown.clear()
    list(tracking.tracked('abcd', 'caching train', quiet=100.))
    assert shown == ['closed']


def test_the_bar_is_removed_when_the_work_fails(shown):
    def work():
        for _ in tracking.tracked('abc', 'working'): raise RuntimeError
    with pytest.raises(RuntimeError): work()
    assert shown == ['closed']


def test_the_bar_is_removed_when_the_work_is_left_early(shown):
    items = tracking.tracked('abc', 'working')
    next(items)
    items.close()
    assert shown == ['closed']


def test_items_are_passed_on_as_they_come_and_counted_by_their_length(shown, monkeypatch):
    class Sized:
        def __len__(self): return 9
        def __iter__(self): return iter('abc')
    now = iter(range(100))
    monkeypatch.setattr(time, 'perf_counter', lambda: next(now))
    assert list(tracking.tracked(Sized(), 'working', quiet=1.)) == list('abc')
    assert [args[:3] for args in shown[:-1]] == [('working', 1, 9), ('working', 2, 9), ('working', 3, 9)]
