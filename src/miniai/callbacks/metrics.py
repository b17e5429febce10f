"""Figures of an epoch: metrics over its batches, kept on the device,
read at its end into a table row and `learn.history`."""
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from miniai.callbacks.checks import check_names
from miniai.callbacks.train import checked, n_inputs
from miniai.device import detached, first_tensor, is_number, to_cpu, to_scalar
from miniai.events import Callback

__all__ = ['Mean', 'FunctionMetric', 'MetricsCB', 'direction', 'accuracy']


def accuracy(out: Tensor, yb: Tensor) -> Tensor:
    "The share of rows of `out` (N, classes, …) whose largest entry is at `yb` (N, …), as a 0-d tensor."
    return (out.argmax(dim=1) == yb).float().mean()


def direction(metric: str) -> tuple[str, int]:
    "A figure's name and the sign that makes more of it better: 'accuracy' is better upwards, '-loss' downwards."
    return metric.removeprefix('-'), -1 if metric.startswith('-') else 1


class Mean:
    "A weighted mean of scalars, summed where they are. `compute()` is NaN before the first."
    def __init__(self) -> None: self.reset()
    def reset(self) -> None: self.total, self.weight = 0., 0

    def update(self, value: float | Tensor, weight: float = 1) -> None:
        "Add `value`, a number or a tensor of one element, `weight` times."
        self.total  = self.total + to_scalar(value)*weight
        self.weight = self.weight + weight

    def state_dict(self) -> dict[str, Any]:
        "The sums so far."
        return dict(total=self.total, weight=self.weight)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave."
        self.total, self.weight = state['total'], state['weight']

    def compute(self) -> Tensor:
        "The mean so far, a 0-d tensor on the CPU."
        total = self.total.item() if isinstance(self.total, Tensor) else self.total
        return torch.tensor(total/self.weight if self.weight else float('nan'), dtype=torch.float64)


class FunctionMetric:
    """A function of (predictions, targets) that gives a scalar, as a metric:
    its mean over batches, weighted by their size."""
    def __init__(self, f: Callable[[Any, Any], float | Tensor]) -> None: self.f, self.mean = f, Mean()
    def reset(self) -> None: self.mean.reset()
    def update(self, preds: Any, targets: Any) -> None:
        self.mean.update(self.f(preds, targets), batch_size(targets))

    def compute(self) -> Tensor: return self.mean.compute()
    def state_dict(self) -> dict[str, Any]: return self.mean.state_dict()
    def load_state_dict(self, state: dict[str, Any]) -> None: self.mean.load_state_dict(state)


class MetricsCB(Callback):
    """Metrics by name: anything with `update(preds, targets)`, `compute()` and `reset()`, or a plain
    function of (preds, targets). Positional ones go by the name of their class or function. `all_metrics`
    holds them and `loss`, a mean weighted by batch size. After each epoch `_log` gets a dict of strings,
    and `learn.history` a row of numbers."""
    _n_inp, started, device = 1, 0., None

    def __init__(self, *ms: Any, **metrics: Any) -> None:
        named = [(_metric_name(m), m) for m in ms] + list(metrics.items())
        _check_metric_names([nm for nm, _ in named])
        self.metrics = {nm: _as_metric(nm, m) for nm, m in named}
        self.loss = Mean()
        self.all_metrics = self.metrics | dict(loss=self.loss)

    def _log(self, d: dict[str, str]) -> None: print(d)

    def before_fit(self, learn: Any) -> None:
        learn.metrics = self

    def before_epoch(self, learn: Any) -> None:
        for m in self.all_metrics.values(): m.reset()
        self._n_inp, self.device, self.started = n_inputs(learn), None, time.perf_counter()

    def after_batch(self, learn: Any) -> None:
        if is_number(learn.loss): self.loss.update(learn.loss, batch_size(learn.batch))
        if not self.metrics: return
        preds, targets = detached(learn.preds), self._targets(learn.batch)
        first = first_tensor(preds)
        device = torch.device('cpu') if first is None else first.device
        if device != self.device: self._move(device)
        for m in self.metrics.values():
            if device.type == 'cpu' or _follows(m): m.update(preds, targets)
            else: m.update(to_cpu(preds), to_cpu(targets))

    def _move(self, device: torch.device) -> None:
        "Metrics that can move go to where the predictions are; the others will get predictions on the CPU."
        self.device = device
        for m in self.metrics.values():
            if hasattr(m, 'to'): m.to(device)

    def _targets(self, batch: Any) -> Any:
        if len(checked(batch)) > self._n_inp: return batch[self._n_inp]
        raise ValueError(f"metrics {list(self.metrics)} need targets, and the batch has none: "
                         f"its {len(batch)} item(s) are all inputs")

    def after_epoch(self, learn: Any) -> None:
        figures, phase = {nm: m.compute() for nm, m in self.all_metrics.items()}, 'train' if learn.training else 'eval'
        row = {nm: _plain(v) for nm, v in figures.items()} | dict(seconds=time.perf_counter() - self.started)
        _add_row(learn.history, dict(epoch=learn.epoch, phase=phase) | row)
        self._log({nm: _shown(v) for nm, v in figures.items()} | dict(epoch=learn.epoch, train=phase))

    def state_dict(self) -> dict[str, Any]:
        "What every metric has seen of the epoch so far. TypeError for one that cannot say it."
        return {nm: _metric_state(nm, m) for nm, m in self.all_metrics.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave. ValueError where that is of other metrics."
        check_names('metrics', state, self.all_metrics)
        for nm, m in self.all_metrics.items(): _set_metric_state(m, state[nm])


def _metric_state(nm: str, m: Any) -> dict[str, Any]:
    parts = _torchmetrics_in(m)
    if parts: return {k: _seen_by(part) for k, part in parts.items()}
    if hasattr(m, 'state_dict') and hasattr(m, 'load_state_dict'): return dict(m.state_dict())
    raise TypeError(f"metric {nm!r}, a {type(m).__name__}, has no state_dict and load_state_dict, so that a run with "
                    f"checkpoints cannot go on in the middle of an epoch: give it both")


def _seen_by(part: Any) -> dict[str, Any]:
    "What a metric of torchmetrics has seen; some keep figures, such as a best one, in tensors beside their state."
    tensors = {nm: x for nm, x in vars(part).items() if isinstance(x, Tensor) and not nm.startswith('_')}
    return dict(part.metric_state) | tensors | dict(_update_count=part.update_count)


def _set_metric_state(m: Any, state: dict[str, Any]) -> None:
    parts = _torchmetrics_in(m)
    if not parts: return m.load_state_dict(state)
    for k, part in parts.items():
        for nm, x in state[k].items(): setattr(part, nm, x)


def _torchmetrics_in(m: Any) -> dict[str, Any]:
    "The metrics of torchmetrics that `m` is, or is made of, by their paths in it."
    modules = dict(m.named_modules()) if isinstance(m, nn.Module) else {}
    return {k: x for k, x in modules.items() if hasattr(x, 'metric_state') and hasattr(x, 'update_count')}


def _add_row(history: list[dict[str, Any]], row: dict[str, Any]) -> None:
    "Append a row; or add to the last one, where that is of the same epoch and phase."
    same = history and all(history[-1][k] == row[k] for k in ('epoch', 'phase'))
    if same: history[-1] |= row
    else: history.append(row)


def batch_size(x: Any) -> int:
    "The length of the first tensor inside `x`, however deep; 1 where that is a single number, or there is none."
    t = first_tensor(x)
    return len(t) if t is not None and t.ndim else 1


def _metric_name(m: Any) -> str: return getattr(m, '__name__', type(m).__name__)


def _follows(m: Any) -> bool: return isinstance(m, FunctionMetric) or hasattr(m, 'to')


def _check_metric_names(names: list[str]) -> None:
    taken = ('loss', 'epoch', 'train', 'phase', 'seconds')
    twice = sorted({nm for nm in names if names.count(nm) > 1 or nm in taken})
    if twice:
        raise ValueError(f"MetricsCB: the name {', '.join(twice)} is taken; name metrics by keyword, as in accuracy=…")


def _as_metric(nm: str, m: Any) -> Any:
    if isinstance(m, type):
        raise TypeError(f"metric {nm!r} is the class {m.__name__}; pass an instance of it: {m.__name__}()")
    if hasattr(m, 'update'):
        lacks = [f for f in ('compute', 'reset') if not hasattr(m, f)]
        if not lacks: return m
        raise TypeError(f"metric {nm!r}, a {type(m).__name__}, has update but no {' and no '.join(lacks)}")
    if callable(m): return FunctionMetric(m)
    raise TypeError(f"metric {nm!r} must be a function of (preds, targets) or have update, compute and reset; "
                    f"got {m!r}")


def _plain(v: Any) -> Any:
    if isinstance(v, dict): return {k: _plain(x) for k, x in v.items()}
    if isinstance(v, Tensor): return v.item() if v.numel() == 1 else v.tolist()
    return v


def _shown(v: Any) -> str:
    if isinstance(v, dict): return ' '.join(f'{k} {_shown(x)}' for k, x in v.items())
    if isinstance(v, Tensor) and v.numel() > 10: return f'{tuple(v.shape)} numbers'
    v = _plain(v)
    return ' '.join(map(_shown, v)) if isinstance(v, list) else f'{v:.3f}' if isinstance(v, int | float) else str(v)
