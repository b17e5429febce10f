"HealthCB: samples what a diagnosis needs while a model trains, and says in words what is wrong."
import json
import math
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

from torch import Tensor

from miniai.atomic import atomic_write
from miniai.callbacks.lr_finder import LRFinderCB
from miniai.data.loaders import length_of
from miniai.device import DeferredScalars, is_number, to_scalar
from miniai.diagnosis import data_verdicts, loss_verdicts, verdicts  # noqa: F401 (they register their rules)
from miniai.diagnosis.data_watch import DataWatch
from miniai.diagnosis.health_records import HealthRecords
from miniai.diagnosis.layer_watch import LayerWatch
from miniai.diagnosis.origin import largest_input, origin_of_nonfinite
from miniai.diagnosis.parameter_watch import ParameterWatch
from miniai.diagnosis.setup import is_compiled, scale_of, setup_of
from miniai.diagnosis.verdict import Verdict, judge
from miniai.distributed.ranks import is_first
from miniai.events import Callback, is_cancel
from miniai.metrics.batch import batch_size
from miniai.metrics.weight import summed, weight_of
from miniai.optim.groups import rate_of
from miniai.report.record import as_json
from miniai.show.displays import best_display

__all__ = ['HealthCB']

SHARE, ALLOWANCE = 0.01, 0.03  # of the time that samples may take: a share, and seconds at the start of a fit
SECONDS = 10.  # between two judgements within an epoch


def _without_harm(look: Callable) -> Callable:
    "An error while looking ends the looking, with a warning, and not the fit."
    @wraps(look)
    def looked(self: 'HealthCB', learn: Any) -> None:
        try: look(self, learn)
        except Exception as e: self._give_up(e)
    return looked


class HealthCB(Callback):
    """Looks at activations, gradients, steps, losses and data of some training batches, and says what is wrong: new
    verdicts as they come, and all of them, with what to do, after the fit, unless `quiet`. `every`: sample every so
    many batches; None: as many as take 1 % of the time and 0.03 s. Other batches cost about 10 µs.

    `verdicts` are up to date after each epoch; `checked` names the rules that could be evaluated; `records` holds the
    numbers. `file` keeps all of this as JSON, and a fit that resumes continues it. Training is not changed. Of several
    processes the first one looks, at its own part of the data and at parameters that are not sharded. Layers of
    compiled models are not watched. If looking fails, it warns and stops."""
    order, only_shows = -1e7, True  # before transforms change batches and clipping changes gradients

    def __init__(self, every: int | None = None, quiet: bool = False, file: str | Path | None = None) -> None:
        if every is not None and every < 1: raise ValueError(f"every must be 1 or more batches, got {every}")
        self.every, self.quiet, self.file, self._active = every, quiet, Path(file) if file else None, False
        self.verdicts: list[Verdict] = []
        self.checked: list[str] = []
        self._start()

    def _start(self) -> None:
        self._kept, self._data, self._clock = HealthRecords(), DataWatch(), _Clock()
        self._layers = self._parameters = self._sample = None
        self._batch, self._next, self._heard, self._in_sample, self._noise_due = -1, 0, False, False, False
        self._sums, self._weights, self._weight = DeferredScalars(), DeferredScalars(), None
        self._first, self._in_pass, self._warm = 0, False, False
        self._judged, self._said, self._valid_left, self._end = perf_counter(), set(), 0, None

    @property
    def records(self) -> dict[str, Any]:
        """What was recorded, as plain values: `batches`, the sampled ones; for each of `layers` and `parameters`, and
        for the `run`, lists with one value per sampled batch; `epochs` with mean losses."""
        return self._kept.as_dict(self.every)

    def before_fit(self, learn: Any) -> None:
        searches = getattr(learn, 'dry_run', False) or any(isinstance(cb, LRFinderCB) for cb in learn.cbs)
        self._active = is_first() and not searches and getattr(learn, 'trains', True)
        if not self._active: return
        self.verdicts, self.checked = [], []
        self._start()

    @_without_harm
    def before_epoch(self, learn: Any) -> None:
        if not self._active: return
        self._sums, self._weights, self._weight = DeferredScalars(), DeferredScalars(), None
        self._valid_left, self._end, self._in_pass = 8, None, True
        self._first = len(self._kept.losses)  # batch of this pass
        if learn.model.training: self._kept.planned = (getattr(learn, 'n_epochs', 1) or 1)*(length_of(learn.dl) or 0)

    @_without_harm
    def before_batch(self, learn: Any) -> None:
        if not self._active: return
        if not learn.model.training: return self._look_at_valid(learn, self._data.look_at_rows)
        self._began = perf_counter()
        if self._end is not None: self._kept.waited += self._began - self._end
        self._batch, self._heard = self._batch + 1, False
        if self._sample is None and self._is_due(): self._begin(learn)

    def _is_due(self) -> bool:
        if self.every is not None: return self._batch % self.every == 0
        return self._batch >= self._next and self._clock.spent <= SHARE*self._clock.elapsed() + ALLOWANCE

    def _look_at_valid(self, learn: Any, look: Callable) -> None:
        "In the first batches of validation."
        if self._valid_left < 1: return
        with self._clock: look(learn)

    def _begin(self, learn: Any) -> None:
        with self._clock:
            if self._parameters is None:
                self._layers = None if is_compiled(learn) else LayerWatch(learn.model)
                self._parameters = ParameterWatch(learn.model)
            self._in_sample, self._sample = True, dict(batch=self._batch)
            self._next = self._batch + min(max(1, self._batch//8), 100)
            self._data.look_at_rows(learn)
            self._parameters.start()
            if self._layers: self._layers.start(self._clock)

    @_without_harm
    def after_loss(self, learn: Any) -> None:
        if not self._active or not is_number(learn.loss): return
        if learn.model.training and self._heard: return  # a closure evaluates the batch again
        loss, self._heard = to_scalar(learn.loss), True
        self._weights.append(self._weight_of(learn))
        if isinstance(loss, float) and not math.isfinite(loss): self._find(learn)
        if not learn.model.training:
            self._sums.append(loss)
            self._look_at_valid(learn, self._data.look_at_valid)
            self._valid_left -= 1
            return
        self._kept.losses.append(loss)
        self._kept.add_rate(getattr(learn.opt, 'param_groups', ()))
        if self._in_sample: self._look(learn)

    def _weight_of(self, learn: Any) -> float | Tensor:
        "What the loss of this batch weighs in the mean, as in MetricsCB."
        if self._weight is None:
            try: self._weight = weight_of(learn)
            except ValueError: self._weight = summed
        return self._weight(learn)

    def _look(self, learn: Any) -> None:
        with self._clock:
            if self._layers: self._layers.stop()
            changed, groups = self._parameters.copy(), getattr(learn.opt, 'param_groups', None)
            if groups and (changed or not self._kept.facts.setup): self._kept.facts.setup = setup_of(learn)
            self._data.look_at_batch(learn)
            self._sample |= dict(loss=learn.loss, lr=rate_of(groups[0]) if groups else None,
                                 right=self._data.right_share(learn))

    def _find(self, learn: Any) -> None:
        "Note where values were first not finite in this batch, if it is the first one with such a loss."
        name, batch = ('nonfinite', self._batch) if learn.model.training else ('nonfinite_valid', len(self._sums))
        if getattr(self._kept.facts, name) is not None: return
        where, what = origin_of_nonfinite(learn)
        setattr(self._kept.facts, name, dict(batch=batch, where=where, what=what, largest=largest_input(learn)))

    @_without_harm
    def after_backward(self, learn: Any) -> None:
        if not self._active: return
        if self._sample is not None:
            with self._clock: self._parameters.look_at_gradients()
        elif self._noise_due:
            with self._clock: self._kept.add_noise(self._parameters.look_at_noise(batch_size(learn.batch)))
            self._noise_due = False

    @_without_harm
    def after_step(self, learn: Any) -> None:
        if not self._active or self._sample is None: return
        with self._clock: self._parameters.look_at_step()

    @_without_harm
    def cleanup_batch(self, learn: Any) -> None:
        if not self._active or not learn.model.training or self._batch < 0: return
        if self._in_sample and self._layers: self._layers.stop()
        self._in_sample = False
        if _failed(learn): self._look_at_failure(learn)
        if self._sample is not None and not getattr(learn, 'hold_step', False): self._finish(learn)
        self._end = perf_counter()
        self._kept.worked += self._end - self._began

    def _finish(self, learn: Any) -> None:
        with self._clock:
            if self._layers: self._layers.unscale(scale_of(learn))
            if self._layers and self._layers.failure: raise self._layers.failure
            self._kept.add(self._sample, self._layers, self._parameters)
            self._sample, self._noise_due = None, getattr(learn, 'ended_by', None) is None
        if perf_counter() - self._judged > SECONDS: self._judge(learn)
        if not self._warm: self._clock, self._warm = _Clock(), True  # without the time in which kernels were loaded

    def _look_at_failure(self, learn: Any) -> None:
        "An error in a batch may come from its labels, or from values on an accelerator that were read late."
        self._data.look_at_labels(learn, failed=True)
        if type(learn.ended_by).__name__ == 'NonFiniteLossError': self._find(learn)

    @_without_harm
    def cleanup_epoch(self, learn: Any) -> None:
        if not self._active or not self._in_pass: return  # a run that resumes skips a pass that is done
        training, self._in_pass = learn.model.training, False
        self._data.finish_pass(training)
        losses = self._kept.losses.values[self._first:] if training else self._sums.values
        self._kept.add_pass(losses, self._weights.values, training, learn.epoch)
        self._judge(learn)
        self._write()

    def _judge(self, learn: Any, shows: bool = True) -> None:
        self._judged = perf_counter()
        self._kept.facts.data = self._data.summary()
        self.verdicts, self.checked = judge(self._kept.current())
        new = [v for v in self.verdicts if (v.name, v.where) not in self._said]
        self._said |= {(v.name, v.where) for v in new}
        for v in new if shows and not self.quiet else (): self._show(learn, f'warning: {v.says}')

    def _give_up(self, e: Exception) -> None:
        if self._layers: self._layers.stop()
        self._active, self._layers, self._parameters = False, None, None
        warnings.warn(f"HealthCB could not look at this model or its data, and stops looking. The fit continues. "
                      f"The error was {type(e).__name__}: {e}", stacklevel=3)

    def _show(self, learn: Any, line: str) -> None:
        (getattr(learn, 'display', None) or best_display()).text(line)

    @_without_harm
    def cleanup_fit(self, learn: Any) -> None:
        if not self._active: return
        self._active, self._layers, self._parameters = False, None, None
        if self._batch < 0 or not self.checked: return
        self._kept.ended = not _failed(learn)
        self._judge(learn, shows=False)
        self._write()
        for line in () if self.quiet else self.report().splitlines(): self._show(learn, line)

    def as_dict(self) -> dict[str, Any]:
        "Verdicts, the names of the rules that were checked, and records, as plain values."
        return dict(verdicts=[v._asdict() for v in self.verdicts], checked=self.checked, records=self.records)

    def _write(self) -> None:
        if not self.file or not self.checked: return
        try:
            with atomic_write(self.file) as part: part.write_text(as_json(self.as_dict()) + '\n', 'utf-8')
        except OSError as e: warnings.warn(f"{self.file.name} was not written: {e}. The run continues", stacklevel=3)

    # A run that resumes: checkpoints hold what does not depend on which batches are sampled, `file` the rest

    def state_dict(self) -> dict[str, Any]:
        "The losses, rates and means of passes so far."
        return self._kept.state() | dict(first=self._first, sums=list(self._sums.values),
                                         weights=list(self._weights.values))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned, and what `file` has recorded until then."
        if not self._active: return
        self._kept.load_state(state)
        self._first = state['first']
        self._sums, self._weights = DeferredScalars(state['sums']), DeferredScalars(state['weights'])
        self._batch = len(self._kept.losses) - 1
        self._next = self._batch + 1
        if self.file and self.file.exists(): self._take_over()

    def _take_over(self) -> None:
        try:
            found = json.loads(self.file.read_text('utf-8'))
            self._kept.take_over(found['records'])
            self._data.take_over(found['records']['data'])
            self._said = {(v['name'], v['where']) for v in found['verdicts']}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as e:
            warnings.warn(f"{self.file} cannot be continued, and starts again: {type(e).__name__}: {e}", stacklevel=3)

    def report(self) -> str:
        "The verdicts as text, or what was checked if there are none."
        if not self.checked: return 'nothing was checked: no batch was trained'
        n = len(self.verdicts)
        if not n: return f"no problems found: checked {len(self.checked)} things: {', '.join(self.checked)}"
        lines = [f'{v.name} ({v.certain}): {v.says} {v.do}' for v in self.verdicts]
        return '\n'.join([f"{n} problem{'s'*(n > 1)} found, checked {len(self.checked)} things:", *lines])


def _failed(learn: Any) -> bool:
    error = getattr(learn, 'ended_by', None)
    return error is not None and not is_cancel(error)


class _Clock:
    "Adds up the processor time of `with` blocks, nested ones once, which other programs do not lengthen."
    def __init__(self) -> None: self.started, self.spent, self._depth, self._from = perf_counter(), 0., 0, 0.
    def elapsed(self) -> float: return perf_counter() - self.started

    def __enter__(self) -> None:
        if not self._depth: self._from = thread_time()
        self._depth += 1

    def __exit__(self, *exc: object) -> None:
        self._depth -= 1
        if not self._depth: self.spent += thread_time() - self._from
