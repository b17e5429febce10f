"The stopwatch: every moment belongs to the innermost part, and the parts sum to the elapsed time."
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniai.diagnosis.stopwatch import REST, Stopwatch


class Clock:
    "A clock that moves when told to."
    time = 0
    def __call__(self): return self.time
    def advance(self, ticks): self.time += ticks


def started():
    "A clock, a running watch and its totals."
    clock, watch, totals = Clock(), Stopwatch(), defaultdict(float)
    watch.start(totals, clock)
    return clock, watch, totals


nests = st.recursive(st.integers(0, 9), lambda inside: st.tuples(st.sampled_from('abc'), st.lists(inside, max_size=4)),
                     max_leaves=20)


def ticks_by_innermost_part(nest, part, sums):
    if isinstance(nest, int): sums[part] += nest
    else:
        for inner in nest[1]: ticks_by_innermost_part(inner, nest[0], sums)
    return sums


@given(st.lists(nests, max_size=6))
def test_each_tick_belongs_to_the_innermost_part_and_the_parts_sum_to_the_elapsed_time(whole):
    clock, watch, totals = started()
    def run(nest):
        if isinstance(nest, int): return clock.advance(nest)
        def work():
            for inner in nest[1]: run(inner)
        watch.timed(work, nest[0])()
    for nest in whole: run(nest)
    watch.stop()
    expected = ticks_by_innermost_part((REST, whole), REST, defaultdict(int))
    assert {k: v for k, v in totals.items() if v} == {k: v for k, v in expected.items() if v}
    assert sum(totals.values()) == clock.time


def test_a_function_that_raises_is_charged_up_to_there():
    clock, watch, totals = started()
    def fails():
        clock.advance(3)
        raise KeyError('oh')
    def around():
        with pytest.raises(KeyError, match='oh'): watch.timed(fails, 'b')()
        clock.advance(2)
    watch.timed(around, 'a')()
    clock.advance(1)
    watch.stop()
    assert totals == {'b': 3, 'a': 2, REST: 1}


def test_a_timed_function_keeps_its_arguments_value_and_name():
    def add(a, b): return a + b
    timed = Stopwatch().timed(add, 'a')
    assert (timed(1, 2), timed.__name__, timed.__wrapped__) == (3, 'add', add)


def test_before_the_start_and_after_the_stop_nothing_is_charged_and_the_repr_tells_which():
    clock, watch, totals = Clock(), Stopwatch(), defaultdict(float)
    work = watch.timed(lambda: clock.advance(5), 'a')
    assert repr(watch) == '<Stopwatch stopped: nothing timed>'
    work()
    watch.start(totals, clock)
    clock.advance(1)
    watch.stop()
    work()
    assert totals == {REST: 1}
    assert repr(watch) == '<Stopwatch stopped: loop 1.000 s>'


def test_time_goes_to_the_dict_turned_to_in_parts_or_whole():
    clock, watch, first = started()
    work, second, third = watch.timed(lambda: clock.advance(5), 'a'), defaultdict(float), defaultdict(float)
    for totals, in_parts in ((first, True), (second, False), (third, True)):
        watch.turn_to(totals, in_parts)
        work()
        clock.advance(1)
    watch.stop()
    assert first == third == {'a': 5, REST: 1}
    assert second == {REST: 6}


def test_without_parts_the_clock_is_not_read():
    _, watch, _ = started()
    watch.turn_to(defaultdict(float), in_parts=False)
    watch.now = None
    watch.timed(lambda: None, 'a')()


def test_during_a_pause_time_belongs_to_the_surrounding_part():
    clock, watch, totals = started()
    inner = watch.timed(lambda: clock.advance(4), 'inner')
    def around():
        with watch.paused(): inner()
        inner()
    watch.timed(around, 'a')()
    watch.stop()
    assert {k: v for k, v in totals.items() if v} == {'a': 4, 'inner': 4}
