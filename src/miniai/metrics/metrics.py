"Metrics: computed over an epoch's batches, kept on the device, and read at the end into a row of `learn.history`."
import inspect
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from miniai.device import detached, first_tensor, is_number, map_tensors, to_cpu, to_scalar
from miniai.distributed.ranks import gathered_parts, is_first, part, total, world
from miniai.events import Callback
from miniai.metrics.accuracy import counts_of
from miniai.metrics.batch import batch_size, checked, target_slice
from miniai.metrics.weight import Weight, check_weight, summed, weight_of
from miniai.metrics.whole import joined
from miniai.show.displays import PlainDisplay

__all__ = ['Mean', 'FunctionMetric', 'MetricsCB', 'takes_learner', 'shares_itself']


class Mean:
    "A weighted mean of scalars, summed on their device. `compute()` is NaN before the first update."
    def __init__(self) -> None: self.reset()
    def reset(self) -> None: self.total, self.weight = 0., 0

    def update(self, value: float | Tensor, weight: float | Tensor = 1) -> None:
        "Add `value`, a number or a tensor of one element, `weight` times. With weight 0 it may be NaN."
        value, weight = to_scalar(value), to_scalar(weight)
        if isinstance(weight, Tensor): value = torch.where(weight == 0, 0., value)
        elif not weight: return
        self.add(value*weight, weight)

    def add(self, total: Any, weight: Any) -> None:
        "Add `total`, a sum of values whose weights add up to `weight`."
        self.total, self.weight = self.total + total, self.weight + weight

    def compute(self) -> Tensor:
        "The mean so far, a 0-d tensor on the CPU."
        total, weight = self.sums()
        return torch.tensor(total/weight if weight else float('nan'), dtype=torch.float64)

    def sums(self) -> tuple[float, float]:
        "The total and the weight so far, as Python numbers."
        return tuple(x.item() if isinstance(x, Tensor) else x for x in (self.total, self.weight))

    def state_dict(self) -> dict[str, Any]: return dict(zip(('total', 'weight'), self.sums(), strict=True))

    def load_state_dict(self, state: dict[str, Any]) -> None: self.total, self.weight = state['total'], state['weight']


class FunctionMetric(Mean):
    """A function of `(preds, *targets)`, or of `preds` alone, that returns a scalar, as a metric: its mean over
    batches, weighted by their samples. `accuracy` and `binary_accuracy` are the share of all targets that are not
    ignored."""
    def __init__(self, f: Callable[..., float | Tensor]) -> None:
        super().__init__()
        self.f, self._counts = f, counts_of(f)

    def update(self, preds: Any, *targets: Any, weight: float | Tensor | None = None) -> None:
        if self._counts: return self.add(*map(to_scalar, self._counts(preds, *targets)))
        super().update(self.f(preds, *targets), batch_size(targets or preds) if weight is None else weight)


class _LearnerFigure(Mean):
    "A function of the Learner that returns a scalar, as a metric. Batches for which it returns None do not count."
    def __init__(self, f: Callable[[Any], float | Tensor | None]) -> None:
        super().__init__()
        self.f = f

    def update(self, learn: Any, weight: float | Tensor | None = None) -> None:
        value = self.f(learn)
        if is_number(value): super().update(value, batch_size(learn.batch) if weight is None else weight)


class MetricsCB(Callback):
    """Metrics by name: objects with `update(preds, *targets)`, `compute()`, `reset()`; functions of
    `(preds, *targets)`, averaged over batches (use `Whole` for F1, AUC or RMSE, which are not averages); or functions
    of the Learner, if their parameter is called `learn`, averaged too. `all_metrics` holds them and `loss`, also an
    average: in it a batch weighs what PyTorch's cross-entropy divides by, for other losses its samples.
    `weight(learn)` sets the weight in all averages; weight='sum' says that the loss is a sum. After each epoch
    `learn.history` gets a row of numbers and `_log` a dict of strings; by default it prints the row, unless a
    ProgressCB shows it.

    On several processes the row is that of all their data. Torchmetrics' objects share what they need at the end of an
    epoch; others get whole batches, in every process. Functions average over the parts of batches."""
    def __init__(self, *ms: Any, weight: Weight = None, **metrics: Any) -> None:
        named = [(getattr(m, '__name__', type(m).__name__), m) for m in ms] + list(metrics.items())
        names, reserved = [nm for nm, _ in named], ('loss', 'epoch', 'train', 'phase', 'seconds')
        taken = sorted({nm for nm in names if names.count(nm) > 1 or nm in reserved})
        if taken: raise ValueError(f"MetricsCB: the name {', '.join(taken)} is taken; name metrics by keyword, as in "
                                   f"accuracy=…")
        check_weight('MetricsCB', weight)
        self.weight, self.metrics = weight, {nm: _as_metric(nm, m) for nm, m in named}
        self.loss, self.row, self.displayed = Mean(), {}, False
        self.all_metrics = self.metrics | dict(loss=self.loss)
        self._used, self._placed, self._started, self._rows, self._values = self.all_metrics, False, 0., None, None
        self._wholes = [m for m in self.metrics.values() if not isinstance(m, Mean) and not shares_itself(m)]
        self._part, self._gathering = None, []  # what a batch gave to those, which need the parts of all processes

    def _log(self, d: dict[str, str]) -> None:
        if not self.displayed and is_first(): PlainDisplay().row(self.row)

    def before_fit(self, learn: Any) -> None:
        learn.metrics = self
        if getattr(learn, 'history', None) is self._rows: learn.history = self._rows = []  # a Learner without its own

    def before_epoch(self, learn: Any) -> None:
        for m in self.all_metrics.values(): m.reset()
        self._used, self._placed, self._started = self.all_metrics, False, time.perf_counter()
        self._values = None

    def after_batch(self, learn: Any) -> None:
        if not self._placed: self._place_metrics(learn)
        if not getattr(learn, 'counts', True): return
        if is_number(learn.loss): self._add_loss(learn)
        weight = self.weight(learn) if callable(self.weight) else None
        for m in self._figures: m.update(learn, weight)
        if not self._takes_preds: return
        given = detached((learn.preds, *learn.batch[self._targets]))
        for m, n in self._functions: m.update(*given[:n], weight=weight)
        if self._wholes and world() > 1: self._part = given
        for update, n in self._objects: update(*given[:n])

    def _add_loss(self, learn: Any) -> None:
        if self._loss_weight is summed and world() > 1 and not learn.model.training:
            self.loss.add(to_scalar(learn.loss), part()[0] == 0)  # one batch, of which this is a part
        else: self.loss.update(learn.loss, self._loss_weight(learn))

    def asks(self) -> list[float]:
        "On several processes `answer` comes after each batch: see TogetherCB."
        return []

    def answer(self, numbers: list[float]) -> None:
        "Update with the parts of the batch that all processes have."
        if not self._wholes: return
        mine, self._part = self._part, None
        parts = [x for x in gathered_parts(map_tensors(lambda t: t.cpu().clone(), mine)) if x is not None]
        if not parts: return
        whole = joined(parts)
        for update, n in self._gathering: update(*map_tensors(lambda t: t.to(self._device), whole[:n]))

    def _place_metrics(self, learn: Any) -> None:
        """What each metric gets, and where: metrics that can move go where the predictions are; the others get
        predictions on the CPU. Once an epoch."""
        self._placed, self._loss_weight, self._targets = True, weight_of(learn, self.weight), target_slice(learn)
        self._figures = [m for m in self.metrics.values() if isinstance(m, _LearnerFigure)]
        self._functions, self._objects, self._gathering = [], [], []
        self._takes_preds = len(self._figures) < len(self.metrics)
        if not self._takes_preds: return
        n_targets, first = len(checked(learn.batch)[self._targets]), first_tensor(learn.preds)
        self._device = device = torch.device('cpu') if first is None else first.device
        for nm, m in self.metrics.items():
            if isinstance(m, _LearnerFigure): continue
            taken = _targets_taken(nm, m, n_targets)
            if taken is None:
                self._leave_out(nm, learn)
                continue
            if hasattr(m, 'to'): m.to(device)
            if isinstance(m, FunctionMetric):
                self._functions.append((m, 1 + taken))
                continue
            update = m.update if device.type == 'cpu' or hasattr(m, 'to') else partial(_update_on_cpu, m)
            (self._gathering if world() > 1 and not shares_itself(m) else self._objects).append((update, 1 + taken))

    def _leave_out(self, nm: str, learn: Any) -> None:
        "A metric that needs targets, for a batch without: an error, except in a dry run, such as capture_preds."
        if not getattr(learn, 'dry_run', False):
            raise ValueError(f"metric {nm!r} needs targets, but the batch has none: all of its {len(learn.batch)} "
                             f"item(s) are inputs")
        self._used = {k: m for k, m in self._used.items() if k != nm}

    def compute(self) -> None:
        "Compute the figures of the epoch. All processes call it, before any callback can end the epoch: see PartCB."
        clock = Mean()
        clock.update(time.perf_counter() - self._started, is_first())  # one time, so that rows are the same
        figures = self._used | dict(seconds=clock)
        share_means(figures.values())
        self._values = {nm: m.compute() for nm, m in figures.items()}

    def after_epoch(self, learn: Any) -> None:
        if self._values is None: self.compute()
        values, self._values, training = self._values, None, learn.model.training
        phase = 'train' if training else 'eval'
        row = dict(epoch=learn.epoch, phase=phase) | {nm: _plain(v) for nm, v in values.items()}
        last = learn.history[-1] if learn.history else {}
        if (last.get('epoch'), last.get('phase')) == (learn.epoch, phase): last |= row
        else: learn.history.append(row)
        seconds = values.pop('seconds')
        texts = {nm: _text(v) for nm, v in values.items()}
        shown_phase = 'train' if training else 'valid'
        self.row = dict(epoch=str(learn.epoch + 1), phase=shown_phase) | texts | dict(seconds=f'{seconds:.1f}')
        self.displayed = getattr(learn, 'display', None) is not None or getattr(learn, 'dry_run', False)
        self._log(texts | dict(epoch=learn.epoch, train=phase))


def share_means(metrics: Iterable) -> None:
    "On several processes: let each Mean hold the sums of all of them."
    if world() == 1: return
    means = [m for m in metrics if isinstance(m, Mean)]
    sums = iter(total([x for m in means for x in m.sums()]))
    for m in means: m.total, m.weight = next(sums), next(sums)


def _as_metric(nm: str, m: Any) -> Any:
    if isinstance(m, type):
        raise TypeError(f"metric {nm!r} is the class {m.__name__}; pass an instance of it: {m.__name__}()")
    if hasattr(m, 'update'):
        lacks = [f for f in ('compute', 'reset') if not hasattr(m, f)]
        if not lacks: return m
        raise TypeError(f"metric {nm!r}, a {type(m).__name__}, has update but no {' and no '.join(lacks)}: "
                        f"a metric needs update, compute and reset")
    if callable(m): return _LearnerFigure(m) if takes_learner(m) else FunctionMetric(m)
    raise TypeError(f"metric {nm!r} must be a function of (preds, targets) or have update, compute and reset; "
                    f"got {m!r}")


def shares_itself(m: Any) -> bool:
    "Torchmetrics' objects share their states when they compute."
    return any(kind.__module__.startswith('torchmetrics.') for kind in type(m).__mro__)


def _update_on_cpu(m: Any, *args: Any) -> None: m.update(*to_cpu(args))


def takes_learner(f: Callable) -> bool:
    "Whether the first parameter of `f` is called `learn`."
    try: return next(iter(inspect.signature(f).parameters), None) == 'learn'
    except (TypeError, ValueError): return False


def _targets_taken(nm: str, m: Any, n_targets: int) -> int | None:
    "How many targets a metric gets: all that there are, or none if it takes predictions alone. None if it needs some."
    try: signature = inspect.signature(m.f if hasattr(m, 'f') else m.update)
    except (TypeError, ValueError): return n_targets or None  # a built-in
    for n in (n_targets, 0):
        try: signature.bind(*range(1 + n))
        except TypeError: continue
        return n
    if not n_targets: return None
    raise TypeError(f"metric {nm!r} takes {signature}, but the batch has {n_targets} target(s), which all metrics get "
                    f"as the loss does: write a function that chooses, such as lambda preds, a, b: f(preds, a)")


def _plain(v: Any) -> Any:
    if isinstance(v, dict): return {k: _plain(x) for k, x in v.items()}
    if isinstance(v, Tensor): return v.item() if v.numel() == 1 else v.tolist()
    return v


def _text(v: Any) -> str:
    if isinstance(v, dict): return ' '.join(f'{k} {_text(x)}' for k, x in v.items())
    if isinstance(v, Tensor) and v.numel() > 10: return f'{tuple(v.shape)} numbers'
    v = _plain(v)
    if isinstance(v, list): return ' '.join(map(_text, v))
    return f'{v:.3f}' if isinstance(v, int | float) else str(v)
