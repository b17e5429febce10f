"What records a run: its callbacks, and what they save."
import json
import warnings

import pytest
from torch import nn

from miniai.activations import ActivationStats
from miniai.diagnosis import health
from miniai.diagnosis.profile import ProfileCB
from miniai.jobs import recording as module
from miniai.jobs import run_folder
from miniai.jobs.recording import Recording
from miniai.jobs.run_folder import HistoryFileCB, RunFolder
from miniai.models.layers import GeneralRelu
from small import learner
from tiny import colors, files

RECORDS = 'batches.json', 'data.json', 'health.json', 'metrics.jsonl', 'model.json', 'results.json'


@pytest.fixture
def folder(tmp_path): return RunFolder(str(tmp_path/'run'), 'train')


def recorded(folder, epochs=1, **options):
    recording = Recording(folder, **options)
    learn = learner(recording.cbs, model=nn.Sequential(nn.Linear(4, 8), GeneralRelu(), nn.Linear(8, 3)))
    for _ in range(epochs): learn.fit(1)
    for row in learn.history: row['accuracy'] = .5
    return recording, learn


def test_statistics_and_profile_are_recorded_where_asked_for(folder):
    kinds = {(s, p): [type(cb) for cb in Recording(folder, s, p).cbs] for s in (True, False) for p in (True, False)}
    assert all((ActivationStats in k, ProfileCB in k) == options for options, k in kinds.items())
    assert all(HistoryFileCB in k for k in kinds.values())


def test_a_run_without_a_batch_leaves_the_model_alone(folder, capsys):
    recording, learn = recorded(folder, epochs=0, profile=True)
    recording.save(learn)
    assert files(folder.path) == ['model.json', 'model.safetensors']
    assert capsys.readouterr().out == ''


def test_curves_activations_and_profile_are_saved_and_the_profile_is_printed(folder, capsys):
    recording, learn = recorded(folder, profile=True)
    capsys.readouterr()
    recording.save(learn)
    pictures = ['activations.png', 'curves.png', 'profile.png']
    assert files(folder.path) == sorted([*pictures, *RECORDS, 'model.safetensors', 'profile.json'])
    assert all(colors(folder.path/name) > 10 for name in pictures)
    assert 'train: 4 batches, ' in capsys.readouterr().out


def test_a_run_that_finished_says_what_a_step_takes_and_one_that_fails_does_not_count_it(folder):
    recording, learn = recorded(folder)
    assert 'step' not in json.loads((folder.path/'model.json').read_text())
    try: raise ValueError('oh')
    except ValueError: recording.save(learn)
    assert 'step' not in json.loads((folder.path/'model.json').read_text())
    recording.save(learn)
    assert json.loads((folder.path/'model.json').read_text())['step']['mflops']*1e6 == 4*8 + 8*3


def test_without_statistics_there_is_no_picture_of_activations(folder):
    recording, learn = recorded(folder, stats=False)
    recording.save(learn)
    assert files(folder.path) == sorted(['curves.png', 'model.safetensors', *RECORDS])


def test_health_is_written_with_verdicts_and_records_unless_it_is_off(folder, tmp_path):
    recording, _ = recorded(folder)
    found = json.loads((folder.path/'health.json').read_text())
    assert list(found) == ['verdicts', 'checked', 'records']
    assert found['checked'] == recording.health.checked
    assert found['records']['batches'] == [0, 1, 2, 3]
    off = RunFolder(str(tmp_path/'off'), 'train')
    recorded(off, health=False)
    assert files(off.path) == sorted({*RECORDS} - {'health.json'})


def test_the_activations_of_every_batch_are_drawn_under_the_name_of_their_module(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(module, 'activations_figure', lambda histograms: drawn.append(histograms))
    monkeypatch.setattr(RunFolder, 'picture', lambda self, name, figure: None)
    recording, learn = recorded(folder)
    recording.save(learn)
    assert recording.rates.recs['lr'] == [.1]*4
    (name, counts), = drawn[0].items()
    assert name == '1 GeneralRelu'
    assert counts.sum(0).tolist() == pytest.approx([6*8]*4)  # 6 samples of 8 activations in each of 4 batches


def test_a_full_disk_ends_no_run_and_every_missing_record_is_a_warning(folder, monkeypatch):
    def full(*args): raise OSError(28, 'No space left on device')
    for writer in (health, run_folder): monkeypatch.setattr(writer, 'atomic_write', full)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        recording, learn = recorded(folder, epochs=2)
        recording.save(learn)
    assert [row['epoch'] for row in learn.history if row['phase'] == 'train'] == [0]  # of the last fit
    assert {str(w.message).split()[0] for w in said} == {*RECORDS, 'curves.png', 'activations.png'}
    assert files(folder.path) == ['model.safetensors']


def test_a_model_that_cannot_be_saved_hides_no_earlier_error_and_leaves_the_pictures(folder, monkeypatch):
    recording, learn = recorded(folder)
    def full(path): raise OSError(28, 'No space left on device')
    learn.save_model = full
    with pytest.raises(OSError, match='No space left'): recording.save(learn)
    assert (folder.path/'curves.png').exists()
    def ending():
        try: raise ValueError('the first one')
        finally: recording.save(learn)
    with pytest.warns(UserWarning, match='No space left'), pytest.raises(ValueError, match='the first one'): ending()
