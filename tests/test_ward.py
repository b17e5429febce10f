"A few beds of bench/ward.py: one fault of each kind is found by name, and healthy runs are silent."
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]/'bench'))

import ward
import ward_healthy

ONE_OF_EACH_KIND = [  # layers, loss, rates, parameters, BatchNorm, data
    ('dead layer', 'mlp', 'clothes'), ('stuck at chance', 'mlp', 'digits'), ('rate too low', 'mlp', 'friedman'),
    ('parameter in no group', 'mlp', 'friedman'), ('batch norm differs between modes', 'mlp with norms', 'digits'),
    ('inputs not normalized', 'mlp', 'digits'), ('validation data in training', 'mlp', 'friedman'),
    ('rate too high', 'mlp', 'friedman'), ('non-finite values', 'mlp', 'friedman')]


@pytest.mark.parametrize(('fault', 'network', 'task'), ONE_OF_EACH_KIND)
def test_a_planted_fault_is_found_by_name(fault, network, task):
    found = ward.run(ward.Case(fault, network, task, 0, 'development'))
    assert ward.found(found), ward.shown(found)


@pytest.mark.parametrize('i', [0, 1])
def test_a_healthy_run_is_silent(i):
    small = ('cells', 'job'), ('mlp', 'digits')
    found = ward.run([c for c in ward.healthy_cases('development') if (c.network, c.task) in small][i])
    assert not found['verdicts'], ward.shown(found)
    assert len(found['checked']) >= 15


def test_at_least_half_of_the_ward_was_not_used_to_choose_thresholds_and_every_optimizer_is_in_both_halves():
    for fault in ward.FAULTS:
        halves = [c.half for c in ward.cases(fault)]
        assert len(halves) == 45
        assert halves.count('held-out') >= 23
        seeds = [{c.seed for c in ward.cases(fault) if c.half == half} for half in ward.HALVES]
        first = ward.FRESH
        assert seeds == [{0, 1, 2, 3}, {first + i for i in range(5)}]
        assert first % 60 == 0
    for half in ward.HALVES:
        runs = [*ward_healthy.runs(half)]
        assert len(runs) == 30
        assert {r.optimizer for r in runs} == set(ward_healthy.OPTIMIZERS)
        assert {r.schedule for r in runs} == set(ward_healthy.SCHEDULES)
