"One trial: a task trained by a rule with a configuration, a seed and a length, as plain data. Failures are results."
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import nn

from miniai.callbacks.train import DeviceCB, NonFiniteLossError
from miniai.data.loaders import DataLoaders
from miniai.device import def_device
from miniai.learner import TrainLearner
from miniai.metrics.metrics import MetricsCB
from miniai.metrics.whole import Whole
from miniai.optim.schedules import warmup_cosine
from miniai.racing.entrants import Entrant
from miniai.racing.tasks import Parts, Task, TaskError
from miniai.randomness import random_states, set_random_states, set_seed
from miniai.steps.schedule import BatchSchedCB

__all__ = ['POINTS', 'check_task', 'own_globals', 'run_trial']

DIVERGED = 100  # times the figure before training
POINTS = 8  # of the curve of a run: validations that are evenly spaced, the last one at its end


def run_trial(task: Task, entrant: Entrant, config: dict[str, Any], seed: int, steps: int, tunes: bool) -> dict:
    """Train `task` for `steps`, with a rate that warms up and falls along a cosine, and return plain data: `final`, the
    figure on the tuning part if `tunes`, else on the test part; `curve`, rows of (step, seconds of training, figure) on
    the tuning or validation part; `start`, the figure before training; `seconds` of training; `state_bytes` of the
    optimizer, `peak_bytes` of a GPU; `wall_seconds` of all of it; and `failed`, why there is no final figure. Weights
    and order of batches depend on `seed` alone. Global random numbers and torch's settings stay as they were. TaskError
    if the task fails before the rule has done anything."""
    with own_globals(seed):
        started, every = time.perf_counter(), max(1, -(-steps//POINTS))
        held_out = 'tuning' if tunes else 'valid'
        parts, model, figures = _begun(task, seed, [held_out])
        out = dict(start=_plain(figures[held_out]), final=None, failed=None)
        build = partial(entrant.build, **{nm: v for nm, v in config.items() if nm != 'lr'})
        learn = _learner(task, model, parts.train, getattr(parts, held_out), [BatchSchedCB(warmup_cosine())],
                         lambda params, lr: build(params, lr=lr))
        if torch.cuda.is_available(): torch.cuda.reset_peak_memory_stats()
        _reseed(seed)
        try:
            learn.fit(steps=steps, valid_every=every, lr=config['lr'])
            figure = learn.history[-1]['figure'] if tunes else learn.evaluate(parts.test)['figure']
            if _diverged(figure, out['start']): out['failed'] = f'diverged: the final figure is {float(figure):.4g}'
            else: out['final'] = float(figure)
        except NonFiniteLossError as e: out['failed'] = f'diverged: {e}'
        except (Exception, SystemExit) as e: out['failed'] = f'{type(e).__name__}: {e}'
        except KeyboardInterrupt as e:  # perhaps because a rule never ends its step
            e.add_note(f'in a run of {entrant.name} on {task.name}')
            raise
        return out | _costs(learn, steps, every) | dict(wall_seconds=round(time.perf_counter() - started, 4))


def check_task(task: Task) -> None:
    """Compute the figures of an untrained model on all parts, so that no rule pays for a task that is broken. TaskError
    if that raises, or if one is not a finite number."""
    with own_globals(0):
        for nm, figure in _begun(task, 0, Parts._fields)[2].items():
            if not math.isfinite(figure): raise TaskError(f"the task {task.name} fails before training: the figure on "
                                                          f"its part {nm} is {figure}, which is no finite number")


def _begun(task: Task, seed: int, names: Sequence[str]) -> tuple[Parts, nn.Module, dict[str, float]]:
    "The parts of the task, its model, and its figures on parts before training: on `train`, the loss of one batch."
    where = ''
    try:
        parts, model, figures = Parts(*task.dls(seed)), task.model(seed).to(def_device), {}
        for nm in names:
            where, of, train, held_out = f', on its part {nm}', task, parts.train, getattr(parts, nm)
            if isinstance(held_out, Iterator) and nm in ('tuning', 'valid'):
                raise TypeError(f'{type(held_out).__name__} can be read once only, and this part is read many times')
            if nm == 'train':
                of = replace(task, figure=None)
                train = held_out = [next(iter(train))]
            figures[nm] = float(_learner(of, model, train, held_out).evaluate()['figure'])
        return parts, model, figures
    except Exception as e:
        raise TaskError(f"the task {task.name} fails before training{where}: {type(e).__name__}: {e}") from e


def _learner(task: Task, model: nn.Module, train: Any, held_out: Any, cbs: list | None = None,
             opt_func: Any = None) -> TrainLearner:
    metrics = MetricsCB(figure=Whole(task.figure or task.loss))
    metrics._log = lambda row: None
    return TrainLearner(model, DataLoaders(train, held_out), task.loss, None, [DeviceCB(), metrics, *(cbs or ())],
                        opt_func)


def _costs(learn: TrainLearner, steps: int, every: int) -> dict[str, Any]:
    "What the run took. A run that failed has the part of its curve that it came to."
    rows = {phase: [row for row in learn.history if row['phase'] == phase] for phase in ('train', 'eval')}
    seconds = accumulate(row['seconds'] for row in rows['train'])
    curve = [[min((i + 1)*every, steps), round(s, 4), _plain(row['figure'])]
             for i, (s, row) in enumerate(zip(seconds, rows['eval'], strict=False))]
    state = getattr(learn.opt, 'state', None)  # a user's optimizer may call anything so
    states = [x for s in (state.values() if isinstance(state, Mapping) else ()) if isinstance(s, Mapping)
              for x in s.values() if isinstance(x, torch.Tensor)]
    return dict(curve=curve, seconds=curve[-1][1] if curve else None, state_bytes=sum(t.nbytes for t in states),
                peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None)


def _diverged(figure: Any, start: float | None) -> bool:
    "Is a final figure not finite, or beyond all those of models that trained? A start at 0 or None sets no limit."
    return _plain(figure) is None or bool(start and figure > max(start, DIVERGED*abs(start)))


def _plain(figure: Any) -> float | None:
    "A finite number; None for others."
    return float(figure) if math.isfinite(float(figure)) else None


def _reseed(seed: int) -> None: set_seed(seed, torch.are_deterministic_algorithms_enabled())


@contextmanager
def own_globals(seed: int) -> Iterator[None]:
    "Random numbers from `seed`, and at the end those of before, with the settings of torch that a rule may change."
    before, grad, dtype, threads = (random_states(), torch.is_grad_enabled(), torch.get_default_dtype(),
                                    torch.get_num_threads())
    try:
        _reseed(seed)
        yield
    finally:
        set_random_states(before)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads: torch.set_num_threads(threads)
