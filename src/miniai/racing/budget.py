"What a race costs and what fits a budget: runs are measured, tasks and trials chosen, and later the number of seeds."
import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from statistics import median
from typing import Any

from miniai.racing.entrants import Entrant, configurations
from miniai.racing.plan import MOST, Protocol, words_of
from miniai.racing.tasks import Task
from miniai.racing.trial import POINTS, run_trial

__all__ = ['chosen', 'measured', 'seconds_of', 'seeds_that_fit', 'typical_seconds']

TRIALS, SEEDS = 4, 8  # of the smallest race that is planned for a budget: fewer seeds tell next to nothing apart
MARGIN = 0.92  # of a budget is planned for: a process has to start, and machines are slower at times
PAUSE = 2      # seconds without a word
Times = Mapping[tuple[str, str], tuple[float, float]]  # by task and rule: seconds of a run, and of each step


def measured(tasks: Mapping[str, Task], entrants: Mapping[str, Entrant], facts: Mapping[str, Any],
             budget: float = math.inf, tell: Callable[[str], Any] = lambda text: None) -> Times:
    """Seconds that a run takes whatever its length, and those of each step, from two short runs of each rule. Once
    it is clear that a task cannot fit into `budget` seconds, the rules that are left are taken to be as quick."""
    times, said = {}, time.monotonic()
    for task in tasks.values():
        if time.monotonic() - said > PAUSE:
            tell(f'measuring how long runs take: {task.name}')
            said = time.monotonic()
        for entrant in entrants.values():
            times[task.name, entrant.name] = found = _measured(task, entrant)
            alike = {(task.name, rule): found for rule in entrants}
            if seconds_of(_least(facts, task.name), tasks, alike | times) > budget:
                times |= {key: value for key, value in alike.items() if key not in times}
                break
    return times


def _measured(task: Task, entrant: Entrant) -> tuple[float, float]:
    config = min(configurations(entrant.space, TRIALS), key=lambda config: config['lr'])  # the safest
    run_trial(task, entrant, config, 0, 1, tunes=False)  # compiles
    result = run_trial(task, entrant, config, 0, max(POINTS, task.steps//8), tunes=False)
    steps, seconds = result['curve'][-1][:2] if result['curve'] else (1, 0.)
    return max(0., result['wall_seconds'] - seconds), seconds/steps


def seconds_of(protocol: Protocol, tasks: Mapping[str, Task], times: Times) -> float:
    "The estimated duration of a race in one process."
    return sum((protocol.trials + protocol.seeds)*(times[nm, rule][0] + steps*times[nm, rule][1])
               for nm in protocol.tasks for rule in protocol.rules for steps in protocol.steps(tasks[nm]))


def _least(facts: Mapping[str, Any], *tasks: str) -> Protocol:
    return Protocol(**facts, tasks=tasks, trials=TRIALS, seeds=SEEDS)


def chosen(budget: float, facts: Mapping[str, Any], tasks: Mapping[str, Task], times: Times,
           measuring: float = 0.) -> Protocol:
    """The race for `budget` seconds, of which `measuring` are over: all tasks, or without the slowest if not even a
    small race on all fits; as many trials as take half of the time or less; and as many seeds as will probably fit into
    the rest. ValueError if nothing fits."""
    room = MARGIN*budget - measuring
    def made(k: int, trials: int, seeds: int) -> Protocol:
        return Protocol(**facts, tasks=tuple(nm for nm in tasks if nm in quickest[:k]), trials=trials, seeds=seeds)
    def takes(*sizes: int) -> float: return seconds_of(made(*sizes), tasks, times)
    quickest = sorted(tasks, key=lambda nm: seconds_of(_least(facts, nm), tasks, times))
    k = next((k for k in range(len(tasks), 0, -1) if takes(k, TRIALS, SEEDS) <= room), None)
    if k is None: raise ValueError(
        f"a budget of {words_of(budget)} is too small: {TRIALS} trials and {SEEDS} seeds on {quickest[0]} alone take "
        f"about {words_of(takes(1, TRIALS, SEEDS) + measuring)}")
    trials = next(n for n in count(TRIALS) if n == MOST or takes(k, n + 1, max(n + 1, SEEDS)) > room)
    seeds = next(n for n in count(SEEDS) if n == MOST or takes(k, trials, n + 1) > room)
    return made(k, trials, seeds)


def typical_seconds(tuned: Sequence[Mapping]) -> dict[tuple[str, int, str], float]:
    "The median duration of the runs that tuned, by task, steps and rule; of those that failed if all did."
    walls = {}
    for r in tuned:
        cell, failed = (r['task'], r['steps'], r['rule']), r['result']['failed'] is not None
        walls.setdefault(cell, {}).setdefault(failed, []).append(r['result']['wall_seconds'])
    return {cell: median(found.get(False) or found[True]) for cell, found in walls.items()}


def seeds_that_fit(budget: float, measuring: float, tuned: Sequence[Mapping]) -> int:
    """The seeds for what measuring and tuning left of a budget. It depends on the recorded seconds of the runs that
    tuned, and so is the same in every process and after any interruption; figures have no part in it. Four even if
    tuning has taken too long."""
    spent = measuring + sum(r['result']['wall_seconds'] for r in tuned)
    return min(MOST, max(SEEDS//2, int((MARGIN*budget - spent)/sum(typical_seconds(tuned).values()))))
