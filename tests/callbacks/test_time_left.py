"Time left of a fit, by a clock that the tests set."
from types import SimpleNamespace

import pytest

from miniai.callbacks.time_left import TimeLeft


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0., perf_counter=lambda: clock.now)
    monkeypatch.setattr('miniai.callbacks.time_left.time', clock)
    return clock


def fit(n_epochs=3, epoch=0, train=range(10), valid=range(4), trains=True, validates=True):
    dls = SimpleNamespace(train=train, valid=valid)
    return SimpleNamespace(n_epochs=n_epochs, epoch=epoch, dls=dls, trains=trains, validates=validates)


def test_in_the_first_pass_every_batch_of_the_fit_takes_as_long_as_those_so_far(clock):
    left = TimeLeft()
    left.begin_pass(True, 0, 10)
    assert left.seconds(fit(), 0) is None
    clock.now = 20.
    assert left.seconds(fit(), 2) == (10*(10 - 2), 10*(10 - 2 + 2*10 + 3*4))
    clock.now = 22.  # the first two took long
    assert left.seconds(fit(), 4) == (6, 1*(10 - 4 + 2*10 + 3*4))


def test_passes_that_were_seen_take_as_long_as_the_last_of_their_kind(clock):
    left = TimeLeft()
    left.begin_pass(True, 0, 10)
    clock.now = 30.
    left.end_pass()
    left.begin_pass(False, 0, 4)
    clock.now = 32.
    assert left.seconds(fit(), 2) == (2, 1*2 + 2*30 + 2*4*1)
    clock.now = 34.
    left.end_pass()
    left.begin_pass(True, 0, 10)
    clock.now = 38.
    assert left.seconds(fit(epoch=1), 2) == (16, 2*8 + 1*10*2 + 2*4)


def test_a_pass_that_was_resumed_counts_as_a_whole_one(clock):
    left = TimeLeft()
    left.begin_pass(True, 5, 10)
    clock.now = 10.
    left.end_pass()
    left.begin_pass(False, 0, 4)
    clock.now = 12.
    assert left.seconds(fit(n_epochs=2), 2) == (2, 1*2 + 20 + 4*1)


@pytest.mark.parametrize(('kinds', 'seconds'), [(dict(validates=False), (8, 8 + 20)), (dict(trains=False), (2, 2 + 8))])
def test_only_what_the_fit_does_counts(clock, kinds, seconds):
    left = TimeLeft()
    left.begin_pass(kinds.get('trains', True), 0, 10 if kinds.get('trains', True) else 4)
    clock.now = 2.
    assert left.seconds(fit(**kinds), 2) == seconds


def test_the_time_left_of_a_loader_without_length_is_unknown(clock):
    left = TimeLeft()
    left.begin_pass(True, 0, None)
    clock.now = 2.
    assert left.seconds(fit(train=iter([1])), 2) is None
    left.end_pass()
    left.begin_pass(False, 0, 4)
    clock.now = 4.
    assert left.seconds(fit(n_epochs=1), 2) == (2, 2)
