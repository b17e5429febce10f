"The stopwatch: every moment belongs to one part, the innermost, and the parts sum to the whole."
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniai.diagnosis.stopwatch import REST, Stopwatch


class Clock:
    "A clock that moves when told."
    time = 0
    def __call__(self): return self.time
    def pass_by(self, ticks): self.time += ticks


def started(clock):
    watch, totals = Stopwatch(), defaultdict(float)
    watch.start(totals, clock)
    return watch, totals


nests = st.recursive(st.integers(0, 9), lambda inside: st.tuples(st.sampled_from('abc'), st.lists(inside, max_size=4)),
                     max_leaves=20)


def expected(nest, part, sums):
    "Ticks by innermost part, by walking the tree."
    if isinstance(nest, int): sums[part] += nest
    else:
        for inner in nest[1]: expected(inner, nest[0], sums)
    return sums


@given(st.lists(nests, max_size=6))
def test_each_tick_belongs_to_the_innermost_part_and_the_sum_is_the_time_that_went_by(whole):
    clock = Clock()
    watch, totals = started(clock)
    def go(nest):
        if isinstance(nest, int): return clock.pass_by(nest)
        def work():
            for inner in nest[1]: go(inner)
        watch.timed(work, nest[0])()
    for nest in whole: go(nest)
    watch.stop()
    sums = expected((REST, whole), REST, defaultdict(int))
    assert {k: v for k, v in totals.items() if v} == {k: v for k, v in sums.items() if v}
    assert sum(totals.values()) == clock.time


def test_a_function_that_raises_has_its_time_and_what_comes_after_is_not_its():
    clock = Clock()
    watch, totals = started(clock)
    def fails():
        clock.pass_by(3)
        raise KeyError('oh')
    def around():
        with pytest.raises(KeyError, match='oh'): watch.timed(fails, 'b')()
        clock.pass_by(2)
    watch.timed(around, 'a')()
    clock.pass_by(1)
    watch.stop()
    assert totals == {'b': 3, 'a': 2, REST: 1}


def test_a_timed_function_takes_and_gives_what_it_did_and_keeps_its_name():
    def add(a, b): return a + b
    timed = Stopwatch().timed(add, 'a')
    assert (timed(1, 2), timed.__name__, timed.__wrapped__) == (3, 'add', add)


def test_before_the_start_and_after_the_stop_nothing_is_charged():
    clock = Clock()
    watch = Stopwatch()
    work = watch.timed(lambda: clock.pass_by(5), 'a')
    work()
    totals = defaultdict(float)
    watch.start(totals, clock)
    clock.pass_by(1)
    watch.stop()
    work()
    assert totals == {REST: 1}


def test_time_turned_to_another_dict_goes_there_in_parts_or_whole():
    clock = Clock()
    watch, first = started(clock)
    work, second, third = watch.timed(lambda: clock.pass_by(5), 'a'), defaultdict(float), defaultdict(float)
    for totals, in_parts in ((first, True), (second, False), (third, True)):
        watch.turn_to(totals, in_parts)
        work()
        clock.pass_by(1)
    watch.stop()
    assert first == third == {'a': 5, REST: 1}
    assert second == {REST: 6}


def test_without_parts_the_clock_is_not_read():
    clock = Clock()
    watch, _ = started(clock)
    watch.turn_to(defaultdict(float), in_parts=False)
    watch.now = None
    watch.timed(lambda: None, 'a')()


def test_within_a_pause_time_is_that_of_the_part_around():
    clock = Clock()
    watch, totals = started(clock)
    inner = watch.timed(lambda: clock.pass_by(4), 'inner')
    def around():
        with watch.paused(): inner()
        inner()
    watch.timed(around, 'a')()
    watch.stop()
    assert {k: v for k, v in totals.items() if v} == {'a': 4, 'inner': 4}
