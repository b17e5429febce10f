"Losses and learning rates of the batches of a run, thinned to what a page can show."
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ['MOST_POINTS', 'thinned']

MOST_POINTS = 2000


def thinned(losses: Sequence[float], rates: Sequence[float], ends: Sequence[int]) -> dict[str, Any]:
    """Plain lists of at most `MOST_POINTS` values, each for `every` batches: the mean, lowest and highest `loss`, NaN
    if one of them is, and the last learning rate, `lr`. `ends` has the number of batches at each epoch's end."""
    n = len(losses)
    every = max(1, -(-n//MOST_POINTS))
    starts = np.arange(0, n, every)
    loss = np.asarray(losses, dtype=float)
    counts = np.diff([*starts, n])
    mean = np.add.reduceat(loss, starts)/counts if n else loss
    low, high = ((f.reduceat(loss, starts) if n else loss).tolist() for f in (np.minimum, np.maximum))
    lr = [float(rates[min(i + every, n) - 1]) for i in starts] if len(rates) == n else []
    return dict(batches=n, every=every, loss=mean.tolist(), low=low, high=high, lr=lr, ends=list(ends))
