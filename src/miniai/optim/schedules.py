"Schedules that know their length, and what a torch scheduler does to every hyperparameter, drawn before training."
import inspect
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim import lr_scheduler

from miniai.show.plots import get_grid

__all__ = ['has_momentum', 'warmup_cosine', 'make_schedule', 'plot_schedule', 'trace_schedule', 'most_steps']


def has_momentum(opt: Any) -> bool:
    "Whether the optimizer has a momentum that a cycle may change. torch's SGD without one has it as 0."
    return bool(opt.defaults.get('momentum')) or 'betas' in opt.defaults


def warmup_cosine(warmup: float = 0.1, final: float = 0.) -> Callable[..., Any]:
    """A schedule for BatchSchedCB: the rate rises linearly for a share `warmup` of all steps, then falls along half a
    cosine to `final` times itself (Loshchilov & Hutter 2016)."""
    if isinstance(warmup, torch.optim.Optimizer): raise TypeError(
        "warmup_cosine() makes a schedule: write BatchSchedCB(warmup_cosine()), not BatchSchedCB(warmup_cosine)")
    if not 0 <= warmup < 1: raise ValueError(f"warmup, a share of all steps, must be in [0, 1), got {warmup}")
    return partial(_warmup_cosine, warmup=warmup, final=final)


def _warmup_cosine(opt: Any, steps: int, *, warmup: float, final: float) -> Any:
    return lr_scheduler.LambdaLR(opt, partial(_warm_cosine, steps=steps, rising=round(warmup*steps), final=final))


def _warm_cosine(i: int, steps: int, rising: int, final: float) -> float:
    if i < rising: return (i + 1)/(rising + 1)
    done = min((i - rising)/max(1, steps - rising), 1.)
    return final + (1 - final)*(1 + math.cos(math.pi*done))/2


def make_schedule(sched: Callable[..., Any], opt: Any, steps: int | None) -> Any:
    """The scheduler `sched(opt)`, or `sched(opt, steps=…)` if it has an argument `steps` without default. ValueError if
    the number of steps is not known."""
    given = inspect.signature(sched).parameters.get('steps')
    if given is None or given.default is not given.empty: return sched(opt)
    if steps is not None: return sched(opt, steps=steps)
    raise ValueError("the schedule needs the number of steps, but the training loader has no length: give the number, "
                     "as in lambda opt: sched(opt, 10_000)")


def most_steps(sched: Any) -> float:
    "How many steps a torch scheduler takes before it raises an error; infinity if it never does."
    if isinstance(sched, lr_scheduler.SequentialLR): return _most_of_sequence(sched._schedulers, sched._milestones)
    if isinstance(sched, lr_scheduler.ChainedScheduler): return min(map(most_steps, sched._schedulers))
    return getattr(sched, 'total_steps', math.inf)


def _most_of_sequence(parts: list, milestones: list[int]) -> float:
    "Each part takes a step at every count after its start and before the next part's; its first step is already done."
    most = math.inf
    for part, start, end in zip(parts, [0, *milestones], [*milestones, math.inf], strict=True):
        allowed = most_steps(part)
        if allowed < end - 1 - start: most = min(most, start + allowed)
    return most


def trace_schedule(sched: Callable[[Any], Any], steps: int, opt_func: Callable = torch.optim.AdamW,
                   lr: float = 1.) -> dict[str, list[float]]:
    """The value of every number in the first parameter group at each of `steps` steps, by name; `betas` as beta1,
    beta2, …. `sched(opt)` creates the scheduler on a temporary optimizer from `opt_func`. ValueError if it allows fewer
    steps."""
    opt = opt_func([torch.nn.Parameter(torch.zeros(()))], lr=lr)
    schedo, rows = make_schedule(sched, opt, steps), []
    if steps > most_steps(schedo):
        raise ValueError(f"the schedule {type(schedo).__name__} allows {most_steps(schedo)} steps, "
                         f"fewer than {steps}")
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='.*lr_scheduler.step.*before.*optimizer.step')
        for _ in range(steps):
            rows.append(_numbers(opt.param_groups[0]))
            _advance(schedo)
    return {k: [r[k] for r in rows] for k in (rows[0] if rows else ())}


def _advance(schedo: Any) -> None:
    if not isinstance(schedo, lr_scheduler.ReduceLROnPlateau): return schedo.step()
    raise TypeError("ReduceLROnPlateau depends on the loss, so it cannot be drawn before training")


def _numbers(group: dict[str, Any]) -> dict[str, float]:
    betas = {f'beta{i}': b for i, b in enumerate(group.get('betas', ()), 1)}
    return {k: float(v) for k, v in (group | betas).items()
            if isinstance(v, int | float | torch.Tensor) and not isinstance(v, bool)}


def plot_schedule(sched: Callable[[Any], Any], steps: int, opt_func: Callable = torch.optim.AdamW, lr: float = 1.,
                  names: list[str] | None = None) -> Any:
    """Draw what `sched(opt)` does over `steps` steps, before any training: a panel for each hyperparameter that it
    changes, or for each of `names`. `opt_func(params, lr=lr)` creates the optimizer for it. Returns the axes."""
    values = trace_schedule(sched, steps, opt_func, lr)
    if not values: raise ValueError(f"steps must be 1 or more, got {steps}")
    unknown = [n for n in names or () if n not in values]
    if unknown: raise ValueError(f"no hyperparameter {', '.join(unknown)}; there are {', '.join(values)}")
    names = names or [k for k, v in values.items() if len(set(v)) > 1] or ['lr']
    axs = get_grid(len(names), nrows=1, figsize=(5*len(names), 3.5), layout='constrained')[1]
    for ax, name in zip(axs.flat, names, strict=True):
        ax.plot(values[name])
        ax.set(title=name, xlabel='step')
    return axs
