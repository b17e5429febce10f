"Which metric to watch: its direction, and whether a fit will have it."
import re
from typing import Any

from miniai.metrics.metrics import MetricsCB

__all__ = ['check_metric', 'direction', 'improves', 'is_watched', 'last_row', 'no_metric']

_FALLS = {'loss', 'nll', 'mse', 'rmse', 'mae', 'mape', 'error', 'err', 'perplexity', 'ppl', 'wer', 'cer', 'fid'}
_RISES = {'accuracy', 'acc', 'f1', 'auc', 'auroc', 'iou', 'miou', 'dice', 'precision', 'recall', 'r2', 'bleu', 'psnr'}


def direction(metric: str) -> tuple[str, int]:
    """A metric's name and the sign that makes larger better: 'accuracy' is better when it rises, '-loss' when it falls.
    ValueError for the wrong direction of a well-known name."""
    name, sign = metric.removeprefix('-'), -1 if metric.startswith('-') else 1
    last = re.split('[^a-z0-9]+', name.lower())[-1]
    if sign > 0 and (last in _FALLS or last.endswith(('loss', 'error'))): raise _wrong_direction(metric, f'-{name}')
    if sign < 0 and (last in _RISES or last.endswith('accuracy')): raise _wrong_direction(metric, name)
    return name, sign


def _wrong_direction(metric: str, right: str) -> ValueError:
    falls = right.startswith('-')
    return ValueError(f"{metric!r} would look for the {'highest' if falls else 'lowest'} {right.removeprefix('-')}, "
                      f"which is better when it {'falls' if falls else 'rises'}: write {right!r}")


def improves(value: float, best: float | None, sign: int, min_delta: float = 0.) -> bool:
    """Whether `value` is better than `best` so far by more than `min_delta`, and by more than the rounding of float32:
    the same accuracy, averaged over other batches, differs in its last digits. NaN is never better."""
    if best is None: return value == value
    return sign*(value - best) > max(min_delta, 2e-7*min(abs(best), abs(value)))


def is_watched(learn: Any) -> bool:
    "Whether this is real training, so that metrics are watched."
    return getattr(learn, 'trains', True) and not getattr(learn, 'dry_run', False)


def last_row(learn: Any) -> dict[str, Any]:
    "The latest row of the Learner's history; empty if there is none yet."
    history = getattr(learn, 'history', ())
    return history[-1] if history else {}


def row_of_pass(learn: Any) -> dict[str, Any]:
    "The row of this epoch and phase in the Learner's history; empty if it has none yet."
    row, phase = last_row(learn), 'train' if learn.model.training else 'eval'
    return row if (row.get('epoch'), row.get('phase')) == (learn.epoch, phase) else {}


def check_metric(learn: Any, metric: str, who: str) -> None:
    """ValueError, before the fit, if no callback can supply `metric`, or if its direction is wrong. A user's own
    callback may supply any."""
    name, sign = direction(metric)
    if not getattr(learn, 'validates', True):
        raise ValueError(f"{who} needs validation: use fit(valid=True), or remove it from cbs")
    known = {nm: m for cb in (*learn.cbs, getattr(learn, 'metrics', None)) if isinstance(cb, MetricsCB)
             for nm, m in (('seconds', None), *cb.all_metrics.items())}
    rises = getattr(known.get(name), 'higher_is_better', None)  # torchmetrics' metrics know it
    if rises is not None and rises != (sign > 0): raise _wrong_direction(metric, name if rises else f'-{name}')
    methods = [getattr(cb, 'after_epoch', None) for cb in learn.cbs]
    users = [m for m in methods if m and not (getattr(m, '__module__', None) or '').startswith('miniai.')]
    if name not in known and not users: raise no_metric(metric, who, known)


def no_metric(metric: str, who: str, known: Any) -> ValueError:
    "The error for a metric that is not there."
    name = metric.removeprefix('-')
    needed = 'MetricsCB()' if name in ('loss', 'seconds') else f'MetricsCB({name}=…)'
    return ValueError(f"{who} needs a validation metric {name!r}; there are {sorted(known) or 'none'}: "
                      f"add {needed} to cbs")
