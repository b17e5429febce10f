"What a task of a race is: a model, data in four parts, a loss, a length and a figure of merit."
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

from torch import Tensor, nn

from miniai.data.memory import MemoryLoader, permutation
from miniai.metrics.accuracy import accuracy
from miniai.racing.code import code_of

__all__ = ['Parts', 'Task', 'TaskError', 'error_rate', 'parts_of', 'task_digest']


class Parts(NamedTuple):
    """Loaders of batches: `train`; `tuning`, on which configurations are chosen; `valid`, for curves and targets of the
    comparison; and `test`, which each run of the comparison sees once, at its end."""
    train: Any
    tuning: Any
    valid: Any
    test: Any


@dataclass(frozen=True)
class Task:
    """`model(seed)` returns a model with initial weights from `seed`; `dls(seed)` its data, with an order of training
    batches from `seed`. `steps` is the longest run. `figure(preds, targets)`, by default the loss, is computed over a
    whole part: lower is better. A race compares rules at the same seeds, so both functions must depend on the seed
    alone."""
    name: str
    model: Callable[[int], nn.Module]
    dls: Callable[[int], Parts]
    loss: Callable[..., Tensor]
    steps: int
    figure: Callable[[Tensor, Tensor], Any] | None = None
    figure_name: str = 'loss'
    about: str = ''


class TaskError(RuntimeError):
    "A task fails before any rule has done a step, so that no rule is to blame."


def error_rate(preds: Tensor, targets: Tensor) -> float:
    "The share of wrong predictions."
    return 1 - accuracy(preds, targets).item()


@lru_cache(maxsize=256)
def task_digest(task: Task) -> str:
    """Names a task by the code of its functions, what they are given, and the code of the functions among that, as it
    is before any run: a function may keep what it has loaded."""
    codes = {code_of(f, task.name) for made_by in (task.model, task.dls, task.loss, task.figure)
             for f in _functions(made_by)}
    return hashlib.sha256('\n'.join(sorted(codes)).encode()).hexdigest()[:16]


def _functions(given: Any) -> Iterator[Callable]:
    "A function and, if it is partial, the functions that it is given."
    if callable(given): yield given
    if isinstance(given, partial):
        for part in (*given.args, *given.keywords.values()): yield from _functions(part)


def parts_of(x: Tensor, y: Tensor, shares: Sequence[float], bs: int, seed: int, test: tuple | None = None,
             **kwargs: Any) -> Parts:
    """The parts of arrays: `shares` of the rows, always the same ones, are for tuning, for validation and, unless there
    is a pair `test`, for testing; the rest is for training, shuffled by `seed`. `kwargs` go to the MemoryLoader.
    ValueError for shares that leave no rows for training."""
    if not (all(share > 0 for share in shares) and sum(shares) < 1):
        raise ValueError(f"shares must be above 0 and leave rows for training, got {list(shares)}")
    if len(shares) != (2 if test else 3):
        raise ValueError(f"shares must be for {'tuning and validation' if test else 'tuning, validation and test'}, "
                         f"got {list(shares)}")
    order, at, held_out = permutation(len(x), 0, -1), 0, []
    for share in shares:
        n = max(1, round(share*len(x)))
        held_out.append(order[at:at + n])
        at += n
    train = MemoryLoader(x, y, bs=bs, shuffle=True, seed=seed, rows=order[at:], drop_last=True, **kwargs)
    loaders = [train.like(x, y, rows=rows) for rows in held_out] + ([train.like(*test)] if test else [])
    for dl in loaders: dl.bs = 8*bs
    return Parts(train, *loaders)
