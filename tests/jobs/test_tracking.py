"A run of a job and its trackers."
import csv
import json

import pytest

from miniai.jobs.config import ConfigError, TrainConfig
from miniai.jobs.run_folder import RunFolder
from miniai.jobs.tracking import Tracking
from miniai.learner import MetricsCB
from small import learner


def test_trackers_keep_figures_options_pictures_and_say_where(tmp_path, capsys):
    folder = RunFolder(str(tmp_path/'run'), 'train')
    tracking = Tracking(folder, ['csv'], dict(batch_size=6))
    learn = learner([MetricsCB(), *tracking.cbs])
    learn.fit(1)
    capsys.readouterr()
    learn.save_model(folder.path/'model.safetensors')
    from matplotlib.figure import Figure
    folder.picture('curves.png', Figure())
    tracking.finish()
    store = tmp_path/'run'/'csv'/'run'
    assert capsys.readouterr().out == f'tracked: {store}/figures.csv\n'
    assert sorted(p.name for p in store.iterdir()) == ['alerts.csv', 'config.json', 'figures.csv', 'pictures']
    assert [p.name for p in (store/'pictures').iterdir()] == ['curves-4.png']
    assert json.loads((store/'config.json').read_text())['batch_size'] == 6
    with (store/'figures.csv').open() as f: rows = [r for r in csv.DictReader(f) if r['name'] == 'valid/loss']
    assert [float(r['value']) for r in rows] == [learn.history[-1]['loss']]
    assert not (tmp_path/'run'/'run').exists()


def test_trackers_are_checked_before_anything_starts():
    assert TrainConfig(track='csv, tensorboard').track == 'csv, tensorboard'
    with pytest.raises(ConfigError, match="got 'tensorbord'; did you mean 'tensorboard'"):
        TrainConfig(track='csv,tensorbord')
