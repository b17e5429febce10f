"What a fit's model makes of its validation data, as plain data for a report: figures, mistakes, small pictures."
import base64
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from miniai.data.recipe import Recipe
from miniai.distributed.ranks import world
from miniai.events import Callback
from miniai.inference.predictor import class_names, outputs_of
from miniai.inference.results import (
    ClassResults,
    NumberResults,
    as_pictures,
    compared,
    confusion_of,
    figures_of_classes,
)
from miniai.metrics.batch import inputs_of, n_inputs

__all__ = ['ValidatedCB', 'thumbnail']

SAMPLES, PIXELS, MOST_CONFUSED, MOST_CLASSES, MOST_POINTS = 12, 64, 20, 40, 500
MOST_COUNTED = 4000  # classes: the counts of all pairs take 128 MB


class ValidatedCB(Callback):
    """Compares predictions with targets while a fit validates. `record` is the latest epoch's outcome as plain data,
    with `kind` 'classes' or 'numbers'; or with `why` there is none. It keeps a few numbers of each sample and the
    pictures of a few, on their device."""
    only_shows = True
    record: dict[str, Any] | None = None

    def before_epoch(self, learn: Any) -> None:
        if learn.model.training: return
        self._parts, self._first, self._worst = [], [], None
        self._why = 'Several processes validated this run: miniai evaluate shows its results.' if world() > 1 else None

    def after_batch(self, learn: Any) -> None:
        if learn.model.training or self._why or not getattr(learn, 'counts', True): return
        try: self._add(learn)
        except Exception as e: self._why = f'No predictions were recorded: {e}'  # which must not end the fit

    def _add(self, learn: Any) -> None:
        n, recipe = n_inputs(learn), getattr(learn.dls, 'recipe', None)
        inputs, targets = inputs_of(learn.batch, n), learn.batch[n:]
        if len(targets) != 1: raise ValueError('that needs one target for each sample')
        found = compared(learn.preds.detach() if isinstance(learn.preds, Tensor) else learn.preds, targets[0],
                         outputs_of(learn.loss_func, recipe), recipe)
        self._keep(found, inputs[0] if n == 1 and _is_picture(inputs[0]) else None, recipe)

    def _keep(self, found: ClassResults | NumberResults, pictures: Tensor | None, recipe: Recipe | None) -> None:
        self._recipe, done = recipe, sum(len(part[0]) for part in self._parts)
        if isinstance(found, NumberResults):
            self._parts.append((found.targets, found.predicted))
            return
        confidence, predicted = found.probabilities.max(1)
        self._classes = len(found.classes)
        self._parts.append((found.targets, predicted, confidence))
        missing = SAMPLES - sum(map(len, self._first))
        if pictures is None: return
        if missing > 0: self._first.append(pictures[:missing])
        worst = _confident_mistakes(found.targets, predicted, confidence, self._classes)
        self._merge(worst.values, worst.indices + done, pictures[worst.indices])

    def _merge(self, scores: Tensor, indices: Tensor, pictures: Tensor) -> None:
        "Keep the most confident mistakes of those so far and these, on the device: nothing waits for it."
        if self._worst is not None:
            old = self._worst
            scores, indices = torch.cat([old[0], scores]), torch.cat([old[1], indices])
            if old[2].shape[1:] != pictures.shape[1:]: raise ValueError('the pictures differ in size')
            pictures = torch.cat([old[2], pictures])
        best = scores.topk(min(SAMPLES, len(scores)))
        self._worst = best.values, indices[best.indices], pictures[best.indices]

    def after_epoch(self, learn: Any) -> None:
        if learn.model.training: return
        try: self.record = self._made(learn.epoch) if self._parts and not self._why else None
        except Exception as e: self.record, self._why = None, f'No predictions were recorded: {type(e).__name__}: {e}'
        self.record = self.record or dict(kind=None, why=self._why or 'There was no validation data.')
        self._parts, self._first, self._worst = [], [], None

    def _made(self, epoch: int) -> dict[str, Any]:
        parts = [torch.cat(p).cpu() for p in zip(*self._parts, strict=True)]
        if len(parts) == 3 and self._classes > MOST_COUNTED:
            raise ValueError(f'a table of {self._classes:,} x {self._classes:,} classes would be too large')
        made = _numbers(*parts) if len(parts) == 2 else self._of_classes(*parts)
        return dict(made, epoch=epoch, samples=len(parts[0]))

    def _of_classes(self, targets: Tensor, predicted: Tensor, confidence: Tensor) -> dict[str, Any]:
        names = class_names(self._recipe, self._classes)
        known = _known(targets, len(names))
        confusion = confusion_of(targets[known], predicted[known], len(names))
        def sample(i: int, png: str | None = None) -> dict[str, Any]:
            true = names[targets[i]] if known[i] else 'none'
            return dict(index=i, true=true, predicted=names[predicted[i]], probability=confidence[i].item(), png=png)
        if self._worst: scores, worst, pngs = self._worst[0], self._worst[1], self._pngs(self._worst[2])
        else: (scores, worst), pngs = _confident_mistakes(targets, predicted, confidence, len(names)), [None]*SAMPLES
        first = self._pngs(torch.cat(self._first)) if self._first else [None]*min(SAMPLES, len(targets))
        return dict(kind='classes', classes=names, per_class=figures_of_classes(confusion, names),
                    confusion=confusion.tolist() if len(names) <= MOST_CLASSES else None,
                    confused=_most_confused(confusion, names), examples=[sample(i, png) for i, png in enumerate(first)],
                    mistakes=[sample(i, png) for score, i, png in zip(scores.tolist(), worst.tolist(), pngs,
                                                                      strict=False) if score >= 0])

    def _pngs(self, pictures: Tensor) -> list[str]:
        found = as_pictures(pictures.float().cpu(), self._recipe)
        low, high = found.min().item(), found.max().item()
        if low < 0 or high > 1: found = (found - low)/max(high - low, 1e-12)
        return [thumbnail(p) for p in found]


def _is_picture(x: Any) -> bool: return isinstance(x, Tensor) and x.ndim == 4 and x.shape[1] in (1, 3)


def _known(targets: Tensor, classes: int) -> Tensor:
    "Which targets are classes; others are those that the loss ignores."
    return (targets >= 0) & (targets < classes)


def _confident_mistakes(targets: Tensor, predicted: Tensor, confidence: Tensor, classes: int) -> Any:
    "Values and indices of the most confident mistakes; the value is -1 where there are no more."
    scores = torch.where((predicted == targets) | ~_known(targets, classes), -1., confidence)
    return scores.topk(min(SAMPLES, len(scores)))


def thumbnail(picture: Tensor) -> str:
    "A picture (C, H, W) with values from 0 to 1 as a PNG of at most 64 pixels a side, in base64."
    from PIL import Image
    pixels = (picture.nan_to_num(0.)*255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    image.thumbnail((PIXELS, PIXELS))
    image.save(out := BytesIO(), format='PNG')
    return base64.b64encode(out.getvalue()).decode('ascii')


def _most_confused(confusion: Tensor, names: list[str]) -> list[dict[str, Any]]:
    "The pairs of classes that are confused most often."
    wrong = confusion.clone().fill_diagonal_(0).flatten()
    found = wrong.topk(min(MOST_CONFUSED, len(wrong)))
    return [dict(true=names[i//len(names)], predicted=names[i % len(names)], count=n)
            for n, i in zip(found.values.tolist(), found.indices.tolist(), strict=True) if n]


def _numbers(targets: Tensor, predicted: Tensor) -> dict[str, Any]:
    found, step = NumberResults(predicted, targets), -(-len(targets)//MOST_POINTS)
    points = torch.stack([targets, predicted], 1)[::step].tolist()
    return dict(kind='numbers', **found.figures(), points=points, mistakes=found.mistakes(SAMPLES))
