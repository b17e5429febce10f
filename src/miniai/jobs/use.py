"The jobs that use a trained model: evaluate it, predict with it, export it."
import csv
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from miniai.data.picture_files import picture_files
from miniai.inference.export import FORMATS, examples, export_predictor, loaders_of
from miniai.inference.model_file import load
from miniai.inference.predictor import Prediction, Predictor
from miniai.inference.results import compared
from miniai.jobs.build import build_device
from miniai.jobs.config import ConfigError, TrainConfig
from miniai.jobs.data import build_data
from miniai.jobs.run_folder import as_json, samples_of

__all__ = ['EvaluateConfig', 'PredictConfig', 'ExportConfig', 'evaluate_run', 'predict_run', 'export_run']

_IN_PYTHON = 'use miniai.load(run) in Python'


@dataclass
class EvaluateConfig:
    "Compare a trained model's predictions with the truth, as a table."
    run: Path
    """The folder of a run, or a saved model."""
    data: str = ''
    """Data with targets: a folder of pictures or a table. Default: the validation data of the run."""
    json: bool = False
    """Print JSON instead of a table."""
    allow_code: bool = False
    """Import the module:function that made the model. Only for files that you trust."""
    device: str = 'cpu'
    """cpu, cuda or mps."""


@dataclass
class PredictConfig:
    "Predict with a trained model, for pictures, folders of pictures, or a table."
    run: Path
    """The folder of a run, or a saved model."""
    inputs: tuple[Path, ...]
    """Pictures, folders of pictures, or one table."""
    json: bool = False
    """Print JSON instead of a table."""
    csv: str = ''
    """A CSV file to write instead, with the probability of every class."""
    allow_code: bool = False
    """Import the module:function that made the model. Only for files that you trust."""
    device: str = 'cpu'
    """cpu, cuda or mps."""


@dataclass
class ExportConfig:
    "Write a trained model as a file that runs without miniai."
    run: Path
    """The folder of a run, or a saved model."""
    path: Path
    """The file to write: .onnx, or .pt2 for torch.export."""
    data: str = ''
    """Data to compare the file with the model: a folder of pictures or a table. Default: the run's validation data."""
    allow_code: bool = False
    """Import the module:function that made the model. Only for files that you trust."""


def evaluate_run(config: EvaluateConfig) -> None:
    "Print a table of the results: for each class, or the errors of numbers."
    predictor = load(config.run, allow_code=config.allow_code, device=build_device(config))
    loader = _other_data(config.data, predictor) if config.data else _run_data(config.run, unchanged=True).valid
    preds, targets = predictor.over(loader, len(predictor.recipe.shapes) if predictor.recipe else 1)
    if not targets: raise ConfigError(f"{config.data} has no targets to compare predictions with")
    found = compared(preds, targets[0], predictor.outputs, predictor.recipe)
    print(as_json(found.as_dict(), indent=1) if config.json else found)


def predict_run(config: PredictConfig) -> None:
    "Print the predictions, one line each, or write them as CSV."
    predictor = load(config.run, allow_code=config.allow_code, device=build_device(config))
    names, found = _predictions(predictor, config.inputs)
    rows = [dict(input=nm) | _plain(p) for nm, p in zip(names, found, strict=True)]
    if config.csv: return _write_csv(config.csv, rows)
    if config.json: return print(as_json(rows, indent=1))
    width = max(map(len, names))
    for nm, p in zip(names, found, strict=True): print(f'{nm:{width}}  {p}')


def export_run(config: ExportConfig) -> None:
    "Write the model to a file, compared with the model on validation data."
    if config.path.suffix not in FORMATS: raise ConfigError(f"export writes .onnx or .pt2, got {config.path}")
    predictor = load(config.run, allow_code=config.allow_code)
    loaders = [_other_data(config.data, predictor)] if config.data else loaders_of(_run_data(config.run))
    path = export_predictor(predictor, config.path, examples(loaders, predictor.recipe))
    print(f"wrote {path}, {path.stat().st_size:,} bytes; on validation data its outputs are the model's")


def _other_data(word: str, predictor: Predictor) -> Any:
    "A loader of the data at `word`, prepared as the model's training data were."
    if getattr(predictor.recipe, 'kind', None) not in ('pictures', 'table'):
        raise ConfigError(f"the model takes neither pictures nor tables, and --data is one of them: {_IN_PYTHON}")
    path = Path(word).expanduser()
    if path.exists(): return predictor.recipe.test(path)
    raise ConfigError(f"no data at {word!r}: give a folder of pictures or a table, or leave --data out for the "
                      f"validation data of the run")


def _run_data(run: Path, unchanged: bool = False) -> Any:
    """The loaders of a run. ConfigError for a folder without a run, or, if it must be `unchanged`, for another number
    of samples: they are split differently now, so that training samples would be among those for validation."""
    options, environment = run/'config.toml', run/'environment.json'
    if not options.is_file(): raise ConfigError(f"{run} is not the folder of a run: name data with --data")
    with redirect_stdout(sys.stderr): dls = build_data(TrainConfig.from_toml(options))  # stdout is for results
    before = json.loads(environment.read_text('utf-8')).get('samples') if environment.is_file() else None
    now = samples_of(dls)
    if not unchanged or before in (None, now): return dls
    raise ConfigError(f"the data of the run changed: it had {before['train']} samples for training and "
                      f"{before['valid']} for validation, and now there are {now['train']} and {now['valid']}, so that "
                      f"validation may have samples from training: name other data with --data")


def _predictions(predictor: Predictor, inputs: Sequence[Path]) -> tuple[list[str], list[Prediction]]:
    "Names of the inputs, and their predictions: files, or rows of a table."
    if not inputs: raise ConfigError("say what to predict: pictures, folders of pictures, or a table")
    kind = getattr(predictor.recipe, 'kind', None)
    if kind == 'table':
        if len(inputs) != 1: raise ConfigError(f"the model takes one table, and {len(inputs)} files were given")
        found = predictor(inputs[0])
        return [f'row {i}' for i in range(len(found))], found
    if kind != 'pictures': raise ConfigError(f"the model takes neither pictures nor tables: {_IN_PYTHON}")
    files = [f for path in inputs for f in (picture_files(path) if path.is_dir() else [path])]
    return list(map(str, files)), predictor(files)


def _plain(p: Prediction) -> dict[str, Any]:
    return {nm: v for nm, v in asdict(p).items() if v is not None and v != {}}


def _write_csv(path: str, rows: list[dict[str, Any]]) -> None:
    flat = [{nm: v for nm, v in row.items() if nm != 'probabilities'} | row.get('probabilities', {}) for row in rows]
    with open(path, 'w', newline='', encoding='utf-8') as f:
        writer = csv.DictWriter(f, list(flat[0]))
        writer.writeheader()
        writer.writerows(flat)
    print(f'wrote {len(flat):,} predictions to {path}')
