"Runs as JSON lines."
import io
import json
import sys
from types import SimpleNamespace

import pytest

from miniai.jobs.json_lines import JSONLines, json_lines
from miniai.learner import MetricsCB
from small import learner
from tracked import Judge


def run(n=2):
    file = io.StringIO()
    lines = JSONLines(file)
    learn = learner([MetricsCB(), Judge(), lines])
    learn.fit(n)
    return lines, learn, [json.loads(line) for line in file.getvalue().splitlines()]


def test_each_row_of_the_history_is_a_line_and_each_verdict_once_in_time():
    _, learn, found = run(3)
    assert [{k: v for k, v in x.items() if k != 'event'} for x in found if x['event'] == 'epoch'] == learn.history
    events = [x['event'] for x in found]
    assert events == ['epoch']*3 + ['verdict'] + ['epoch']*3
    assert found[3] == dict(event='verdict', name='dead layer', where='1.ReLU', says='99 % is 0.', do='Raise it.')


def test_json_goes_to_stdout_and_all_else_to_stderr(tmp_path, capsys):
    (tmp_path/'model').touch()
    with json_lines(True) as lines:
        print('a word')
        lines.start(tmp_path, dict(lr=float('nan')))
    out, err = capsys.readouterr()
    first, last = map(json.loads, out.splitlines())
    assert err == 'a word\n'
    assert first == dict(event='start', folder=str(tmp_path), lr=None)
    assert last.pop('seconds') >= 0
    assert last == dict(event='end', status='finished', error=None, result={}, folder=str(tmp_path), files=['model'])


@pytest.mark.parametrize(('error', 'status', 'text'), [
    (ValueError('oh'), 'failed', 'ValueError: oh'), (KeyboardInterrupt(), 'stopped', None),
    (SystemExit(143), 'stopped', None)])
def test_a_run_that_fails_ends_with_a_line_too(capsys, error, status, text):
    with pytest.raises(type(error)), json_lines(True): raise error
    last, = map(json.loads, capsys.readouterr().out.splitlines())
    assert (last['status'], last['error'], last['folder']) == (status, text, None)


def test_a_reader_that_went_away_gets_no_more_lines(capsys):
    with pytest.raises(BrokenPipeError), json_lines(True): raise BrokenPipeError
    assert capsys.readouterr().out == ''


def test_without_json_nothing_changes(capsys):
    before = sys.stdout
    with json_lines(False) as lines:
        assert sys.stdout is before
        lines.write('x', {})
        print('a word')
    assert capsys.readouterr().out == 'a word\n'


def test_only_the_first_process_writes(monkeypatch):
    monkeypatch.setattr('miniai.jobs.json_lines.is_first', lambda: False)
    assert run()[2] == []


def test_rows_of_a_learner_without_metrics_are_no_lines():
    file = io.StringIO()
    learn = SimpleNamespace(history=[], epoch=0, cbs=[], model=SimpleNamespace(training=True))
    JSONLines(file).cleanup_epoch(learn)
    assert file.getvalue() == ''


def test_of_several_processes_only_the_first_one_prints(monkeypatch, capsys):
    for rank in (0, 1):
        monkeypatch.setattr('miniai.jobs.json_lines.launched', lambda rank=rank: (rank, 2))
        with json_lines(True): print('progress')
        out, err = capsys.readouterr()
        assert ('progress' in err, 'progress' in out) == ((True, False) if rank == 0 else (False, True))
