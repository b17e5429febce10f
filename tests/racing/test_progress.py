"Progress: ten words at most, none in a short stage, and the time left follows from what was done since the start."
import pytest

from miniai.racing import progress as module
from miniai.racing.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.
        def monotonic(self): return self.now
    monkeypatch.setattr(module, 'time', found := Clock())
    return found


def stage(clock, expected, pace, before=0):
    "What is told while each run takes `pace` times as long as expected."
    said, progress, names = [], None, [*expected]
    progress = Progress('tuning', expected, said.append)
    for n in range(before, len(names) + 1):
        if n > before: clock.now += pace*expected[names[n - 1]]
        progress({*names[:n]})
    return said


def test_the_time_left_is_that_of_the_runs_left_at_the_pace_so_far(clock):
    expected = {str(i): 1. for i in range(5)} | {str(i): 10. for i in range(5, 10)}
    said = stage(clock, expected, 2.)
    assert said[0] == 'tuning: 0 of 10 runs, about 55 seconds left'
    assert said[1:3] == ['tuning: 1 of 10 runs, about 2 minutes left', 'tuning: 2 of 10 runs, about 2 minutes left']
    assert 'tuning: 5 of 10 runs, about 2 minutes left' in said
    assert 'tuning: 8 of 10 runs, about 40 seconds left' in said
    assert said[-1] == 'tuning: 10 of 10 runs'


def test_what_was_done_before_does_not_make_it_look_quick(clock):
    said = stage(clock, {str(i): 10. for i in range(10)}, 1., before=8)
    assert said == ['tuning: 8 of 10 runs, about 20 seconds left', 'tuning: 9 of 10 runs, about 10 seconds left',
                    'tuning: 10 of 10 runs']


def test_a_short_stage_is_told_at_its_end_and_a_long_one_ten_times(clock):
    assert stage(clock, {str(i): .01 for i in range(100)}, 1.) == ['tuning: 100 of 100 runs']
    assert len(stage(clock, {str(i): 1. for i in range(1000)}, 1.)) == 11
