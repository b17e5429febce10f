"The plan: its numbers are those of what then runs, and it says what it leaves out."
import json

import pytest

import races
from miniai.racing.plan import Protocol, plan_text, seconds_in, words_of
from miniai.racing.tasks import Task
from miniai.racing.verdict import detectable

FACTS = dict(entrants=('a',), baselines=('b', 'c'), lengths=(.25, 1.), seed=0)
TASKS = {nm: Task(nm, races.model, races.data, None, 400) for nm in ('slow', 'quick')}


def protocol(**options): return Protocol(**FACTS | dict(tasks=('slow', 'quick'), trials=4, seeds=5) | options)


def test_comparisons_are_counted():
    p = protocol(entrants=('a', 'd'))
    assert p.pairs == [('a', 'd'), ('a', 'b'), ('a', 'c'), ('d', 'b'), ('d', 'c')]
    assert '\n20 comparisons, ' in plan_text(p, TASKS, 144, 90)
    p = protocol(entrants=('a', 'd'), compare='baselines')
    assert p.pairs == [('a', 'b'), ('a', 'c'), ('d', 'b'), ('d', 'c')]
    assert '\n16 comparisons, ' in plan_text(p, TASKS, 144, 90)


def test_lengths_with_the_same_number_of_steps_count_once():
    assert '\n4 comparisons, ' in plan_text(protocol(lengths=(1., .9999)), TASKS, 54, 90)


def test_the_plan_says_what_it_leaves_out_and_what_it_can_detect():
    text = plan_text(protocol(tasks=('quick',)), TASKS, 54, 90)
    assert 'left out, to fit the budget: slow' in text
    assert f'{detectable(1., 5, .05/4, .8):.1f} times' in text
    assert text.startswith('54 runs, about 90 seconds')
    assert 'configurations and 5 seeds\n' in text


def test_the_plan_of_a_budget_does_not_claim_to_know_the_seeds():
    text = plan_text(protocol(), TASKS, 108, 600, exact=False)
    assert text.startswith('about 108 runs, about 10 minutes')
    assert 'configurations and about 5 seeds\nthe exact number of seeds follows from how long tuning takes\n' in text


def test_a_protocol_is_read_as_it_was_written():
    assert Protocol.from_dict(json.loads(json.dumps(protocol().as_dict()))) == protocol()


@pytest.mark.parametrize(('options', 'said'), [(dict(trials=0), 'trials must be'), (dict(seeds=1), 'seeds must be'),
                                               (dict(lengths=(2.,)), 'lengths must be'), (dict(alpha=0), 'alpha and'),
                                               (dict(compare='none'), 'compare must be all or baselines'),
                                               (dict(compare='baselines', baselines=()), 'no baselines to')])
def test_numbers_that_are_too_small_are_an_error(options, said):
    with pytest.raises(ValueError, match=said): protocol(**options)


def test_durations_are_read_and_written():
    assert [seconds_in(x) for x in ('90s', '10m', '1.5h', 7)] == [90, 600, 5400, 7]
    assert [words_of(x) for x in (3.21, 45, 600, 9000)] == ['3.2 seconds', '45 seconds', '10 minutes', '2.5 hours']
    for bad in ('10', '5 m', '-1m', 0, True):
        with pytest.raises(ValueError, match='a duration such as'): seconds_in(bad)
