"The runs of a race as plain data, each with the name of its trial: rules with the same code share trials."
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from miniai.device import def_device
from miniai.environment import version_of
from miniai.racing.entrants import Entrant, configurations
from miniai.racing.plan import Protocol
from miniai.racing.store import digest_of
from miniai.racing.tasks import Task, task_digest

__all__ = ['Entrants', 'Tasks', 'comparison_runs', 'device_type', 'made_once', 'trial_of', 'tuning_runs']

Tasks, Entrants = Mapping[str, Task], Mapping[str, Entrant]


def tuning_runs(protocol: Protocol, tasks: Tasks, entrants: Entrants) -> list[dict[str, Any]]:
    "Each rule with each of its configurations, for each task and length."
    return [_named(dict(task=nm, steps=steps, rule=rule, tunes=True, config=config, seed=protocol.tuning_seed), tasks,
                   entrants)
            for nm, steps, rule in _cells(protocol, tasks)
            for config in configurations(entrants[rule].space, protocol.trials)]


def comparison_runs(protocol: Protocol, tasks: Tasks, entrants: Entrants, config: Callable[[str, int, str], Any],
                    seeds: Sequence[int]) -> list[dict[str, Any]]:
    "Each rule with its `config` on a task at a length and each of `seeds`."
    return [_named(dict(task=nm, steps=steps, rule=rule, tunes=False, config=its, seed=seed), tasks, entrants)
            for nm, steps, rule in _cells(protocol, tasks) for its in [config(nm, steps, rule)] for seed in seeds]


def _cells(protocol: Protocol, tasks: Tasks) -> list[tuple[str, int, str]]:
    return [(nm, steps, rule) for nm in protocol.tasks for steps in protocol.steps(tasks[nm])
            for rule in protocol.rules]


def _named(run: dict[str, Any], tasks: Tasks, entrants: Entrants) -> dict[str, Any]:
    return run | dict(trial=digest_of(trial_of(run, tasks, entrants)))


def trial_of(run: Mapping[str, Any], tasks: Tasks, entrants: Entrants) -> dict[str, Any]:
    "What the result of a run depends on."
    return {nm: run[nm] for nm in ('task', 'steps', 'tunes', 'config', 'seed')} | dict(
        rule=entrants[run['rule']].digest, code=task_digest(tasks[run['task']]), device=device_type(),
        versions=[version_of('miniai-torch'), version_of('torch'), platform.python_version()])


def device_type() -> str:
    "The kind of device that runs use, such as 'cuda'."
    return torch.device(def_device).type


def made_once(runs: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    "The first run of each trial."
    found = {}
    for run in runs: found.setdefault(run['trial'], run)
    return [*found.values()]
