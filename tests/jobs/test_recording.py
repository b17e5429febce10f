"What records a run: callbacks that are there, and what is left of them."
import pytest

from miniai.diagnosis.profile import ProfileCB
from miniai.jobs.recording import Recording
from miniai.jobs.run_folder import HistoryFileCB, RunFolder
from miniai.models.layers import GeneralRelu
from small import learner
from tiny import colours


@pytest.fixture
def folder(tmp_path): return RunFolder(str(tmp_path/'run'), 'train')


def files(folder): return sorted(p.name for p in folder.path.iterdir())


def recorded(folder, profile=False, epochs=1):
    recording = Recording(folder, profile)
    learn = learner(recording.cbs)
    learn.model[1] = GeneralRelu()
    for _ in range(epochs): learn.fit(1)
    return recording, learn


def test_a_profile_is_taken_where_it_is_asked_for(folder):
    kinds = [[type(cb) for cb in Recording(folder, profile).cbs] for profile in (False, True)]
    assert kinds[1] == [*kinds[0], ProfileCB]
    assert HistoryFileCB in kinds[0]


def test_a_run_without_a_batch_leaves_the_model_alone(folder, capsys):
    recording, learn = recorded(folder, profile=True, epochs=0)
    recording.leave(learn)
    recording.leave_profile()
    assert files(folder) == ['model.safetensors']
    assert capsys.readouterr().out == ''


def test_the_profile_is_printed_and_left_as_rows_and_picture(folder, capsys):
    recording, _ = recorded(folder, profile=True)
    capsys.readouterr()
    recording.leave_profile()
    assert files(folder) == ['metrics.jsonl', 'profile.json', 'profile.png']
    assert 'train: 4 batches, ' in capsys.readouterr().out
    assert colours(folder.path/'profile.png') > 10


def test_the_rates_and_activations_of_every_batch_are_there(folder):
    recording, _ = recorded(folder)
    assert recording.rates.recs['lr'] == [.1]*4
    assert [len(h.stats[0]) for h in recording.stats] == [4]
