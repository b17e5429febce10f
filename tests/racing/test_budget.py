"Budgets: what fits, that it is nearly used and hardly measured, and that the seeds follow from recorded seconds alone."
from dataclasses import replace
from types import SimpleNamespace

import pytest

import races
from miniai.racing import budget as module
from miniai.racing.budget import chosen, measured, seconds_of, seeds_that_fit, typical_seconds
from miniai.racing.entrants import Entrant, find_entrant
from miniai.racing.plan import Protocol

FACTS = dict(entrants=('a',), baselines=('b', 'c'), lengths=(.25, 1.), seed=0)
TASKS = {nm: replace(races.tiny(), name=nm, steps=400) for nm in ('slow', 'quick')}
TIMES = {(nm, rule): (fixed, step) for nm, fixed, step in (('slow', 1., .01), ('quick', .1, .001)) for rule in 'abc'}


RULES = {nm: Entrant(nm, None, dict(lr=(.1, 1.)), code=nm) for nm in 'abc'}


def protocol(**options): return Protocol(**FACTS | dict(tasks=('slow', 'quick'), trials=4, seeds=5) | options)


def test_seconds_are_those_of_each_run_and_step():
    assert seconds_of(protocol(), TASKS, RULES, TIMES) == pytest.approx(3*9*((1 + 1) + (1 + 4) + .2 + .5))


def test_runs_that_rules_share_are_planned_once():
    p, twins = protocol(tasks=('slow',)), RULES | dict(b=replace(RULES['b'], code='a'))
    assert seconds_of(p, TASKS, twins, TIMES) == pytest.approx(2*9*(2 + 5))
    one_rate = RULES | dict(b=replace(RULES['b'], space=dict(lr=.1)))  # four times the same configuration
    assert seconds_of(p, TASKS, one_rate, TIMES) == pytest.approx((9 + 9 + 1 + 5)*(2 + 5))
    other_space = twins | dict(b=replace(twins['b'], space=dict(lr=(1e-3, .01))))
    assert seconds_of(p, TASKS, other_space, TIMES) == seconds_of(p, TASKS, RULES, TIMES)
    assert seconds_of(protocol(tasks=('slow',), lengths=(1., .9999)), TASKS, RULES, TIMES) == pytest.approx(27*5)


def test_a_budget_has_room_for_more_runs_if_rules_share_them():
    plain, shared = (chosen(1000, FACTS, TASKS, rules, TIMES) for rules in (RULES, RULES | dict(
        c=replace(RULES['c'], code='a'))))
    assert plain.seeds*3/2 - 1 <= shared.seeds <= plain.seeds*3/2 + 1


@pytest.mark.parametrize('measuring', [0, 15])
@pytest.mark.parametrize('budget', [100, 350, 1000, 5000])
def test_tuning_takes_at_most_half_of_a_budget_which_is_nearly_used(budget, measuring):
    p = chosen(budget, FACTS, TASKS, RULES, TIMES, measuring)
    total = seconds_of(p, TASKS, RULES, TIMES)
    assert .7*budget <= total + measuring <= .92*budget
    assert p.trials >= 4
    assert p.seeds >= max(8, p.trials)
    assert (.35 if p.trials > 4 else .3) < p.trials/(p.trials + p.seeds) <= .5


def test_a_small_budget_leaves_out_the_slowest_task_and_one_that_is_too_small_is_an_error():
    assert chosen(350, FACTS, TASKS, RULES, TIMES).tasks == ('slow', 'quick')
    assert chosen(250, FACTS, TASKS, RULES, TIMES).tasks == ('quick',)
    with pytest.raises(ValueError, match='too small: 4 trials and 8 seeds on quick alone take about 25 seconds'):
        chosen(10, FACTS, TASKS, RULES, TIMES)


def walls(seconds, cells=2, failed=None, rule='a', trial=''):
    return [dict(task='t', steps=s, rule=rule, trial=f'{trial or rule}{s}{i}',
                 result=dict(failed=failed, wall_seconds=w)) for s in range(cells) for i, w in enumerate(seconds)]


def one_seed(*rules, shared=False):
    return [dict(task='t', steps=s, rule=rule, trial=f'{s}{"" if shared else rule}') for s in (0, 1) for rule in rules]


def test_the_seeds_fill_what_measuring_and_tuning_left():
    tuned = walls([3., 1., 2.])  # 12 seconds, and 2 for each run of two cells
    assert seeds_that_fit(100, 10, tuned, one_seed('a')) == int((92 - 10 - 12)/4)
    assert seeds_that_fit(20, 10, tuned, one_seed('a')) == 4
    assert seeds_that_fit(1e9, 10, tuned, one_seed('a')) == 900


def test_seconds_of_runs_that_rules_share_count_once():
    tuned = walls([3., 1., 2.]) + walls([3., 1., 2.], rule='twin', trial='a')
    assert seeds_that_fit(100, 10, tuned, one_seed('a', 'twin', shared=True)) == int((92 - 10 - 12)/4)
    other = walls([3., 1., 2.]) + walls([3., 1., 2.], rule='b')
    assert seeds_that_fit(100, 10, other, one_seed('a', 'b')) == int((92 - 10 - 24)/8)


def test_what_a_run_takes_is_the_median_of_those_that_did_not_fail():
    assert typical_seconds(walls([3., 1., 2.], 1) + walls([.1, .1], 1, 'diverged')) == {('t', 0, 'a'): 2.}
    assert typical_seconds(walls([.3, .1], 1, 'diverged')) == {('t', 0, 'a'): .2}


@pytest.fixture
def entrants(): return {e.name: e for e in (find_entrant(races.descent), find_entrant('nesterov'))}


FOUND = dict(entrants=('descent',), baselines=('nesterov',), lengths=(1.,), seed=0)


def test_a_measured_run_has_a_fixed_part_and_one_for_each_step(entrants, monkeypatch):
    def timed(task, entrant, config, seed, steps, tunes):
        return dict(curve=[[steps//2, .02*steps/2, 1.], [steps, .02*steps, 1.]], wall_seconds=.5 + .02*steps)
    monkeypatch.setattr(module, 'run_trial', timed)
    times = measured(dict(tiny=races.tiny()), entrants, FOUND)
    assert times == {('tiny', nm): pytest.approx((.5, .02)) for nm in entrants}


def test_a_rule_that_fails_at_once_takes_what_failing_takes(entrants, monkeypatch):
    monkeypatch.setattr(module, 'run_trial', lambda *args, **kwargs: dict(curve=[], wall_seconds=.5))
    assert measured(dict(tiny=races.tiny()), entrants, FOUND)['tiny', 'descent'] == (.5, 0)


def test_a_task_that_cannot_fit_is_measured_with_one_rule_alone(entrants, monkeypatch):
    ran = []
    def timed(task, entrant, config, seed, steps, tunes):
        ran.append((task.name, entrant.name))
        return dict(curve=[], wall_seconds=dict(slow=9., quick=.1)[task.name])
    monkeypatch.setattr(module, 'run_trial', timed)
    times = measured(TASKS, entrants, FOUND, 60.)
    assert {*ran} == {('slow', 'descent'), ('quick', 'descent'), ('quick', 'nesterov')}
    assert times['slow', 'nesterov'] == times['slow', 'descent']
    assert chosen(60, FOUND, TASKS, entrants, times).tasks == ('quick',)


def test_tasks_that_are_not_measured_in_a_fifth_of_the_budget_are_left_out(entrants, monkeypatch):
    ran, now = [], [0.]
    def slow(task, entrant, config, seed, steps, tunes):
        ran.append(task.name)
        now[0] += 4.
        return dict(curve=[], wall_seconds=.001)
    monkeypatch.setattr(module, 'run_trial', slow)
    monkeypatch.setattr(module, 'time', SimpleNamespace(monotonic=lambda: now[0]))
    times = measured(TASKS, entrants, FOUND, 60.)  # for 16 seconds, of 12
    assert {*ran} == {'slow'} == {task for task, _ in times}
    assert chosen(60, FOUND, TASKS, entrants, times, 16.).tasks == ('slow',)
    with pytest.raises(ValueError, match='a budget of 10 seconds is too small'):
        chosen(10, FOUND, TASKS, entrants, measured(TASKS, entrants, FOUND, 10.), 16.)
    assert {task for task, _ in measured(TASKS, entrants, FOUND, 100.)} == {'slow', 'quick'}
    assert {task for task, _ in measured(TASKS, entrants, FOUND, 0.)} == {'slow', 'quick'}


def test_real_runs_are_measured(entrants):
    for fixed, step in measured(dict(tiny=races.tiny()), entrants, FOUND).values():
        assert fixed > 0
        assert step > 0
