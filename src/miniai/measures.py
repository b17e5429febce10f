"How good predictions are: functions of (predictions, targets). Knows torch alone."
from torch import Tensor

__all__ = ['accuracy']


def accuracy(out: Tensor, yb: Tensor) -> Tensor:
    "The share of rows of `out` (N, classes, …) whose largest entry is at `yb` (N, …), as a 0-d tensor."
    return (out.argmax(dim=1) == yb).float().mean()
