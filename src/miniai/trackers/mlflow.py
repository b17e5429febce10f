"Figures in MLflow."
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import time
from typing import Any

from miniai.trackers.tracker import Tracker, key_of, unseen

__all__ = ['MLflowTracker']

STATUS = dict(finished='FINISHED', stopped='KILLED', failed='FAILED')


class MLflowTracker(Tracker):
    """A run of MLflow, in the server of MLFLOW_TRACKING_URI or of the option `tracking_uri`; else in `mlflow.db` and
    `mlartifacts/` in the folder. Option `experiment`: its name, by default miniai. Verdicts are tags. The run that
    MLflow's own functions are using stays theirs."""
    package = 'mlflow'
    def __init__(self, folder: Path, name: str, run: str | None, step: int, tracking_uri: str | None = None,
                 experiment: str = 'miniai') -> None:
        from mlflow import MlflowClient
        folder.mkdir(parents=True, exist_ok=True)
        uri = tracking_uri or os.environ.get('MLFLOW_TRACKING_URI') or _store_in(folder.absolute())
        own = uri.startswith(('sqlite:', 'file:'))
        self.view = f'mlflow ui --backend-store-uri {uri}' if own else uri
        self.client = MlflowClient(tracking_uri=uri)
        artifacts = (folder/'mlartifacts').absolute().as_uri() if own else None
        self.run = run or self._new_run(name, experiment, artifacts)
        if run: self.client.update_run(run, status='RUNNING')
        self.last = self._last_steps() if run else {}

    def _new_run(self, name: str, experiment: str, artifacts: str | None) -> str:
        there = self.client.get_experiment_by_name(experiment)
        at = there.experiment_id if there else self.client.create_experiment(experiment, artifact_location=artifacts)
        return self.client.create_run(at, run_name=name).info.run_id

    def _last_steps(self) -> dict[str, int]:
        "The last step of each figure of a run that continues: MLflow would keep two figures of one step."
        names = self.client.get_run(self.run).data.metrics
        return {nm: max(m.step for m in self.client.get_metric_history(self.run, nm)) for nm in names}

    def config(self, values: Mapping[str, Any]) -> None:
        from mlflow.entities import Param
        there = self.client.get_run(self.run).data.params  # which MLflow does not let change
        params = [Param(key_of(k), str(v)[:6000]) for k, v in values.items()]
        self.client.log_batch(self.run, params=[p for p in params if p.key not in there])

    def figures(self, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        from mlflow.entities import Metric
        now = int(1000*time())
        named = [(step, {key_of(nm): float(x) for nm, x in values.items()}) for step, values in rows]
        new = [Metric(nm, x, now, step) for step, values in unseen(named, self.last) for nm, x in values.items()]
        for i in range(0, len(new), 1000): self.client.log_batch(self.run, metrics=new[i:i + 1000])

    def picture(self, name: str, png: Path, step: int) -> None:
        self.client.log_artifact(self.run, str(png), 'pictures')

    def alert(self, title: str, text: str, step: int) -> None:
        self.client.set_tag(self.run, f'verdict/{key_of(title)}'[:250], f'{text} (batch {step})')

    def file(self, path: Path) -> None: self.client.log_artifact(self.run, str(path))
    def close(self, how: str) -> None: self.client.set_terminated(self.run, STATUS[how])


def _store_in(folder: Path) -> str:
    "A local database. The package mlflow-skinny alone has none, and leaves it to servers."
    missing = [nm for nm in ('sqlalchemy', 'alembic') if not find_spec(nm)]
    if missing: raise ImportError(f"a store on this machine needs {' and '.join(missing)} beside mlflow-skinny, or all "
                                  f"of mlflow; else set MLFLOW_TRACKING_URI to a server")
    return f'sqlite:///{folder}/mlflow.db'
