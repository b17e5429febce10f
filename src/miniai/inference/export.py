"A trained model as a file that runs without miniai: torch.export (.pt2) or ONNX, compared with the model on real data."
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from miniai.atomic import atomic_write
from miniai.callbacks.dry_run import dry_run
from miniai.data.memory import MemoryLoader, rows_of
from miniai.data.recipe import Recipe
from miniai.device import to_cpu
from miniai.distributed.ranks import of_first
from miniai.environment import version_of
from miniai.inference.predictor import Predictor, fitting, meaning
from miniai.metrics.batch import inputs_of, n_inputs

__all__ = ['FORMATS', 'ExportError', 'examples', 'export', 'export_predictor', 'loaders_of']

_TOLERANCE = 1e-5


class ExportError(RuntimeError): "A model that cannot be exported, or whose exported file computes something else."


class _Whole(nn.Module):
    "From inputs before scaling to probabilities or numbers: scaling, the model, and what its outputs mean."
    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.model, self.outputs, recipe = predictor.model, predictor.outputs, predictor.recipe
        self.prepare = recipe.module() if recipe else None
        self.mean, self.std = (recipe.target_mean, recipe.target_std) if recipe else (0., 1.)

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.prepare is not None: inputs = self.prepare(*inputs)
        out = meaning(self.outputs, self.model(*fitting(self.model, inputs)))
        return out if (self.mean, self.std) == (0., 1.) else out*self.std + self.mean


def export(self: Any, path: str | PathLike) -> Path:
    """Write the model to `path`, '.pt2' (torch.export) or '.onnx', with preprocessing inside: it takes a batch of any
    size as it is before scaling, such as pictures of uint8, and gives probabilities, or numbers in their own units. The
    new file is run on validation data and compared with the model before it replaces an old one. ExportError if that
    fails, ImportError without the packages for ONNX. Of several processes the first one writes, and every one must call
    this."""
    predictor = self.predictor(device='cpu')
    with dry_run(self): kept = examples(loaders_of(self.dls), predictor.recipe, n_inputs(self))
    return of_first(lambda: export_predictor(predictor, path, kept))


def loaders_of(dls: Any) -> list:
    "The loaders that there are, validation first."
    return [dl for nm in ('valid', 'train') if (dl := getattr(dls, nm, None)) is not None]


def examples(loaders: Sequence, recipe: Recipe | None, n_inp: int = 1) -> list[Tensor]:
    "The inputs of a few samples, as they are before scaling if the recipe can make them from that."
    if recipe: return rows_of(next(dl for dl in loaders if isinstance(dl, MemoryLoader)), 16)
    batch = next((b for dl in loaders for b in dl), None)
    if batch is None: raise ExportError("export needs some data to run the model on, and the loaders give no batch")
    return to_cpu(list((batch,) if isinstance(batch, Tensor) else inputs_of(batch, n_inp)))


def export_predictor(predictor: Predictor, path: str | PathLike, kept: list[Tensor]) -> Path:
    """Export a predictor. `kept` are inputs of two samples or more, as `recipe.read` gives them, to trace the model and
    to compare."""
    path, whole = Path(path), _Whole(predictor).eval()
    if path.suffix not in FORMATS: raise ValueError(f"export writes {' or '.join(FORMATS)} files, got {str(path)!r}")
    if not path.parent.is_dir(): raise FileNotFoundError(f"there is no folder {path.parent} to export to")
    if len(kept[0]) < 2: raise ExportError("export needs two samples or more, to know which dimension is the batch")
    example = predictor.recipe.raw(kept) if predictor.recipe else tuple(kept)
    write, run = FORMATS[path.suffix]
    with atomic_write(path) as part, _quiet(), torch.no_grad():
        expected = predictor.probabilities(kept)
        write(whole, example, part, _facts(predictor))
        for n in (len(expected), 1): _compare(_ran(run, part, [x[:n] for x in example]), expected[:n], path)
    return path


@contextmanager
def _quiet() -> Iterator[None]:
    "Without the warnings and the log of torch's exporters, which are about themselves."
    log = logging.getLogger('torch.onnx')
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally: log.setLevel(level)


def _ran(run: Callable, part: Path, inputs: list[Tensor]) -> Tensor:
    try: return run(part, inputs)
    except Exception as e: raise ExportError(f"the exported model does not run: {_first_line(e)}") from e


def _compare(found: Tensor, expected: Tensor, path: Path) -> None:
    same_shape = found.shape == expected.shape
    worst = (found.double() - expected.double()).abs().max().item() if same_shape else None
    if same_shape and worst <= _TOLERANCE*max(1., expected.abs().max().item()): return
    how = f'by up to {worst:.2g}' if same_shape else f'in shape, {tuple(found.shape)} for {tuple(expected.shape)}'
    raise ExportError(f"the exported model differs from the original {how}, so {path} was not written. Is something in "
                      f"the model random, or does a sample's output depend on the others?")


def _first_line(e: Exception) -> str: return next(iter(str(e).strip().splitlines()), type(e).__name__)


def _facts(predictor: Predictor) -> dict[str, Any]:
    "What a user of the file needs to know, for its metadata."
    recipe = predictor.recipe
    versions = dict(miniai=version_of('miniai-torch'), torch=version_of('torch'))
    about = dict(classes=recipe.classes, inputs=recipe.described) if recipe else {}
    return dict(outputs=predictor.outputs) | about | versions


def _exported(whole: nn.Module, example: tuple[Tensor, ...]) -> Any:
    batch = torch.export.Dim('batch')
    try: return torch.export.export(whole, example, dynamic_shapes=(tuple({0: batch} for _ in example),))
    except Exception as e:
        raise ExportError(f"torch.export cannot export this model: {_first_line(e)}") from e


def _write_pt2(whole: nn.Module, example: tuple[Tensor, ...], part: Path, facts: dict[str, Any]) -> None:
    about = {'miniai.json': json.dumps(facts)}
    with open(part, 'wb') as f: torch.export.save(_exported(whole, example), f, extra_files=about)


def _run_pt2(part: Path, inputs: list[Tensor]) -> Tensor:
    with open(part, 'rb') as f: return torch.export.load(f).module()(*inputs)


def _write_onnx(whole: nn.Module, example: tuple[Tensor, ...], part: Path, facts: dict[str, Any]) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as e: raise ImportError(
        f"ONNX needs the package {e.name}: pip install 'miniai-torch[export]'") from e
    names = [f'input{i}' for i in range(len(example))] if len(example) > 1 else ['input']
    program = _exported(whole, example)
    try: program = torch.onnx.export(program, input_names=names, output_names=['output'], dynamo=True, verbose=False)
    except Exception as e: raise ExportError(f"torch.onnx cannot export this model: {_first_line(e)}") from e
    model = program.model_proto
    for nm, v in facts.items(): model.metadata_props.add(key=nm, value=v if isinstance(v, str) else json.dumps(v))
    onnx.save(model, str(part))


def _run_onnx(part: Path, inputs: list[Tensor]) -> Tensor:
    import onnxruntime
    session = onnxruntime.InferenceSession(part.read_bytes(), providers=['CPUExecutionProvider'])
    names = [i.name for i in session.get_inputs()]
    return torch.from_numpy(session.run(None, {nm: x.numpy() for nm, x in zip(names, inputs, strict=True)})[0])


FORMATS = {'.pt2': (_write_pt2, _run_pt2), '.onnx': (_write_onnx, _run_onnx)}
