"A predictor: takes what a user has, and returns classes with probabilities, or values."
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.data.recipe import Recipe
from miniai.device import to_cpu, to_device
from miniai.distributed.whole import whole_copy
from miniai.show.tracking import tracked

__all__ = ['Predictor', 'Prediction', 'OUTPUTS', 'class_names', 'fitting', 'meaning', 'outputs_of', 'predictor']

OUTPUTS = {  # what a model's outputs become
    'classes': lambda out: out.softmax(1),
    'log_probabilities': lambda out: out.exp(),
    'labels': torch.sigmoid,
    'numbers': lambda out: out,
}
_BY_LOSS = {
    'classes': (F.cross_entropy, nn.CrossEntropyLoss), 'log_probabilities': (F.nll_loss, nn.NLLLoss),
    'labels': (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss),
}
_PARALLEL = nn.parallel.DistributedDataParallel, nn.DataParallel


def outputs_of(loss_func: Any, recipe: Recipe | None = None) -> str:
    """What the outputs of a model trained with this loss mean, a key of OUTPUTS. For a loss that is not one of torch's
    it is 'classes' if the data have classes, else 'numbers'."""
    while isinstance(loss_func, partial): loss_func = loss_func.func
    for kind, (f, cls) in _BY_LOSS.items():
        if loss_func is f or isinstance(loss_func, cls): return kind
    module = getattr(loss_func, '__module__', None) or ''
    return 'classes' if recipe and recipe.classes and not module.startswith('torch.') else 'numbers'


def meaning(outputs: str, out: Any) -> Tensor:
    "Probabilities, or numbers, from a model's outputs, in float32 if those are of less. ValueError if they do not fit."
    if not isinstance(out, Tensor):
        raise ValueError(f"the model returned a {type(out).__name__}, and predictions need a tensor")
    if outputs in ('classes', 'log_probabilities') and out.ndim < 2:
        raise ValueError(f"outputs of shape {tuple(out.shape)} have no dimension for classes: say what they "
                         f"mean, as in learn.predictor(outputs='labels') or 'numbers'")
    return OUTPUTS[outputs](out.float() if out.is_floating_point() and out.itemsize < 4 else out)


def class_names(recipe: Recipe | None, n: int) -> list[str]:
    "The names of `n` outputs: those of the classes as far as they are known, then numbers."
    known = list(recipe.classes or ())[:n] if recipe else []
    return known + [str(i) for i in range(len(known), n)]


def fitting(model: nn.Module, inputs: Any) -> list[Any]:
    "Inputs with floats in the dtype of the model's weights, if all of these have one: bfloat16 layers refuse float32."
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if len(dtypes) != 1: return list(inputs)
    return [x.to(*dtypes) if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]


@dataclass(repr=False)
class Prediction:
    """What a model says about one sample. For classes: `label`, the most probable one, its `probability`, and
    `probabilities` of all by name. For labels: `label` is a list of those above one half. For numbers: `value`, a
    number or a list, in the units of the training data."""
    label: Any = None
    probability: float | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    value: Any = None

    def __repr__(self) -> str: return f'Prediction({self})'

    def __str__(self) -> str:
        if self.value is not None: return _shown(self.value)
        if isinstance(self.label, list): return ', '.join(self.label) or 'none'
        return f'{self.label} ({self.probability:.1%})'


def _shown(v: Any) -> str:
    return f"[{', '.join(map(_shown, v))}]" if isinstance(v, list) else f'{v:.4g}' if isinstance(v, float) else str(v)


class Predictor:
    """`predictor(x)` is the Prediction for `x`, or a list of them for many. What `x` may be is the recipe's: a path,
    picture, array or table row, or many; without a recipe, a batch of the model's inputs. `outputs` says what the
    model's outputs mean, a key of OUTPUTS. The model is put in eval mode and moved to `device`."""
    def __init__(self, model: nn.Module, recipe: Recipe | None = None, outputs: str = 'numbers',
                 device: str | torch.device = 'cpu', bs: int = 256) -> None:
        if outputs not in OUTPUTS: raise ValueError(f"outputs must be one of {', '.join(OUTPUTS)}, got {outputs!r}")
        self.model, self.recipe, self.outputs = model.to(device).eval(), recipe, outputs
        self.device, self.bs = torch.device(device), bs

    def __repr__(self) -> str:
        names = self.recipe.classes if self.recipe and self.outputs != 'numbers' else None
        inputs, outputs = getattr(self.recipe, 'kind', 'batches'), ', '.join(names or [self.outputs])
        return f'Predictor: {type(self.model).__name__} on {self.device}, from {inputs} to {outputs}'

    def __call__(self, x: Any) -> Prediction | list[Prediction]:
        "The prediction for `x`, or a list if `x` is many."
        tensors, single = self._read(x)
        found = self._meant(self.probabilities(tensors))
        return found[0] if single else found

    def _read(self, x: Any) -> tuple[Any, bool]:
        if self.recipe is not None: return self.recipe.read(x)
        given = x if isinstance(x, tuple | list) else [x]
        return [torch.as_tensor(a) if isinstance(a, np.ndarray) else a for a in given], False

    def raw(self, tensors: list[Tensor]) -> Tensor:
        "The model's outputs for rows that `recipe.read` gave, on the CPU."
        loader = [tensors] if self.recipe is None else self.recipe.loader(tensors, self.bs, self.device)
        return self.over(loader, len(tensors))[0]

    @torch.no_grad()
    def over(self, loader: Any, n_inp: int) -> tuple[Tensor, list[Tensor]]:
        "The model's outputs over a loader whose batches begin with `n_inp` inputs, and their other items, on the CPU."
        out, others = [], []
        for batch in tracked(loader, 'predicting'):
            out.append(to_cpu(self.model(*fitting(self.model, to_device(list(batch[:n_inp]), self.device)))))
            others.append(to_cpu(list(batch[n_inp:])))
        if not out: raise ValueError("there is no sample to predict")
        whole = torch.cat(out) if isinstance(out[0], Tensor) and len(out) > 1 else out[0]
        return whole, [torch.cat(items) for items in zip(*others, strict=True)]

    def probabilities(self, tensors: list[Tensor]) -> Tensor:
        "The probabilities, or the numbers in their own units, for rows that `recipe.read` gave."
        out = meaning(self.outputs, self.raw(tensors))
        if self.outputs != 'numbers' or self.recipe is None: return out
        return out*self.recipe.target_std + self.recipe.target_mean

    def _meant(self, ps: Tensor) -> list[Prediction]:
        "A Prediction for each row."
        one_each = ps.ndim < 2 or (ps.ndim == 2 and ps.shape[1] == 1)
        if self.outputs == 'numbers': return [Prediction(value=v) for v in (ps.flatten() if one_each else ps).tolist()]
        if ps.ndim > 2: raise ValueError(
            f"there is more than one class for each sample, with outputs of shape {tuple(ps.shape)}: use "
            f"predictor.probabilities(tensors)")
        several = self.outputs == 'labels' and not one_each
        if self.outputs == 'labels' and one_each: ps = torch.stack([1 - ps.flatten(), ps.flatten()], 1)
        names = class_names(self.recipe, ps.shape[1])
        return [_prediction(dict(zip(names, row, strict=True)), several) for row in ps.tolist()]


def _prediction(ps: dict[str, float], several: bool) -> Prediction:
    if several: return Prediction([nm for nm, p in ps.items() if p > .5], probabilities=ps)
    best = max(ps, key=ps.get)
    return Prediction(best, ps[best], ps)


def predictor(self: Any, outputs: str | None = None, device: str | torch.device | None = None) -> Predictor:
    """A Predictor with a copy of the Learner's model as it is now, with AverageCB of the averages that it validates, on
    `device` or where the model is. What outputs mean follows from the loss function, unless `outputs` says it, and
    preprocessing from `dls.recipe`. If the model is sharded, every process must call this, and gets the whole copy."""
    with ExitStack() as undo:
        for cb in self.cbs:
            if hasattr(cb, 'validated'): undo.enter_context(cb.validated(self))
        model = whole_copy(_unwrapped(self.model))
    if device is None: device = next((p.device for p in self.model.parameters()), 'cpu')
    recipe = getattr(self.dls, 'recipe', None)
    return Predictor(model, recipe, outputs or outputs_of(self.loss_func, recipe), device)


def _unwrapped(model: nn.Module) -> nn.Module:
    "The model inside torch.compile or DistributedDataParallel, which rename its weights."
    inner = getattr(model, '_orig_mod', None) or (model.module if isinstance(model, _PARALLEL) else None)
    return model if inner is None else _unwrapped(inner)
