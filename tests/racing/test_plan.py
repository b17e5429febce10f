"The plan: what fits a budget, how long it takes, and that its numbers are those of what then runs."
import pytest

import races
from miniai.racing.entrants import find_entrant
from miniai.racing.plan import Protocol, chosen, measured, plan_text, seconds_in, seconds_of, words_of
from miniai.racing.tasks import Task
from miniai.racing.verdict import detectable

FACTS = dict(entrants=('a',), baselines=('b', 'c'), lengths=(.25, 1.), seed=0)
TASKS = {nm: Task(nm, races.model, races.data, None, 400) for nm in ('slow', 'quick')}
TIMES = {(nm, rule): (fixed, step) for nm, fixed, step in (('slow', 1., .01), ('quick', .1, .001)) for rule in 'abc'}


def protocol(**options): return Protocol(**FACTS | dict(tasks=('slow', 'quick'), trials=4, seeds=5) | options)


def test_runs_and_comparisons_are_counted():
    p = protocol(entrants=('a', 'd'))
    assert p.pairs == [('a', 'd'), ('a', 'b'), ('a', 'c'), ('d', 'b'), ('d', 'c')]
    assert p.comparisons == 5*2*2
    assert p.runs == 2*2*4*9
    p = protocol(entrants=('a', 'd'), compare='baselines')
    assert p.pairs == [('a', 'b'), ('a', 'c'), ('d', 'b'), ('d', 'c')]
    assert (p.comparisons, p.runs) == (4*2*2, 2*2*4*9)


def test_seconds_are_those_of_each_run_and_step():
    assert seconds_of(protocol(), TASKS, TIMES) == pytest.approx(3*9*((1 + 1) + (1 + 4) + (.1 + .1) + (.1 + .4)))


@pytest.mark.parametrize('budget', [100, 300, 1000, 5000])
def test_a_budget_is_nearly_used_and_never_exceeded(budget):
    p = chosen(budget, FACTS, TASKS, TIMES)
    assert .7*budget <= seconds_of(p, TASKS, TIMES) <= .9*budget
    assert p.seeds >= p.trials >= 4


def test_a_small_budget_leaves_out_the_slowest_task_and_one_that_is_too_small_is_an_error():
    assert chosen(300, FACTS, TASKS, TIMES).tasks == ('slow', 'quick')
    assert chosen(100, FACTS, TASKS, TIMES).tasks == ('quick',)
    with pytest.raises(ValueError, match='too small: 4 trials and 4 seeds on quick alone take about 17 seconds'):
        chosen(10, FACTS, TASKS, TIMES)


def test_the_plan_says_what_it_leaves_out_and_what_it_can_detect():
    text = plan_text(protocol(tasks=('quick',)), TASKS, 90)
    assert 'left out, to fit the budget: slow' in text
    assert f'{detectable(1., 5, .05/4, .8):.1f} times' in text
    assert text.startswith('54 runs, about 90 seconds')


def test_a_measured_run_has_a_fixed_part_and_one_for_each_step():
    found = measured([races.tiny()], [find_entrant(races.descent)])
    (name, (fixed, step)), = found.items()
    assert name == ('tiny', 'descent')
    assert fixed > 0
    assert step >= 0


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
