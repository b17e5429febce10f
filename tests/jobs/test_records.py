"Records of a run are complete after each epoch, and its status says how it ended."
import json
import os

import pytest

from miniai.inference.validated import ValidatedCB
from miniai.jobs import records
from miniai.jobs.records import RecordsCB, ReportCB, Status, how_it_ended, write_page
from miniai.jobs.run_folder import RunFolder
from miniai.learner import ProgressCB
from miniai.sgd import RecorderCB
from small import learner
from tiny import files


@pytest.fixture
def folder(tmp_path): return RunFolder(str(tmp_path/'run'), 'train')


def read(folder, name): return json.loads((folder.path/f'{name}.json').read_text())


def test_after_each_epoch_losses_rates_and_results_are_in_files(folder):
    progress, rates, seen, found = ProgressCB(), RecorderCB(lr=lambda cb: cb.pg['lr']), ValidatedCB(), []
    class Look:
        order = 3
        def after_epoch(self, learn): found.append((read(folder, 'batches'), len(progress.losses)))
    learn = learner([progress, rates, seen, RecordsCB(folder, progress, rates, seen), Look()])
    learn.fit(2)
    for batches, n in found:
        assert batches['loss'] == progress.losses[:n]
        assert batches['lr'] == [.1]*n
        assert batches['ends'] == [4, 8][:n//4]
    assert [n for _, n in found] == [4, 4, 8, 8]
    assert read(folder, 'results')['epoch'] == 1
    assert read(folder, 'model')['parameters'] == 67
    assert read(folder, 'data')['classes'] == []
    before = {nm: (folder.path/nm).read_bytes() for nm in files(folder.path)}
    learn.capture_preds()
    assert before == {nm: (folder.path/nm).read_bytes() for nm in files(folder.path)}


def test_the_ends_of_epochs_are_kept_when_a_run_resumes(folder):
    a, b = (RecordsCB(folder, None, None, None) for _ in range(2))
    a.ends = [4, 8]
    b.load_state_dict(a.state_dict())
    assert b.ends == [4, 8]


def test_the_status_says_that_a_run_runs_where_and_how_it_ended(folder):
    status = Status(folder, 7)
    assert files(folder.path) == []
    status.start()
    found = read(folder, 'status')
    assert (found['state'], found['epochs'], found['pid'], found['seconds']) == ('running', 7, os.getpid(), None)
    status.end('stopped', 'ValueError: no')
    found = read(folder, 'status')
    assert (found['state'], found['error'], found['seconds'] >= 0) == ('stopped', 'ValueError: no', True)


@pytest.mark.parametrize(('error', 'words'), [
    (KeyboardInterrupt(), 'Ctrl-C.'), (SystemExit(143), 'a signal that asked it to stop.'),
    (ValueError('no'), 'ValueError: no')])
def test_how_a_run_ends_is_said_in_words(error, words):
    assert how_it_ended() is None
    found = []
    def ending():
        try: raise error
        finally: found.append(how_it_ended())
    with pytest.raises(type(error)): ending()
    assert found == [words]


@pytest.mark.parametrize(('seconds', 'written'), [(0., True), (1e9, False)])
def test_a_run_that_goes_on_has_a_report_that_is_not_written_too_often(folder, seconds, written):
    Status(folder, 2).start()
    class Look:
        order, found = 4, []
        def cleanup_epoch(self, learn): self.found.append('report.html' in files(folder.path))
    learner([ReportCB(folder, seconds), Look()]).fit(1)
    assert Look.found[0] is written
    if written: assert 'was running when this page was written' in (folder.path/'report.html').read_text()
    Look.found.clear()


def test_a_report_that_cannot_be_written_is_a_warning(folder, monkeypatch):
    def full(*args): raise OSError('no space')
    monkeypatch.setattr(records, 'write_report', full)
    with pytest.warns(UserWarning, match='report.html was not written: OSError: no space'): write_page(folder)
