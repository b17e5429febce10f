"learn.report(): what a Learner knows, as the page of a run."
import os

import pytest

from miniai.diagnosis.profile import ProfileCB
from miniai.learner import MetricsCB, ProgressCB
from miniai.metrics.accuracy import accuracy
from miniai.sgd import RecorderCB
from recorded import Page
from small import learner


def shown(learn, path, **kwargs): return Page(learn.report(path, **kwargs).read_text('utf-8'))


def test_the_page_has_the_figures_of_the_learner(tmp_path):
    cbs = [MetricsCB(accuracy=accuracy), ProgressCB(), RecorderCB(lr=lambda cb: cb.pg['lr']), ProfileCB(quiet=True)]
    learn = learner(cbs)
    learn.fit(3)
    before = [dict(r) for r in learn.history]
    found = shown(learn, tmp_path/'r.html')
    assert learn.history == before
    rows = [[r[nm] for nm in ('loss', 'accuracy', 'seconds') for r in phases]
            for phases in zip(learn.history[::2], learn.history[1::2], strict=True)]
    assert [row[1:] for row in found.tables['Figures of every epoch'][1:]] == rows
    c = learn.results().confusion.tolist()
    assert [row[1:] for row in found.tables['Confusion: true classes down, predicted classes across'][1:]] == c
    assert f'batch 11: loss {cbs[1].losses[-1]:.4g}, lr 0.1' in found.html
    assert found.facts['parameters'] == 67
    options = found.sections['configuration']
    assert (options['optimizer'], options['lr'], options['epochs']) == ('SGD', .1, 3)
    assert {'Parts of training', 'Parts of validation'} <= found.tables.keys()
    assert not found.where('aside')
    assert 'The run was started from Python' in found.text


def test_without_callbacks_and_without_results_the_page_says_what_is_missing(tmp_path):
    learn = learner(MetricsCB())
    learn.fit(1)
    found = shown(learn, tmp_path/'r.html', results=False)
    assert len(found.tables['Figures of every epoch']) == 2
    assert 'batches.json is missing' not in found.text
    assert 'Confusion: true classes down, predicted classes across' not in found.tables


def test_a_learner_that_never_trained_has_a_page(tmp_path):
    assert 'No epoch was finished.' in shown(learner(), tmp_path/'r.html').text


def test_by_default_it_is_written_to_the_current_folder_and_nothing_else_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learn = learner(MetricsCB())
    learn.fit(1)
    assert str(learn.report()) == 'report.html'
    assert os.listdir() == ['report.html']


def test_a_learner_with_a_run_folder_reports_its_run(tmp_path):
    class Folder:
        order, only_shows, run_folder = 0, True, tmp_path/'run'
        def after_fit(self, learn): pass
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'config.toml').write_text('seed = 7')
    learn = learner(Folder())
    assert learn.report() == tmp_path/'run'/'report.html'
    assert Page((tmp_path/'run'/'report.html').read_text()).sections['configuration'] == dict(seed=7)
    with pytest.raises(OSError, match='no/such'): learn.report('/no/such/folder/r.html')
