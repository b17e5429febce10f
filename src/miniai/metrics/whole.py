"Metrics of a whole epoch, such as F1, AUC or RMSE, which are not means over batches."
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from miniai.device import to_cpu
from miniai.metrics.batch import batch_size

__all__ = ['Whole', 'joined']


class Whole:
    """A function of `(preds, *targets)`, or of `preds` alone, as a metric: `MetricsCB(f1=Whole(f1_score))` calls it
    once per epoch and phase, with everything that the batches gave, on the CPU, half precision as float32. NaN if there
    was no batch. It keeps an epoch's predictions in memory."""
    def __init__(self, f: Callable[..., Any]) -> None:
        if not callable(f): raise TypeError(f"Whole needs a function of (preds, targets), got {f!r}")
        self.f, self.__name__ = f, getattr(f, '__name__', type(f).__name__)
        self.reset()

    def reset(self) -> None: self.batches = []

    def update(self, preds: Any, *targets: Any) -> None:
        "Keep a batch."
        self.batches.append(to_cpu((preds, *targets)))

    def compute(self) -> Any:
        "The function's value over all batches."
        return self.f(*joined(self.batches)) if self.batches else float('nan')

    def state_dict(self) -> dict[str, Any]: return dict(batches=self.batches)
    def load_state_dict(self, state: dict[str, Any]) -> None: self.batches = [tuple(b) for b in state['batches']]


def joined(xs: list, sizes: list[int] | None = None) -> Any:
    """One nest from those of several batches of `sizes` samples: tensors are concatenated. Those that differ in other
    dimensions than the first, and lists with an item per sample, become one list with an item per sample; anything else
    a list with an item per batch."""
    first, sizes = xs[0], sizes or list(map(batch_size, xs))
    if isinstance(first, Tensor):
        if not first.ndim: return torch.stack(xs)
        return torch.cat(xs) if len({x.shape[1:] for x in xs}) == 1 else [row for x in xs for row in x]
    if isinstance(first, list) and _per_sample(xs, sizes): return [item for x in xs for item in x]
    if isinstance(first, tuple | list): return tuple(joined(list(x), sizes) for x in zip(*xs, strict=True))
    if isinstance(first, dict): return {k: joined([x[k] for x in xs], sizes) for k in first}
    return None if first is None else xs


def _per_sample(xs: list, sizes: list[int]) -> bool:
    "Do these lists hold an item for each sample, as a detector's output, rather than one for each of several outputs?"
    if any(len(x) != n for x, n in zip(xs, sizes, strict=True)): return False
    return any(batch_size(item) != n for x, n in zip(xs, sizes, strict=True) for item in x) or len(set(sizes)) > 1
