"Runs in processes of their own that are killed or signalled at random: a short version of the rows of bench/faults.py."
import pytest

import stopping


def wrong(counts): return {nm: counts[nm] for nm in stopping.WRONG if counts[nm]}


def test_killed_runs_resume_to_the_same_end():
    counts = stopping.kills(6, 'kills')
    assert counts['kills'] >= 6
    assert not wrong(counts)


def test_signalled_runs_exit_with_the_right_code_and_resume_to_the_same_end():
    counts = stopping.signals(10, 'signals')
    assert counts['signals'] == 10
    assert not wrong(counts)


@pytest.mark.parametrize(('left_out', 'kind'), [
    ('random states', '0'), ('loader position', 'memory'), ('accumulated group', 'memory')])
def test_a_resume_that_leaves_something_out_is_noticed(left_out, kind):
    counts = stopping.every_boundary(left_out, 9, left_out, (kind,))
    assert counts['different'] > 0
    assert counts['failed'] == 0
