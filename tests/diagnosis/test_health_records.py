"Records of sampled batches as columns and as plain values."
import json
import math

import pytest
import torch
from torch import nn

from miniai import AccumulateCB, CheckpointCB, HealthCB
from miniai.diagnosis import health_records as module
from resuming import StopCB, Stopped, Watcher
from small import learner, mlp
from wards import check_up


def test_records_are_json_with_one_value_per_sampled_batch():
    records = check_up(every=3).records
    assert json.loads(json.dumps(records)) == records
    n = len(records['batches'])
    assert records['batches'] == list(range(0, 60, 3))
    assert records['every'] == 3
    assert set(records['layers']) == {'0', '1', '2', '3', '4'}
    assert set(records['parameters']['0.weight']) == {'norm', 'gradient', 'update', 'moved'}
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


# A fit that resumes

def dead():
    torch.manual_seed(1)
    model = mlp()
    nn.init.constant_(model[0].bias, -100.)
    return model


def stopped_and_resumed(folder, at, **options):
    "The HealthCB of a fit that stops with an error at (epoch, batch, training), and of the one that resumes it."
    def fit(health, *cbs, resume=False):
        learner([health, *cbs, CheckpointCB(folder, batches=1, signals=False)], model=dead()).fit(3, resume=resume)
        return health
    with pytest.raises(Stopped): fit(HealthCB(**options), StopCB(*at))
    return fit(HealthCB(**options), resume=True)


@pytest.mark.parametrize('at', [(0, 2, True), (1, 0, False), (1, 1, True), (2, 3, True)])
def test_a_fit_that_resumes_continues_the_records_and_sees_all_of_them(at, tmp_path):
    whole = HealthCB(every=1, quiet=True, file=tmp_path/'whole.json')
    learner([whole], model=dead()).fit(3)
    found = stopped_and_resumed(tmp_path/'checkpoints', at, every=1, quiet=True, file=tmp_path/'health.json')
    a, b = whole.records, found.records
    for records in (a, b):
        del records['seconds']
        del records['run']['noise_scale']  # which the batch after a sample shows
        seen = records['data'].pop('repeats')['seen']
        assert seen == 24 or at[0] == 0  # else the larger part of the first pass counts
    assert a == b
    a, b = ([v for v in health.verdicts if v.name != 'slow data loading'] for health in (whole, found))
    assert a == b
    assert {*whole.checked} - {*found.checked} <= {'unbalanced labels'}  # of which a part may see too few
    assert json.loads((tmp_path/'health.json').read_text())['records']['batches'] == list(range(12))


def test_verdicts_of_the_part_before_are_not_said_again(tmp_path, capsys):
    stopped_and_resumed(tmp_path/'checkpoints', (1, 2, True), every=1, file=tmp_path/'health.json')
    out = capsys.readouterr().out
    assert out.count('warning: 1: 100 % of the units are 0') == 1
    assert out.count('dead layer (sure)') == 2  # at the end of each part


def test_without_a_file_losses_continue_and_samples_begin_where_it_resumes(tmp_path):
    records = stopped_and_resumed(tmp_path/'checkpoints', (1, 2, True), every=1, quiet=True).records
    assert records['batches'] == [6, 7, 8, 9, 10, 11]
    assert [e['batch'] for e in records['epochs']] == [4, 8, 12]


def test_a_damaged_file_is_a_warning_and_starts_again(tmp_path):
    file = tmp_path/'health.json'
    class Damage(Watcher):
        def cleanup_fit(self, learn): file.write_text('{"records": ')
    health = HealthCB(every=1, quiet=True, file=file)
    with pytest.raises(Stopped):
        learner([health, StopCB(1, 0), CheckpointCB(tmp_path/'c', batches=1, signals=False), Damage()]).fit(2)
    health = HealthCB(every=1, quiet=True, file=file)
    with pytest.warns(UserWarning, match='health.json cannot be continued, and starts again: JSONDecodeError'):
        learner([health, CheckpointCB(tmp_path/'c', batches=1, signals=False)]).fit(2, resume=True)
    assert health.records['batches'] == [4, 5, 6, 7]


def test_a_file_that_cannot_be_written_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match='health.json was not written: .*The run continues'):
        learner([HealthCB(quiet=True, file=tmp_path/'none'/'health.json')]).fit(1)
