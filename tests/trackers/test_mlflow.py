"MLflow's database, read back by MLflow."
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from miniai.trackers.mlflow import MLflowTracker
from tracked import CONFIG, expected, followed, without_times

installed = pytest.mark.skipif(not (find_spec('mlflow') and find_spec('sqlalchemy') and find_spec('alembic')),
                               reason='mlflow is not installed')


@installed
@pytest.mark.filterwarnings('ignore')
def test_a_run_that_was_killed_and_resumed_is_one_run_with_every_figure_once(tmp_path, monkeypatch):
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    run = followed('mlflow', tmp_path)
    from mlflow import MlflowClient
    client = MlflowClient(f'sqlite:///{tmp_path}/mlflow.db')
    found, = client.search_runs([client.get_experiment_by_name('miniai').experiment_id])
    id = found.info.run_id
    assert (id, found.info.run_name, found.info.status) == (run.killed.run, 'first', 'FINISHED')
    figures = {nm: [(m.step, m.value) for m in client.get_metric_history(id, nm)] for nm in found.data.metrics}
    assert without_times({nm: sorted(points) for nm, points in figures.items()}) == expected()
    assert CONFIG.items() <= found.data.params.items()
    assert found.data.params['optimizer'] == 'SGD'
    assert found.data.tags['verdict/dead layer 1.ReLU'] == '99 % is 0. Raise it. (batch 8)'
    def files(path=None): return [f.path for f in client.list_artifacts(id, path)]
    assert sorted(files()) == ['model.safetensors', 'pictures']
    assert files('pictures') == ['pictures/a curve.png']
    (tmp_path/'down').mkdir()
    saved = Path(client.download_artifacts(id, 'model.safetensors', str(tmp_path/'down')))
    assert saved.read_bytes() == run.model.read_bytes()


def test_without_a_database_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    monkeypatch.setitem(sys.modules, 'mlflow', SimpleNamespace(MlflowClient=None))
    monkeypatch.setattr('miniai.trackers.mlflow.find_spec', lambda nm: None if nm == 'sqlalchemy' else nm)
    with pytest.raises(ImportError, match='a store on this machine needs sqlalchemy beside mlflow-skinny'):
        MLflowTracker(tmp_path, 'a', None, 0)
