"Records of sampled batches as columns and as plain values."
import json
import math

from miniai import AccumulateCB
from miniai.diagnosis import health_records as module
from wards import check_up


def test_records_are_json_with_one_value_per_sampled_batch():
    records = check_up(every=3).records
    assert json.loads(json.dumps(records)) == records
    n = len(records['batches'])
    assert records['batches'] == list(range(0, 60, 3))
    assert records['every'] == 3
    assert set(records['layers']) == {'0', '1', '2', '3', '4'}
    assert set(records['parameters']['0.weight']) == {'norm', 'gradient', 'update'}
    columns = [v for of in ('layers', 'parameters') for d in records[of].values() for k, v in d.items() if k != 'kind']
    assert {len(v) for v in [*columns, *records['run'].values()]} == {n}
    assert all(0 < u < 0.2 for u in records['parameters']['0.weight']['update'])
    assert {'kind', 'mean', 'std', 'near_zero', 'saturated', 'gradient'} <= set(records['layers']['1'])


def test_long_fits_are_thinned_out(monkeypatch):
    monkeypatch.setattr(module, 'MOST_NUMBERS', 1)
    batches = check_up(every=1).records['batches']
    assert len(batches) <= 32
    assert batches[:2] == [0, 1]
    assert batches == sorted(set(batches))


def test_values_that_are_not_finite_become_none():
    assert module._plain(dict(a=[math.nan, 1.23456789, 'x'])) == dict(a=[None, 1.23457, 'x'])


def test_a_sample_waits_for_the_step_of_its_group():
    health = check_up(every=3, cbs=[AccumulateCB(4)])
    updates = health.records['parameters']['0.weight']['update']
    assert len(updates) > 5
    assert all(u > 0 for u in updates)
