"What rules are raced on: tasks, each with a model, data in four parts, a loss, a length and a figure of merit."
import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.data import fashion_mnist
from miniai.data.fmnist import MEAN, STD
from miniai.data.memory import MemoryLoader, permutation
from miniai.init import init_weights
from miniai.metrics.accuracy import accuracy
from miniai.models.by_name import build_model, function_at

__all__ = ['TASKS', 'Parts', 'Task', 'code_of', 'error_rate', 'find_task', 'parts_of']


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


def error_rate(preds: Tensor, targets: Tensor) -> float:
    "The share of wrong predictions."
    return 1 - accuracy(preds, targets).item()


def code_of(task: Task) -> str:
    "A digest of the file that a task comes from; '' for those of the library, which the version of miniai names."
    if TASKS.get(task.name) is task: return ''
    try: text = Path(inspect.getsourcefile(inspect.unwrap(getattr(task.model, 'func', task.model)))).read_text('utf-8')
    except (TypeError, OSError): text = task.name
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build()


@lru_cache
def _clusters(n: int = 6000, features: int = 20, classes: int = 5) -> tuple[Tensor, Tensor]:
    "Rows in overlapping clusters, with features whose scales differ 30 times: a badly conditioned problem."
    g = torch.Generator().manual_seed(1)
    y, centers = torch.randint(0, classes, (n,), generator=g), torch.randn(classes, features, generator=g)
    x = centers[y] + 1.5*torch.randn(n, features, generator=g)
    return x*torch.logspace(-1, 0.5, features), y


@lru_cache
def _teacher(n: int = 20_000, features: int = 16, classes: int = 4) -> tuple[Tensor, Tensor]:
    "Rows of a table whose class a random network decides; a tenth of the classes is wrong."
    g = torch.Generator().manual_seed(2)
    x = torch.randn(n, features, generator=g)
    a, b = torch.randn(features, 32, generator=g)/features**.5, torch.randn(32, classes, generator=g)
    y, wrong = (torch.tanh(2*x @ a) @ b).argmax(1), torch.rand(n, generator=g) < 0.1
    return x, torch.where(wrong, torch.randint(0, classes, (n,), generator=g), y)


def _logistic(seed: int) -> nn.Module: return _seeded(partial(nn.Linear, 20, 5), seed)


def _mlp(seed: int) -> nn.Module:
    return _seeded(lambda: nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)),
                   seed)


def _image_model(name: str, seed: int) -> nn.Module:
    build = partial(build_model, name, dict(channels=1, outputs=10))
    return _seeded(lambda: build().apply(partial(init_weights, leaky=0.1)), seed)


@lru_cache
def _sample() -> Any: return fashion_mnist(source='sample', quiet=True)


def _images(seed: int) -> Parts:
    data = _sample()
    return parts_of(data.x_train, data.y_train, (0.1, 0.1), 128, seed, (data.x_valid, data.y_valid), mean=MEAN, std=STD)


def _table(arrays: Callable[[], tuple], bs: int, seed: int) -> Parts:
    return parts_of(*arrays(), (0.2, 0.2, 0.2), bs, seed)


TASKS = {task.name: task for task in (
    Task('logistic', _logistic, partial(_table, _clusters, 64), F.cross_entropy, 400,
         about='logistic regression on 20 features of unequal scale, 5 classes'),
    Task('mlp', _mlp, partial(_table, _teacher, 64), F.cross_entropy, 600,
         about='two hidden layers of 64 on a table of 16 features, 4 classes, a tenth of the labels wrong'),
    Task('convnet', partial(_image_model, 'simple'), _images, F.cross_entropy, 400, error_rate, 'error rate',
         'five convolutions on 10,000 images of Fashion-MNIST'),
    Task('resnet', partial(_image_model, 'resnet'), _images, F.cross_entropy, 400, error_rate, 'error rate',
         'five residual blocks on 10,000 images of Fashion-MNIST'))}


def find_task(name: str) -> Task:
    "The task called `name`, or the one that 'module:function' returns. ValueError if there is none."
    if name in TASKS: return TASKS[name]
    if ':' not in name:
        raise ValueError(f"unknown task {name!r}: choose from {', '.join(TASKS)}, or give module:function")
    task = function_at(name)()
    if isinstance(task, Task): return task
    raise ValueError(f"{name} returned a {type(task).__name__}, not a miniai.racing.tasks.Task")
