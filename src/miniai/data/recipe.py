"Recipes: how a model's inputs are made from what a user has. Fitted on training data, and saved with the model."
from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from miniai.data.memory import MemoryLoader, as_tensors

__all__ = ['Recipe', 'RECIPES']

RECIPES: dict[str, type['Recipe']] = {}


class Recipe:
    """Inputs from arrays, whose rows have the `shapes` of the training data. `scalings` has `mean`, `std` and
    `channels_last` of each, as MemoryLoader takes them. `classes` are the names of the classes, in the order of the
    model's outputs, or None; `labels` are what the data call them. Numbers to predict were reduced to (y -
    `target_mean`)/`target_std` for training."""
    kind = 'arrays'
    def __init_subclass__(cls) -> None: RECIPES[cls.kind] = cls

    def __init__(self, shapes: Sequence, dtypes: Sequence[str], scalings: Sequence[dict], classes: Any = None,
                 target_mean: float = 0., target_std: float = 1., labels: Any = None) -> None:
        self.shapes, self.dtypes, self.scalings = [tuple(s) for s in shapes], list(dtypes), list(scalings)
        self.classes = None if classes is None else [str(c) for c in classes]
        self.labels = self.classes if labels is None else list(labels)
        self.target_mean, self.target_std = float(target_mean), float(target_std)

    def read(self, x: Any) -> tuple[list, bool]:
        """The arrays that a MemoryLoader would keep for `x`, one for each input, and whether `x` was a single sample:
        an array of the training data's row shape, or many of them along a first dimension; a tuple for several inputs.
        ValueError for another shape or kind of number."""
        given = [a if hasattr(a, 'shape') else np.asarray(a) for a in (x if isinstance(x, tuple) else (x,))]
        if len(given) != len(self.shapes):
            raise ValueError(f"the model takes {len(self.shapes)} inputs, and {len(given)} were given")
        single = all(a.ndim == len(s) for a, s in zip(given, self.shapes, strict=True))
        if single: given = [a[None] for a in given]
        return [self._checked(*args) for args in zip(given, self.shapes, self.dtypes, strict=True)], single

    def _checked(self, a: Any, shape: tuple, dtype: str) -> Any:
        if tuple(a.shape[1:]) != shape:
            raise ValueError(f"the model was trained on inputs of shape {shape}, got {tuple(a.shape[1:])}")
        found, wanted = as_tensors(a)[0].dtype, getattr(torch, dtype)
        if (found == torch.uint8) == (wanted == torch.uint8) and found.is_floating_point == wanted.is_floating_point:
            return a.to(wanted) if isinstance(a, Tensor) else a
        raise ValueError(f"the model was trained on {dtype}, got {str(found).removeprefix('torch.')}")

    def loader(self, arrays: Sequence, bs: int = 256, device: Any = None, **kwargs: Any) -> MemoryLoader:
        "A loader of these arrays, inputs first and targets, if any, after them, that scales inputs as in training."
        n = len(self.shapes)
        options = {nm: [s.get(nm) for s in self.scalings] for nm in ('mean', 'std', 'channels_last')}
        if n == 1: options = {nm: v[0] for nm, v in options.items()}
        return MemoryLoader(*arrays, bs=bs, device=device, n_inp=n, **options, **kwargs)

    def test(self, x: Any, y: Any = None, bs: int = 256, device: Any = None) -> MemoryLoader:
        "A loader of other data in order, prepared as the training data were; with targets if `y` has them."
        return self.loader([*self.read(x)[0], *([] if y is None else [self.target(y)])], bs, device)

    def target(self, y: Any) -> Any:
        "Targets as the loss takes them: names of classes become their places, numbers are scaled."
        if not self.classes or not len(y) or not isinstance(y[0], str):
            return y if (self.target_mean, self.target_std) == (0., 1.) else (y - self.target_mean)/self.target_std
        places = {nm: i for names in (self.classes, self.labels) for i, nm in enumerate(names)}
        unknown = sorted(set(y) - set(places))
        if unknown: raise ValueError(f"unknown class {', '.join(unknown)}: the model knows {', '.join(self.classes)}")
        return torch.tensor([places[nm] for nm in y])

    def renamed(self, classes: Sequence) -> 'Recipe':
        "The same recipe with other names for its classes. ValueError unless there is one for each."
        if not self.classes: raise ValueError("the data have no classes to name: what is predicted are numbers")
        if not isinstance(classes, list | tuple) or len(classes) != len(self.classes): raise ValueError(
            f"classes must be {len(self.classes)} names, for {', '.join(self.classes)}, got {classes!r}")
        new = copy(self)
        new.classes = [str(c) for c in classes]
        return new

    @property
    def facts(self) -> dict[str, Any]:
        "What `build_model` needs to know about the data."
        return dict(shapes=[list(s) for s in self.shapes], outputs=len(self.classes) if self.classes else 1)

    def module(self) -> nn.Module:
        "The scaling as a module that can be exported: inputs as they are kept to inputs of the model."
        return _Scalings(self.shapes, self.dtypes, self.scalings)

    def raw(self, kept: Sequence[Tensor]) -> tuple[Tensor, ...]:
        "The inputs of `module()` for rows as they are kept."
        return tuple(kept)

    @property
    def described(self) -> list[dict[str, Any]]:
        "The inputs of `module()`, for the metadata of an exported model."
        return [dict(shape=['batch', *s], dtype=d) for s, d in zip(self.shapes, self.dtypes, strict=True)]

    def to_dict(self) -> dict[str, Any]:
        "The recipe as plain values that a checkpoint can hold: its kind, and the arguments that make it again."
        return dict(kind=self.kind, shapes=self.shapes, dtypes=self.dtypes, scalings=self.scalings) | self.targets

    @property
    def targets(self) -> dict[str, Any]:
        "What is known about the targets: classes with their labels, mean and standard deviation."
        return dict(classes=self.classes, target_mean=self.target_mean, target_std=self.target_std,
                    labels=None if self.labels == self.classes else self.labels)

    @staticmethod
    def from_dict(state: dict[str, Any]) -> 'Recipe':
        "The recipe that `to_dict` described. ValueError for a kind that this version does not know."
        kind = state['kind']
        if kind not in RECIPES: raise ValueError(f"unknown recipe {kind!r}: this version knows {', '.join(RECIPES)}")
        return RECIPES[kind](**{nm: v for nm, v in state.items() if nm != 'kind'})


RECIPES[Recipe.kind] = Recipe


class _Scalings(nn.Module):
    "What `Scaling` does to each input, with its numbers as buffers."
    def __init__(self, shapes: list[tuple], dtypes: list[str], scalings: list[dict]) -> None:
        super().__init__()
        self.kinds = [(d == 'uint8', len(s), bool(c.get('channels_last')))
                      for s, d, c in zip(shapes, dtypes, scalings, strict=True)]
        for i, (s, c) in enumerate(zip(shapes, scalings, strict=True)):
            for nm, neutral in (('mean', 0.), ('std', 1.)):
                t = torch.as_tensor(neutral if c.get(nm) is None else c[nm])
                self.register_buffer(f'{nm}{i}', t.reshape([-1, *[1]*(len(s) - 1)]) if t.ndim else t)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._scaled(i, x) for i, x in enumerate(inputs))

    def _scaled(self, i: int, x: Tensor) -> Tensor:
        pixels, ndim, channels_last = self.kinds[i]
        if channels_last: x = x.permute(0, 3, 1, 2)
        if pixels: x = (x.unsqueeze(1) if ndim == 2 else x).float()/255
        return (x - getattr(self, f'mean{i}'))/getattr(self, f'std{i}') if x.is_floating_point() else x
