"Results of a trained model on data with targets: confusion, figures per class, mistakes, residuals, pictures of them."
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from miniai.data.memory import MemoryLoader, kept_rows
from miniai.data.recipe import Recipe
from miniai.inference.predictor import class_names, meaning, outputs_of
from miniai.show.plots import show_images

__all__ = ['ClassResults', 'KeptPictures', 'NumberResults', 'as_pictures', 'compared', 'confusion_of',
           'figures_of_classes', 'results']


class KeptPictures:
    "The pictures of a loader in memory by index, from 0 to 1: a large set is not copied to look at a few of them."
    def __init__(self, dl: MemoryLoader) -> None: self.dl = dl
    def __len__(self) -> int: return self.dl.n
    def __getitem__(self, i: int) -> Tensor: return kept_rows(self.dl, torch.tensor([i]))[0][0]/255


@dataclass
class ClassResults:
    """Results of a classifier: `probabilities` (N, classes), true classes `targets` (N), names of `classes`, and
    `inputs`, pictures by index as they were before they were normalized. Figures are drawn from what the other methods
    return."""
    probabilities: Tensor
    targets: Tensor
    classes: list[str]
    inputs: Any = None

    @property
    def predicted(self) -> Tensor:
        "The most probable class of each sample, (N)."
        return self.probabilities.argmax(1)

    @property
    def confusion(self) -> Tensor:
        "How often class i, the row, was taken for class j, the column: (classes, classes)."
        return confusion_of(self.targets, self.predicted, len(self.classes))

    def per_class(self) -> list[dict[str, Any]]:
        "For each class: its number of samples, precision, recall and F1; NaN without samples or predictions."
        return figures_of_classes(self.confusion, self.classes)

    def mistakes(self, n: int = 9) -> list[dict[str, Any]]:
        "Up to `n` wrong predictions, the most confident first: index, true and predicted class, probability."
        confidence, predicted = self.probabilities.max(1)
        wrong = (predicted != self.targets).nonzero().flatten()
        wrong = wrong[confidence[wrong].argsort(descending=True, stable=True)][:n]
        return [dict(index=i, true=self.classes[self.targets[i]], predicted=self.classes[predicted[i]],
                     probability=confidence[i].item()) for i in wrong.tolist()]

    @property
    def accuracy(self) -> float: return (self.predicted == self.targets).double().mean().item()

    def as_dict(self) -> dict[str, Any]:
        "Accuracy, the figures of each class, and the confusion matrix, as plain values."
        return dict(accuracy=self.accuracy, classes=self.per_class(), confusion=self.confusion.tolist())

    def __str__(self) -> str:
        rows = [[str(r['class']), f"{r['samples']:,}", *(f'{r[nm]:.3f}' for nm in ('precision', 'recall', 'f1'))]
                for r in self.per_class()]
        return f'{_table(["class", "samples", "precision", "recall", "f1"], rows)}\naccuracy {self.accuracy:.4f}'

    def plot_confusion(self, ax: Any = None) -> Any:
        """The confusion matrix, colored by the share of the true class, on `ax` or a new figure, with counts for up to
        30 classes. Returns the axis."""
        k, c = len(self.classes), self.confusion
        ax, share = _axis(ax, min(2 + 0.5*k, 14)), c/c.sum(1, keepdim=True).clamp(min=1)
        ax.imshow(share.numpy(), cmap='Blues', vmin=0, vmax=1)
        size = 9 if k <= 24 else 9*24/k
        ax.set_xticks(range(k), self.classes, rotation=45, ha='right', rotation_mode='anchor', fontsize=size)
        ax.set_yticks(range(k), self.classes, fontsize=size)
        ax.set(xlabel='predicted', ylabel='true')
        for i, j in c.nonzero().tolist() if k <= 30 else ():
            ax.text(j, i, f'{int(c[i, j])}', ha='center', va='center', fontsize=size,
                    color='white' if share[i, j] > .5 else 'black')
        return ax

    def show_mistakes(self, n: int = 9, **kwargs: Any) -> None:
        "Up to `n` pictures that were taken for another class, the most confident first. `kwargs` go to `show_images`."
        found = self.mistakes(n)
        titles = [f"{m['predicted']} {m['probability']:.0%}\nis {m['true']}" for m in found]
        if found: self._show([m['index'] for m in found], titles, kwargs)
        else: print('no mistakes to show')

    def show_samples(self, n: int = 9, **kwargs: Any) -> None:
        "The first `n` pictures with their true and predicted classes. `kwargs` go to `show_images`."
        pairs = zip(self.predicted.tolist()[:n], self.targets.tolist()[:n], strict=True)
        titles = [self.classes[t] if p == t else f'{self.classes[p]}\nis {self.classes[t]}' for p, t in pairs]
        self._show(range(len(titles)), titles, kwargs)

    def _show(self, indices: Any, titles: list[str], kwargs: dict[str, Any]) -> None:
        images = [self.inputs[i] for i in indices] if isinstance(self.inputs, Tensor | list | KeptPictures) else []
        if not images or not isinstance(images[0], Tensor) or images[0].ndim not in (2, 3):
            raise ValueError("the inputs are no pictures: mistakes() has the indices of the samples")
        show_images(images, titles=titles, **dict(imsize=2, layout='constrained') | kwargs)


@dataclass
class NumberResults:
    "Results of a regression: `predicted` and `targets`, (N), in their own units."
    predicted: Tensor
    targets: Tensor

    @property
    def residuals(self) -> Tensor:
        "Predicted minus true, (N)."
        return self.predicted - self.targets

    def figures(self) -> dict[str, float]:
        "Root mean square error, mean absolute error, and R², the share of the variance that is explained."
        e, y = self.residuals.double(), self.targets.double()
        mse = (e**2).mean()
        return dict(rmse=mse.sqrt().item(), mae=e.abs().mean().item(),
                    r2=(1 - mse/y.var(correction=0)).item())

    as_dict = figures

    def mistakes(self, n: int = 9) -> list[dict[str, Any]]:
        "The `n` samples with the largest residuals: index, true and predicted value."
        order = self.residuals.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [dict(index=i, true=self.targets[i].item(), predicted=self.predicted[i].item()) for i in order]

    def __str__(self) -> str: return '  '.join(f'{nm} {v:.4g}' for nm, v in self.figures().items())

    def plot_residuals(self, ax: Any = None) -> Any:
        "Predicted against true values, on `ax` or a new figure. Returns the axis."
        ax, both = _axis(ax, 4), torch.cat([self.targets, self.predicted])
        ends = [both.min().item(), both.max().item()]
        ax.plot(ends, ends, color='gray', linewidth=1)
        ax.plot(self.targets.numpy(), self.predicted.numpy(), '.', alpha=.6)
        ax.set(xlabel='true', ylabel='predicted', aspect='equal')
        return ax


def results(self: Any, dl: Any = None, outputs: str | None = None) -> ClassResults | NumberResults:
    """What the model makes of the validation set, or of `dl`, next to the targets: ClassResults or NumberResults. What
    outputs mean follows from the loss function, unless `outputs` says it. ValueError without targets, or for more than
    one class or number for each sample."""
    loader = getattr(self.dls, 'valid', None) if dl is None else dl
    reread = isinstance(loader, MemoryLoader) and not loader.shuffle and loader.scaling.pixels and loader.n_inp == 1
    preds, targets, *inputs = self.capture_preds(dl=dl, inps=not reread)
    if targets is None: raise ValueError("results need targets to compare predictions with, and the batches have none")
    recipe = getattr(self.dls, 'recipe', None)
    inputs = KeptPictures(loader) if reread else inputs[0]
    return compared(preds, targets, outputs or outputs_of(self.loss_func, recipe), recipe, inputs)


def compared(preds: Tensor, targets: Tensor, kind: str, recipe: Recipe | None,
             inputs: Any = None) -> ClassResults | NumberResults:
    "The model's outputs next to the targets; `kind` says what the outputs mean, a key of OUTPUTS."
    values = meaning(kind, preds)
    if kind in ('labels', 'numbers') and values.ndim == 2 and values.shape[1] == 1: values = values.flatten()
    if isinstance(targets, Tensor) and targets.shape == (len(values), 1): targets = targets.flatten()
    if values.ndim != (2 if kind in ('classes', 'log_probabilities') else 1) or not isinstance(targets, Tensor):
        raise _several(values, targets)
    if kind == 'numbers':
        mean, std = (recipe.target_mean, recipe.target_std) if recipe else (0., 1.)
        return NumberResults(values*std + mean, targets*std + mean)
    if kind == 'labels': values = torch.stack([1 - values, values], 1)
    if targets.shape == values.shape: targets = targets.argmax(1)  # probabilities of classes
    if targets.ndim != 1: raise _several(values, targets)
    inputs = as_pictures(inputs, recipe)
    return ClassResults(values, targets.long(), class_names(recipe, values.shape[1]), inputs)


def confusion_of(targets: Tensor, predicted: Tensor, k: int) -> Tensor:
    "How often class i was taken for class j: (k, k)."
    return torch.bincount(targets*k + predicted, minlength=k*k).reshape(k, k)


def figures_of_classes(confusion: Tensor, classes: list[str]) -> list[dict[str, Any]]:
    "For each class: its number of samples, precision, recall and F1; NaN without samples or predictions."
    c = confusion.double()
    right, true, said = c.diagonal(), c.sum(1), c.sum(0)
    columns = zip(classes, true.long().tolist(), (right/said).tolist(), (right/true).tolist(),
                  (2*right/(true + said)).tolist(), strict=True)
    return [dict(zip(('class', 'samples', 'precision', 'recall', 'f1'), row, strict=True)) for row in columns]


def _several(values: Tensor, targets: Any) -> ValueError:
    shown = tuple(targets.shape) if isinstance(targets, Tensor) else f'a {type(targets).__name__}'
    return ValueError(f"results are for one class or number for each sample, and there are predictions of shape "
                      f"{tuple(values.shape)} for targets of shape {shown}: compare them yourself, with "
                      f"learn.capture_preds()")


def as_pictures(inputs: Any, recipe: Recipe | None) -> Any:
    "Pixels that were normalized, as they were: from 0 to 1."
    if isinstance(inputs, KeptPictures): return inputs
    pixels = inputs is not None and recipe is not None and recipe.dtypes == ['uint8']
    if not pixels or recipe.scalings[0].get('mean') is None: return inputs
    mean, std = (torch.as_tensor(recipe.scalings[0][nm]) for nm in ('mean', 'std'))
    if mean.ndim: mean, std = (t.reshape(-1, *[1]*(inputs.ndim - 2)) for t in (mean, std))
    return (inputs*std + mean).clamp(0, 1)


def _axis(ax: Any, side: float) -> Any:
    if ax is not None: return ax
    import matplotlib.pyplot as plt
    return plt.subplots(figsize=(side, side), layout='constrained')[1]


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    sides = ['<', *'>'*(len(head) - 1)]
    return '\n'.join('  '.join(f'{c:{side}{w}}' for c, side, w in zip(r, sides, widths, strict=True))
                     for r in (head, *rows))
