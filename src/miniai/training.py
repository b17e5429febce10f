"The plain training loop of the first lessons: a dataset, two loaders, accuracy, and `fit`."
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from miniai.data.loaders import Dataset as Dataset
from miniai.data.loaders import get_dls as get_dls
from miniai.metrics.accuracy import accuracy as accuracy
from miniai.metrics.accuracy import binary_accuracy as binary_accuracy

__all__ = ['accuracy', 'binary_accuracy', 'report', 'Dataset', 'fit', 'get_dls']


def report(loss: Tensor, preds: Tensor, yb: Tensor) -> None:
    "Print loss and accuracy with two decimals."
    print(f'{loss:.2f}, {accuracy(preds, yb):.2f}')


def fit(epochs: int, model: nn.Module, loss_func: Callable, opt: Any, train_dl: DataLoader,
        valid_dl: DataLoader) -> tuple[float, float]:
    """Train `model`, and after each epoch print its number, and loss and accuracy over the validation set. Returns the
    last loss and accuracy, NaN if `epochs` is 0."""
    loss, acc = float('nan'), float('nan')
    for epoch in range(epochs):
        model.train()
        for xb, yb in train_dl:
            loss_func(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
        model.eval()
        count, tot_loss, tot_acc = 0, 0., 0.
        with torch.no_grad():
            for xb, yb in valid_dl:
                preds, n = model(xb), len(xb)
                count    += n
                tot_loss += n*loss_func(preds, yb).item()
                tot_acc  += n*accuracy(preds, yb).item()
        if not count: raise ValueError("the validation loader is empty: give fit a valid_dl with at least one batch")
        loss, acc = tot_loss/count, tot_acc/count
        print(epoch, loss, acc)
    return loss, acc
