"What a report says about the data and the model of a Learner, as plain values."
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from miniai.callbacks.compile import CompileCB
from miniai.callbacks.progress import ProgressCB
from miniai.data.memory import MemoryLoader
from miniai.diagnosis.summary import summary
from miniai.distributed.ranks import world
from miniai.distributed.wrap import class_of

__all__ = ['data_facts', 'device_of', 'model_facts', 'name_of', 'step_facts']

MOST_MODULES = 400


def data_facts(dls: Any) -> dict[str, Any]:
    """Where the data come from, how many samples there are, their shape and classes, and how many each class has, where
    this is known without loading anything."""
    train, recipe = getattr(dls, 'train', None), getattr(dls, 'recipe', None)
    classes = list(getattr(recipe, 'classes', None) or getattr(dls, 'classes', None) or ())
    shapes = getattr(recipe, 'shapes', None) or ()
    counts = {nm: _counts(getattr(dls, nm, None), len(classes)) for nm in ('train', 'valid')} if classes else {}
    return dict(source=getattr(train, 'source', None) or None, kind=getattr(recipe, 'kind', None),
                **{nm: _samples(getattr(dls, nm, None)) for nm in ('train', 'valid')},
                batch_size=getattr(train, 'bs', None) or getattr(train, 'batch_size', None),
                shape=list(shapes[0]) if len(shapes) == 1 else None, classes=[str(c) for c in classes],
                counts={nm: found for nm, found in counts.items() if found})


def _samples(dl: Any) -> int | None:
    if hasattr(dl, 'n'): return dl.n
    try: return len(dl.dataset)
    except (AttributeError, TypeError): return None  # a stream


def _counts(dl: Any, classes: int) -> list[int] | None:
    "Samples of each class, of targets that are in memory."
    if not isinstance(dl, MemoryLoader) or len(dl.tensors) != dl.n_inp + 1: return None
    targets = dl.tensors[-1] if dl.rows is None else dl.tensors[-1][dl.rows]
    if not isinstance(targets, torch.Tensor) or targets.ndim != 1 or targets.is_floating_point(): return None
    targets = targets.long()
    return torch.bincount(targets[(targets >= 0) & (targets < classes)], minlength=classes).tolist()


def model_facts(learn: Any) -> dict[str, Any]:
    "Name, class and parameters of the model, its modules with parameters, and what trains it."
    model = learn.model
    parameters = [p for p in model.parameters() if not is_lazy(p)]
    kind = class_of(model)
    return dict(name=(getattr(model, 'recipe', None) or {}).get('name') or kind.__name__,
                parameters=sum(p.numel() for p in parameters),
                trained=sum(p.numel() for p in parameters if p.requires_grad),
                optimizer=name_of(learn.opt_func or learn.opt), loss=name_of(learn.loss_func), lr=learn.lr,
                modules=[row for nm, m in model.named_modules() if (row := _module(nm, m))][:MOST_MODULES],
                **{'class': f'{kind.__module__}.{kind.__qualname__}'})


def _module(name: str, m: nn.Module) -> dict[str, Any] | None:
    own = [p for p in m.parameters(recurse=False) if not is_lazy(p)]
    if not own: return None
    return dict(name=name, type=class_of(m).__name__, shape=list(own[0].shape), parameters=sum(p.numel() for p in own))


def step_facts(learn: Any) -> dict[str, Any]:
    """What one training step takes, from `summary`: million multiply-adds per sample, and bytes of memory for a batch.
    Nothing for models that cannot be counted, for several processes, as all would have to ask, and for compiled
    models, which would be compiled again."""
    if world() > 1 or any(isinstance(cb, CompileCB) for cb in learn.cbs): return {}
    cbs, learn.cbs = learn.cbs, [cb for cb in learn.cbs if not isinstance(cb, ProgressCB)]  # no bar for this batch
    try:
        with warnings.catch_warnings(action='ignore'): found = summary(learn)
    except Exception: return {}
    finally: learn.cbs = cbs
    mflops = found.mflops if math.isfinite(found.mflops) else None  # torch cannot count all models
    return dict(step=dict(mflops=mflops, samples=found.batch_size, memory=found.memory))


def device_of(model: nn.Module) -> str:
    "Where the parameters of a model are, as text."
    return str(next((p.device for p in model.parameters()), 'cpu'))


def name_of(f: Callable | Any) -> str | None:
    "The name of a function, a class, or of an object's class; that inside of a partial."
    while isinstance(f, partial): f = f.func
    return None if f is None else getattr(f, '__name__', type(f).__name__)
