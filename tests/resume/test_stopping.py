"Training runs stopped at random, and what going on with them comes to: a short run of bench/faults.py's rows."
import pytest

import stopping

WRONG = ('corrupt', 'stale', 'different', 'lost', 'wrong_code', 'untidy')


def wrong(counts): return {nm: counts[nm] for nm in WRONG if counts[nm]}


def test_killed_runs_go_on_to_the_uninterrupted_end():
    counts = stopping.kills(8, 'kills')
    assert counts['kills'] >= 8
    assert not wrong(counts)


def test_signalled_runs_leave_with_the_right_code_and_go_on_to_the_uninterrupted_end():
    counts = stopping.signals(16, 'signals')
    assert counts['signals'] == 16
    assert not wrong(counts)


@pytest.mark.parametrize(('left_out', 'kind'), [
    ('random states', '0'), ('loader position', 'memory'), ('accumulated group', 'memory')])
def test_a_resume_that_leaves_something_out_is_found_out(left_out, kind):
    counts = stopping.every_boundary(left_out, 7, left_out, (kind,))
    assert counts['different'] > 0
