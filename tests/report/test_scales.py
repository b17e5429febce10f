"Axes put values in their places, and marks are few, round and inside."
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miniai.report.scales import Axis, finite, linear_marks, log_marks, short, span

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_marks_are_up_to_six_multiples_of_a_round_step_within_the_axis(low, size):
    high = low + size
    marks = linear_marks(low, high)
    assert 1 <= len(marks) <= 6
    assert all(low - 1e-6*size <= m <= high + 1e-6*size for m in marks)
    steps = [b - a for a, b in pairwise(marks)]
    for step in steps:
        digits = step/10**math.floor(math.log10(step) + 1e-6)
        assert min(abs(digits - d) for d in (1, 2, 5)) < 1e-3


@pytest.mark.parametrize(('low', 'high', 'marks'), [
    (1e-5, 1., [1e-5, 1e-4, 1e-3, 1e-2, .1, 1.]),
    (2e-3, 8e-3, [2e-3, 3e-3, 4e-3, 5e-3, 6e-3, 7e-3, 8e-3]), (1e-9, 1., [1e-9, 1e-7, 1e-5, 1e-3, .1])])
def test_marks_of_a_logarithmic_axis_are_powers_of_ten(low, high, marks):
    found = log_marks(low, high)
    assert len(found) <= 6
    assert all(any(math.isclose(m, f) for m in marks) for f in found)


def test_an_axis_puts_values_in_proportion_and_those_outside_at_its_end():
    axis = Axis(0, 10, 100, 0)
    assert [axis(v) for v in (0, 5, 10, 20, -3)] == [100, 50, 0, 0, 100]
    log = Axis(.01, 100, 0, 40, log=True)
    assert [log(v) for v in (.01, .1, 1, 10, 100, 0)] == pytest.approx([0, 10, 20, 30, 40, 0])
    assert Axis(3, 3, 0, 10)(3) == 5


def test_whole_numbers_only_where_asked_for():
    assert Axis(.8, 3.2, 0, 1, whole=True).marks == [1, 2, 3]
    assert Axis(.8, 1.2, 0, 1, whole=True).marks == [1]


@pytest.mark.parametrize(('value', 'text'), [
    (0, '0'), (.012345, '0.0123'), (12345, '12,345'), (1.2e-5, '1.2e-05'), (3., '3'), (None, '—'), (math.nan, 'nan'),
    (1e12, '1e+12'), (999.5, '1,000'), (-0.5, '-0.5')])
def test_numbers_are_short(value, text): assert short(value) == text


def test_a_span_has_room_and_ignores_what_is_not_finite():
    assert span([1, None, math.nan, 3, math.inf], room=.5) == (0, 4)
    assert span([2., 4.], zero=True, room=.25) == (0, 5)
    assert span([]) == (0, 1)
    assert finite([None, 1, math.inf]) == [1]
    low, high = span([5.])
    assert low < 5 < high
