"A trained model in one file, with all that predictions need, and back as a predictor in another process."
import re
from copy import deepcopy
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from miniai import checkpoint
from miniai.checkpoint.folder import BEST, BEST_FOLDER
from miniai.checkpoint.read import load_apart, placed, verify_parts
from miniai.data.recipe import Recipe
from miniai.distributed.ranks import of_first
from miniai.distributed.whole import whole_copy
from miniai.distributed.wrap import class_of
from miniai.environment import version_of
from miniai.events import run_cbs
from miniai.inference.predictor import Predictor, outputs_of
from miniai.models.by_name import build_model

__all__ = ['MODEL_FILE', 'ModelFileError', 'save_model', 'load', 'load_best', 'model_state', 'facts_of']

MODEL_FILE = 'model.safetensors'
_SOURCES = 'checkpoint_path', 'cache_dir'  # options of timm that say where weights are; they are in the file


class ModelFileError(ValueError): "A file from which no model can be loaded; the message says why."


def save_model(self: Any, path: str | PathLike) -> None:
    """Save what `learn.predictor()` needs in one safetensors file: weights and buffers, how the model was built if that
    was by name, class names, scaling, and versions. `miniai.load` reads it. Of several processes the first one writes,
    and every one must call this."""
    state = model_state(self.predictor(device='cpu'))
    of_first(lambda: checkpoint.save(path, state))


def model_state(predictor: Predictor) -> dict[str, Any]:
    "What the file of a model holds."
    model = predictor.model
    return dict(model=dict(model.state_dict()), **_facts(model, predictor.recipe, predictor.outputs))


def facts_of(learn: Any) -> dict[str, Any]:
    "What the file of a Learner's model holds, without the weights, which processes may share."
    recipe = getattr(learn.dls, 'recipe', None)
    return _facts(learn.model, recipe, outputs_of(learn.loss_func, recipe))


def _facts(model: nn.Module, recipe: Recipe | None, outputs: str) -> dict[str, Any]:
    kind = class_of(model)
    return dict(kind='model', net=getattr(model, 'recipe', None), layers=_layers(model),
                net_class=f'{kind.__module__}.{kind.__qualname__}', outputs=outputs,
                recipe=recipe and recipe.to_dict(), versions=_versions())


def _versions() -> dict[str, str | None]: return {nm: version_of(nm) for nm in ('miniai-torch', 'torch')}


def _layers(model: nn.Module) -> str:
    "The model as text, without addresses, which differ each time, and without the names that FSDP2 gives to classes."
    text = re.sub(' at 0x[0-9a-f]+', '', str(model))
    for m in model.modules(): text = text.replace(f'{type(m).__name__}(', f'{class_of(m).__name__}(')
    return text


def load(path: str | PathLike, model: nn.Module | None = None, allow_code: bool = False,
         device: str | torch.device = 'cpu') -> Predictor:
    """The predictor of a model that was saved, from its file or the folder of its run. Nothing in the file is run: for
    a model that you built yourself, pass another one as `model`, whose copy gets the saved weights; one that was named
    as 'module:function' is imported only with `allow_code=True`. CheckpointError for a damaged file or one of another
    format, ModelFileError for one that has no model, or another one than `model`."""
    path = _in_folder(Path(path)) if Path(path).is_dir() else Path(path)
    if not path.exists(): raise FileNotFoundError(f"there is no run folder or saved model at {path}")
    state = checkpoint.load(path)
    if not isinstance(state, dict) or state.get('kind') != 'model':
        raise ModelFileError(f"{path} is a checkpoint of a run, not a saved model: learn.load_best(folder) takes "
                             f"weights from it, and learn.save_model(path) saves a model")
    model = _built(path, state, allow_code) if model is None else deepcopy(model)
    _put_into(model, state['model'], path, assign=True)
    return Predictor(model, state['recipe'] and Recipe.from_dict(state['recipe']), state['outputs'], device)


def _in_folder(folder: Path) -> Path:
    if (folder/MODEL_FILE).exists(): return folder/MODEL_FILE
    raise FileNotFoundError(f"there is no {MODEL_FILE} in {folder}: learn.save_model('{folder/MODEL_FILE}') saves one")


def _put_into(model: nn.Module, weights: dict[str, Tensor], path: Path, assign: bool = False) -> None:
    "Load the weights, with `assign` in their own dtype. ModelFileError if they are those of another model."
    try: model.load_state_dict(weights, assign=assign)
    except RuntimeError as e:
        raise ModelFileError(f"{path} holds the weights of another model than this {type(model).__name__}: {e}") from e


def _built(path: Path, state: dict[str, Any], allow_code: bool) -> nn.Module:
    "The model that the file names, without its weights. The random state stays as it is."
    net = state['net']
    if net is None:
        raise ModelFileError(f"the model in {path}, a {state['net_class']}, was not built by name: build it, "
                             f"and pass it as load(path, model=…)")
    if ':' in net['name'] and not net['name'].startswith('timm:') and not allow_code:
        raise ModelFileError(f"{path} names the function {net['name']}, and loading would run it: pass allow_code=True "
                             f"if you trust the file, or the model itself as load(path, model=…)")
    options = {nm: v for nm, v in net['options'].items() if nm not in _SOURCES and not nm.startswith('pretrained')}
    with torch.random.fork_rng(devices=[]): model = build_model(net['name'], net['facts'], **options)
    if state['versions'] != _versions() or _layers(model) == state['layers']: return model
    raise ModelFileError(f"the model in {path} was changed after it was built as {net['name']!r}: build it in "
                         f"the same way, and pass it as load(path, model=…)")


def load_best(self: Any, folder: str | PathLike) -> None:
    """Put the weights of the best epoch into the model: those that CheckpointCB(folder, best=…) kept, in that folder or
    in the folder of the run around it. With AverageCB they are the averages. If the model is sharded, every process
    must call this. FileNotFoundError if there are none, CheckpointError if the file is damaged, ModelFileError if it is
    of another model."""
    places = [Path(folder)/inside/nm for inside in ('', 'checkpoints') for nm in (BEST, BEST_FOLDER)]
    path = next((p for p in places if p.exists()), None)
    if path is None: raise FileNotFoundError(
        f"there is no {BEST} in {folder}: CheckpointCB({str(folder)!r}, best='-loss') keeps one during a fit")
    weights = _weights_in(path, self.model.state_dict())
    _put_into(whole_copy(self.model, meta=True), weights, path, assign=True)  # an error leaves the model as it is
    _put_into(self.model, weights, path)
    run_cbs([*self.cbs, self.opt], 'weights_replaced', self)


def _weights_in(path: Path, ours: dict[str, Any]) -> dict[str, Tensor]:
    "The weights in a checkpoint, sharded as `ours` are."
    state = load_apart(path) if path.is_dir() else checkpoint.load(path)
    if path.is_dir(): verify_parts(path, state['parts'])
    return placed(path, state['model'], lambda keys: ours.get(keys[-1]))
