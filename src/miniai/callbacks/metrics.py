"Metrics: computed over an epoch's batches, kept on the device, and read at the end into a row of `learn.history`."
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from miniai.callbacks.train import checked, n_inputs
from miniai.device import detached, first_tensor, is_number, to_cpu, to_scalar
from miniai.events import Callback
from miniai.show.displays import PlainDisplay

__all__ = ['Mean', 'FunctionMetric', 'MetricsCB', 'accuracy', 'batch_size', 'direction']


def accuracy(out: Tensor, yb: Tensor) -> Tensor:
    "Fraction of samples whose largest output is at the target's index, a 0-d tensor."
    return (out.argmax(dim=1) == yb).float().mean()


def direction(metric: str) -> tuple[str, int]:
    "A metric's name and the sign that makes larger better: 'accuracy' is better when it rises, '-loss' when it falls."
    return metric.removeprefix('-'), -1 if metric.startswith('-') else 1


class Mean:
    "A weighted mean of scalars, summed on their device. `compute()` is NaN before the first update."
    def __init__(self) -> None: self.reset()
    def reset(self) -> None: self.total, self.weight = 0., 0

    def update(self, value: float | Tensor, weight: float = 1) -> None:
        "Add `value`, a number or a tensor of one element, `weight` times."
        self.total  = self.total + to_scalar(value)*weight
        self.weight = self.weight + weight

    def compute(self) -> Tensor:
        "The mean so far, a 0-d tensor on the CPU."
        total = self.total.item() if isinstance(self.total, Tensor) else self.total
        return torch.tensor(total/self.weight if self.weight else float('nan'), dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]: return dict(total=self.total, weight=self.weight)
    def load_state_dict(self, state: dict[str, Any]) -> None: self.total, self.weight = state['total'], state['weight']


class FunctionMetric(Mean):
    "A function of (preds, targets) that returns a scalar, as a metric: its mean over batches, weighted by their size."
    def __init__(self, f: Callable[[Any, Any], float | Tensor]) -> None:
        super().__init__()
        self.f = f

    def update(self, preds: Any, targets: Any) -> None:
        "Add the batch's value."
        super().update(self.f(preds, targets), batch_size(targets))


class MetricsCB(Callback):
    """Metrics by name: objects with `update(preds, targets)`, `compute()` and `reset()`, or plain functions of (preds,
    targets). Positional ones are named after their class or function. `all_metrics` holds them and `loss`, a mean
    weighted by batch size. After each epoch `learn.history` gets a row of numbers and `_log` a dict of strings; by
    default it prints the row, unless a ProgressCB shows it."""
    def __init__(self, *ms: Any, **metrics: Any) -> None:
        named = [(getattr(m, '__name__', type(m).__name__), m) for m in ms] + list(metrics.items())
        names, reserved = [nm for nm, _ in named], ('loss', 'epoch', 'train', 'phase', 'seconds')
        taken = sorted({nm for nm in names if names.count(nm) > 1 or nm in reserved})
        if taken: raise ValueError(f"MetricsCB: the name {', '.join(taken)} is taken; name metrics by keyword, as in "
                                   f"accuracy=…")
        self.metrics = {nm: _as_metric(nm, m) for nm, m in named}
        self.loss, self.row, self.displayed = Mean(), {}, False
        self.all_metrics = self.metrics | dict(loss=self.loss)
        self._n_inp, self._placed, self._started = 1, False, 0.

    def _log(self, d: dict[str, str]) -> None:
        if not self.displayed: PlainDisplay().row(self.row)

    def before_fit(self, learn: Any) -> None: learn.metrics = self

    def before_epoch(self, learn: Any) -> None:
        for m in self.all_metrics.values(): m.reset()
        self._n_inp, self._placed, self._started = n_inputs(learn), False, time.perf_counter()

    def after_batch(self, learn: Any) -> None:
        if is_number(learn.loss): self.loss.update(learn.loss, batch_size(learn.batch))
        if not self.metrics: return
        if not self._placed: self._place_metrics(learn)
        preds, targets = detached(learn.preds), detached(learn.batch[self._n_inp])
        for m in self._here: m.update(preds, targets)
        for m in self._on_cpu: m.update(to_cpu(preds), to_cpu(targets))

    def _place_metrics(self, learn: Any) -> None:
        "Metrics that can move go where the predictions are; the others get predictions on the CPU. Once an epoch."
        if len(checked(learn.batch)) <= self._n_inp:
            raise ValueError(f"metrics {list(self.metrics)} need targets, but the batch has none: "
                             f"all of its {len(learn.batch)} item(s) are inputs")
        first, self._here, self._on_cpu, self._placed = first_tensor(learn.preds), [], [], True
        device = torch.device('cpu') if first is None else first.device
        for m in self.metrics.values():
            if hasattr(m, 'to'): m.to(device)
            follows = device.type == 'cpu' or isinstance(m, FunctionMetric) or hasattr(m, 'to')
            (self._here if follows else self._on_cpu).append(m)

    def after_epoch(self, learn: Any) -> None:
        phase, seconds = 'train' if learn.training else 'eval', time.perf_counter() - self._started
        values = {nm: m.compute() for nm, m in self.all_metrics.items()}
        texts = {nm: _text(v) for nm, v in values.items()}
        row = dict(epoch=learn.epoch, phase=phase) | {nm: _plain(v) for nm, v in values.items()} | dict(seconds=seconds)
        last = learn.history[-1] if learn.history else {}
        if (last.get('epoch'), last.get('phase')) == (learn.epoch, phase): last |= row
        else: learn.history.append(row)
        shown_phase = 'train' if learn.training else 'valid'
        self.row = dict(epoch=str(learn.epoch + 1), phase=shown_phase) | texts | dict(seconds=f'{seconds:.1f}')
        self.displayed = getattr(learn, 'display', None) is not None or getattr(learn, 'dry_run', False)
        self._log(texts | dict(epoch=learn.epoch, train=phase))


def _as_metric(nm: str, m: Any) -> Any:
    if isinstance(m, type):
        raise TypeError(f"metric {nm!r} is the class {m.__name__}; pass an instance of it: {m.__name__}()")
    if hasattr(m, 'update'):
        lacks = [f for f in ('compute', 'reset') if not hasattr(m, f)]
        if not lacks: return m
        raise TypeError(f"metric {nm!r}, a {type(m).__name__}, has update but no {' and no '.join(lacks)}: "
                        f"a metric needs update, compute and reset")
    if callable(m): return FunctionMetric(m)
    raise TypeError(f"metric {nm!r} must be a function of (preds, targets) or have update, compute and reset; "
                    f"got {m!r}")


def batch_size(x: Any) -> int:
    "The length of the first tensor inside `x`, however deep; 1 if it is a single number or there is none."
    t = first_tensor(x)
    return len(t) if t is not None and t.ndim else 1


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
