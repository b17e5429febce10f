"Reading the record of a run: all of it, in order, with the state that follows from it."
import math
import os
import socket

import pytest

from miniai.report.record import as_json, read_run
from recorded import HISTORY, write_run


def test_everything_that_was_recorded_is_read(tmp_path):
    run = read_run(write_run(tmp_path/'run'))
    assert (run.name, run.state, run.problems) == ('run', 'finished', [])
    assert run.history == HISTORY
    assert run.rows('eval') == HISTORY[1::2]
    assert run.metrics == ['loss', 'accuracy']
    assert run.config == dict(optimizer='adamw', lr=.01, schedule='onecycle')
    assert run.batches['batches'] == 12


def test_the_environments_of_a_resumed_run_come_in_order(tmp_path):
    folder = write_run(tmp_path/'run')
    for i in (10, 2): (folder/f'environment-{i}.json').write_text(f'{{"cpus": {i}}}')
    assert [e.get('cpus') for e in read_run(folder).environments] == [None, 2, 10]


@pytest.mark.parametrize(('status', 'state'), [
    (dict(state='finished'), 'finished'), (dict(state='stopped'), 'stopped'), (dict(state='odd'), 'unknown'),
    (dict(state='running', pid=os.getpid(), host=socket.gethostname()), 'running'),
    (dict(state='running', pid=2**22 + 1, host=socket.gethostname()), 'killed'),
    (dict(state='running', pid=1, host='elsewhere'), 'unknown'),
    (dict(state='running', pid='x', host=socket.gethostname()), 'unknown')])
def test_the_state_of_a_run(tmp_path, status, state):
    assert read_run(write_run(tmp_path/'run', status=status)).state == state


def test_a_run_of_before_reports_is_read_and_what_it_lacks_is_named(tmp_path):
    lacks = dict.fromkeys(('status', 'batches', 'data', 'model', 'health', 'results'))
    run = read_run(write_run(tmp_path/'run', **lacks))
    assert run.history == HISTORY
    assert run.problems == [f'{name}.json is missing' for name in ('status', 'batches', 'model', 'data')]


@pytest.mark.parametrize('batches', [dict(batches=3, ends=[]), None], ids=['stopped', 'killed'])
def test_a_run_that_ended_in_its_first_epoch_lacks_nothing(tmp_path, batches):
    folder = write_run(tmp_path/'run', batches=batches)
    (folder/'metrics.jsonl').unlink()
    assert read_run(folder).problems == []


def test_json_has_null_where_a_number_is_not_finite():
    assert as_json([math.nan, dict(a=math.inf), 1.5]) == '[null, {"a": null}, 1.5]'


def test_numbers_that_json_lacks_are_null_at_any_depth():
    nan, inf = float('nan'), float('inf')
    assert as_json(dict(a=nan, b=[inf, 1.], c=(nan, dict(d=-inf)))) == \
           '{"a": null, "b": [null, 1.0], "c": [null, {"d": null}]}'
