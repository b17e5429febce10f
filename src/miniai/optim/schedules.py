"What a torch scheduler does to every hyperparameter, traced and drawn before training."
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler

from miniai.show.plots import get_grid

__all__ = ['plot_schedule', 'trace_schedule', 'most_steps']


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
    schedo, rows = sched(opt), []
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
