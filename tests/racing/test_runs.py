"The runs of a race: what two rules share is one trial, and a trial is named by all that its result depends on."
import json
from dataclasses import replace

import pytest

import races
from miniai.racing import runs as module
from miniai.racing.entrants import Entrant
from miniai.racing.plan import Protocol
from miniai.racing.runs import comparison_runs, made_once, trial_of, tuning_runs

PROTOCOL = Protocol(('a',), ('b',), ('tiny',), trials=3, seeds=2)
TASKS = dict(tiny=races.tiny())
RULES = {nm: Entrant(nm, None, dict(lr=(.1, 1.)), code=nm) for nm in 'ab'}
TWINS = RULES | dict(b=replace(RULES['b'], code='a'))


def test_every_rule_tries_every_configuration_and_runs_one_on_every_seed():
    tuning = tuning_runs(PROTOCOL, TASKS, RULES)
    assert len(tuning) == len({json.dumps([r['rule'], r['steps'], r['config']]) for r in tuning}) == 2*2*3
    assert {(r['tunes'], r['seed']) for r in tuning} == {(True, 999)}
    found = comparison_runs(PROTOCOL, TASKS, RULES, lambda task, steps, rule: [task, steps, rule], [5, 6])
    assert [(r['rule'], r['steps'], r['seed'], r['config'], r['tunes']) for r in found] == [
        (rule, steps, seed, ['tiny', steps, rule], False) for steps in (4, 16) for rule in 'ab' for seed in (5, 6)]


@pytest.mark.parametrize(('rules', 'n'), [(RULES, 12), (TWINS, 6), (TWINS | dict(b=replace(
    TWINS['b'], space=dict(lr=(.01, .02)))), 12), (RULES | dict(b=replace(RULES['b'], space=dict(lr=.1))), 8)])
def test_runs_of_the_same_code_and_configuration_are_made_once(rules, n):
    once = made_once(tuning_runs(PROTOCOL, TASKS, rules))
    assert len(once) == n
    assert [r['rule'] for r in once].count('a') == 6  # the first rule that shares a run has it


@pytest.mark.parametrize('other', [dict(steps=8), dict(seed=1), dict(tunes=False), dict(config=dict(lr=.2)),
                                   dict(rule='b')])
def test_a_trial_is_another_one_if_what_is_run_differs(other):
    run = dict(task='tiny', rule='a', steps=4, tunes=True, config=dict(lr=.1), seed=0)
    assert trial_of(run, TASKS, RULES) != trial_of(run | other, TASKS, RULES)
    assert trial_of(run | dict(result=7), TASKS, RULES) == trial_of(run, TASKS, RULES)


def test_a_trial_is_another_one_on_another_kind_of_device_but_not_on_the_second_of_a_kind(monkeypatch):
    run, found = dict(task='tiny', rule='a', steps=4, tunes=True, config=dict(lr=.1), seed=0), []
    for device in ('cpu', 'mps', 'cuda', 'cuda:1'):
        monkeypatch.setattr(module, 'def_device', device)
        found.append(trial_of(run, TASKS, RULES))
    assert [trial['device'] for trial in found] == ['cpu', 'mps', 'cuda', 'cuda']
    assert found[2] == found[3] != found[0]
