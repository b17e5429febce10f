"The plain loop, as one writes it first: a dataset, two loaders, accuracy, and `fit`."
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from miniai.callbacks.metrics import accuracy as accuracy
from miniai.data.loaders import Dataset as Dataset
from miniai.data.loaders import get_dls as get_dls

__all__ = ['accuracy', 'report', 'Dataset', 'fit', 'get_dls']


def report(loss: Tensor, preds: Tensor, yb: Tensor) -> None:
    "Print loss and accuracy to two places."
    print(f'{loss:.2f}, {accuracy(preds, yb):.2f}')


def fit(epochs: int, model: nn.Module, loss_func: Callable, opt: Any, train_dl: DataLoader,
        valid_dl: DataLoader) -> tuple[float, float]:
    """Train `model` for `epochs`; after each, print epoch, mean validation loss and accuracy,
    and return the last two (NaN for no epoch)."""
    loss, acc = float('nan'), float('nan')
    for epoch in range(epochs):
        model.train()
        for xb, yb in train_dl:
            loss_func(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
        loss, acc = _evaluate(model, loss_func, valid_dl)
        print(epoch, loss, acc)
    return loss, acc


@torch.no_grad()
def _evaluate(model: nn.Module, loss_func: Callable, dl: DataLoader) -> tuple[float, float]:
    model.eval()
    rows = [(len(xb), loss_func(preds := model(xb), yb).item(), accuracy(preds, yb).item()) for xb, yb in dl]
    if not rows: raise ValueError("the validation loader is empty: there is nothing to evaluate on")
    return _weighted([(n, loss) for n, loss, _ in rows]), _weighted([(n, acc) for n, _, acc in rows])


def _weighted(pairs: Sequence[tuple[int, float]]) -> float: return sum(n*x for n, x in pairs) / sum(n for n, _ in pairs)
