"The report of a Learner's last fit: what the Learner knows, written as the record of a run and shown as its page."
import json
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from miniai.callbacks.progress import ProgressCB
from miniai.callbacks.record import RecorderCB
from miniai.data.loaders import length_of
from miniai.diagnosis.health import HealthCB
from miniai.diagnosis.profile import ProfileCB
from miniai.distributed.ranks import is_first, world
from miniai.environment import machine_facts
from miniai.inference.facts import data_facts, device_of, model_facts, name_of, step_facts
from miniai.inference.validated import ValidatedCB
from miniai.report.batches import thinned
from miniai.report.page import REPORT_FILE, write_report
from miniai.report.record import as_json

__all__ = ['report']


def report(self: Any, path: str | PathLike | None = None, results: bool = True) -> Path:
    """Write the last fit as one HTML page, which needs no network, to `path`, and return its path. Without a path it is
    `report.html` in the run folder, if the Learner has one, else in the current folder. Curves of the batches come from
    ProgressCB, the learning rate from RecorderCB(lr=…), verdicts and layers from HealthCB, and where the time went from
    ProfileCB, as far as they are in `cbs`. With `results` the model is validated, for figures of each class and
    mistakes. Of several processes all must call it, and the first one writes."""
    folder = next((cb.run_folder for cb in self.cbs if hasattr(cb, 'run_folder')), None)
    path = Path(path or (folder or Path())/REPORT_FILE)
    if folder is not None:
        if is_first(): write_report([folder], path)
        return path
    found = _record(self, results)
    if is_first():
        with TemporaryDirectory() as tmp:
            for name, text in found.items(): (Path(tmp)/name).write_text(text, 'utf-8')
            write_report([tmp], path)
    return path


_UNASKED = dict(kind=None, why='Nothing was predicted: the report was written without results.')


def _record(learn: Any, results: bool) -> dict[str, str]:
    "The files of a run's record, by name."
    found = dict(status=_status(learn), batches=_batches(learn), data=data_facts(learn.dls),
                 model=model_facts(learn) | (step_facts(learn) if results else {}),
                 environment=machine_facts(device_of(learn.model)) | dict(processes=world()),
                 results=_results(learn) if results and learn.history else _UNASKED,
                 profile=next((cb.rows for cb in learn.cbs if isinstance(cb, ProfileCB)), None),
                 health=next((cb.as_dict() for cb in learn.cbs if isinstance(cb, HealthCB) and cb.checked), None))
    files = {f'{name}.json': as_json(values) for name, values in found.items() if values}
    files['metrics.jsonl'] = ''.join(as_json(row) + '\n' for row in learn.history)
    files['config.toml'] = ''.join(f'{k} = {json.dumps(v, ensure_ascii=False)}\n' for k, v in _options(learn).items())
    return files


def _status(learn: Any) -> dict[str, Any]:
    ended = 'finished' if learn.history and not learn.ended_by else 'unknown'
    return dict(state=ended, name=f'{type(learn.model).__name__} in Python', epochs=learn.n_epochs, from_python=True)


def _options(learn: Any) -> dict[str, Any]:
    "What would be options on the command line."
    found = dict(optimizer=name_of(learn.opt_func or learn.opt), lr=learn.lr, loss=name_of(learn.loss_func),
                 epochs=learn.n_epochs, callbacks=[repr(cb) for cb in learn.cbs])
    return {k: v for k, v in found.items() if v is not None}


def _batches(learn: Any) -> dict[str, Any] | None:
    "What ProgressCB and RecorderCB recorded of the batches."
    losses = next((cb.losses for cb in learn.cbs if isinstance(cb, ProgressCB)), [])
    rates = next((cb.recs['lr'] for cb in learn.cbs if isinstance(cb, RecorderCB) and 'lr' in cb.recs), [])
    epochs = sum(row['phase'] == 'train' for row in learn.history)
    if not losses or not epochs: return None
    each = length_of(learn.dls.train) or len(losses)/epochs
    return thinned(losses, rates, [round(each*(i + 1)) for i in range(epochs)])


def _results(learn: Any) -> dict[str, Any] | None:
    validated = ValidatedCB()
    try: learn.evaluate(cbs=validated)
    except ValueError as e: return dict(kind=None, why=f'No predictions were recorded: {e}')
    return validated.record
