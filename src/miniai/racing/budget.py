"What a race costs and what fits a budget: runs are measured, tasks and trials chosen, and later the number of seeds."
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from miniai.racing.entrants import Entrant, configurations
from miniai.racing.plan import MOST, Protocol, words_of
from miniai.racing.progress import PAUSE
from miniai.racing.runs import Entrants, Tasks, comparison_runs, made_once, tuning_runs
from miniai.racing.tasks import Task
from miniai.racing.trial import POINTS, check_task, run_trial

__all__ = ['chosen', 'measured', 'planned', 'seconds_of', 'seeds_that_fit', 'typical_seconds']

TRIALS, SEEDS = 4, 8  # of the smallest race that is planned for a budget: fewer seeds tell almost nothing apart
MARGIN = 0.92  # of a budget is planned for: a process has to start, and machines are slower at times
MEASURING = 0.2  # of a budget may pass before the last task is measured
Times = Mapping[tuple[str, str], tuple[float, float]]  # by task and rule: seconds of a run, and of each step


def measured(tasks: Tasks, entrants: Entrants, facts: Mapping[str, Any], budget: float = math.inf,
             tell: Callable[[str], Any] = lambda text: None) -> Times:
    """Seconds that a run takes whatever its length, and those of each step, from two short runs of each rule. Once
    it is clear that a task cannot fit into `budget` seconds, the rules that are left are taken to be as quick. Tasks
    whose turn does not come within a fifth of a budget above 0 are left out. TaskError for a task that is broken."""
    times, started = {}, time.monotonic()
    said = started
    for task in tasks.values():
        now = time.monotonic()
        if times and 0 < MEASURING*budget < now - started: break
        if now - said > PAUSE:
            tell(f'measuring how long runs take: {task.name}')
            said = now
        check_task(task)
        for entrant in entrants.values():
            times[task.name, entrant.name] = found = _measured(task, entrant)
            alike = {(task.name, rule): found for rule in entrants}
            if seconds_of(_least(facts, task.name), tasks, entrants, alike | times) > budget:
                times |= {key: value for key, value in alike.items() if key not in times}
                break
    return times


def _measured(task: Task, entrant: Entrant) -> tuple[float, float]:
    config = min(configurations(entrant.space, TRIALS), key=lambda config: config['lr'])  # the safest
    run_trial(task, entrant, config, 0, 1, tunes=False)  # compiles
    result = run_trial(task, entrant, config, 0, max(POINTS, task.steps//8), tunes=False)
    steps, seconds = result['curve'][-1][:2] if result['curve'] else (1, 0.)
    return max(0., result['wall_seconds'] - seconds), seconds/steps


def planned(protocol: Protocol, tasks: Tasks, entrants: Entrants) -> tuple[list[dict], list[dict]]:
    """The runs of tuning, and those of one seed of the comparison, with those that rules share listed once. Before
    tuning, rules are assumed to share the comparison if they tune the same configurations."""
    def tried(task: str, steps: int, rule: str) -> list[dict]:
        return configurations(entrants[rule].space, protocol.trials)
    return (made_once(tuning_runs(protocol, tasks, entrants)),
            made_once(comparison_runs(protocol, tasks, entrants, tried, protocol.comparison_seeds[:1])))


def _seconds(protocol: Protocol, tasks: Tasks, entrants: Entrants, times: Times) -> list[float]:
    "The estimated duration of tuning, and of one seed of the comparison."
    return [sum(times[r['task'], r['rule']][0] + r['steps']*times[r['task'], r['rule']][1] for r in runs)
            for runs in planned(protocol, tasks, entrants)]


def seconds_of(protocol: Protocol, tasks: Tasks, entrants: Entrants, times: Times) -> float:
    "The estimated duration of a race in one process."
    tuning, one_seed = _seconds(protocol, tasks, entrants, times)
    return tuning + protocol.seeds*one_seed


def _least(facts: Mapping[str, Any], *tasks: str) -> Protocol:
    return Protocol(**facts, tasks=tasks, trials=TRIALS, seeds=SEEDS)


def chosen(budget: float, facts: Mapping[str, Any], tasks: Tasks, entrants: Entrants, times: Times,
           measuring: float = 0.) -> Protocol:
    """The race for `budget` seconds, of which `measuring` are over: all measured tasks, or without the slowest if not
    even a small race on all fits; as many trials as take half of the time or less; and as many seeds as will probably
    fit into the rest. ValueError if nothing fits."""
    room, tasks = MARGIN*budget - measuring, {nm: tasks[nm] for nm in tasks if any(nm == task for task, _ in times)}
    quickest = sorted(tasks, key=lambda nm: seconds_of(_least(facts, nm), tasks, entrants, times))
    def least(k: int) -> Protocol: return _least(facts, *(nm for nm in tasks if nm in quickest[:k]))
    def takes(k: int, n: int = TRIALS) -> float:
        return seconds_of(replace(least(k), trials=n, seeds=max(n, SEEDS)), tasks, entrants, times)
    k = next((k for k in range(len(tasks), 0, -1) if takes(k) <= room), None)
    if k is None: raise ValueError(
        f"a budget of {words_of(budget)} is too small: {TRIALS} trials and {SEEDS} seeds on {quickest[0]} alone take "
        f"about {words_of(takes(1) + measuring)}")
    trials = TRIALS + bisect_right(range(TRIALS + 1, MOST + 1), room, key=lambda n: takes(k, n))
    protocol = replace(least(k), trials=trials)
    tuning, one_seed = _seconds(protocol, tasks, entrants, times)
    return replace(protocol, seeds=min(MOST, max(SEEDS, int((room - tuning)/one_seed))))


def typical_seconds(tuned: Sequence[Mapping]) -> dict[tuple[str, int, str], float]:
    "The median duration of the runs that tuned, by task, steps and rule; of those that failed if all did."
    walls = {}
    for r in tuned:
        cell, failed = (r['task'], r['steps'], r['rule']), r['result']['failed'] is not None
        walls.setdefault(cell, {}).setdefault(failed, []).append(r['result']['wall_seconds'])
    return {cell: median(found.get(False) or found[True]) for cell, found in walls.items()}


def seeds_that_fit(budget: float, measuring: float, tuned: Sequence[Mapping], one_seed: Sequence[Mapping]) -> int:
    """The seeds for what measuring and tuning left of a budget, if a seed takes the runs `one_seed`. It depends on the
    recorded seconds of the runs that tuned, and so is the same in every process and after any interruption; figures
    have no part in it. Runs that rules share count once. At least four, even if tuning took too long."""
    typical, spent = typical_seconds(tuned), measuring + sum(r['result']['wall_seconds'] for r in made_once(tuned))
    takes = sum(typical[r['task'], r['steps'], r['rule']] for r in made_once(one_seed))
    return min(MOST, max(SEEDS//2, int((MARGIN*budget - spent)/takes)))
