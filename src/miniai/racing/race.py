"A race: plan, tuning, comparison, answer. All runs are in a folder, where other processes and later calls find them."
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from miniai.device import def_device
from miniai.environment import machine_facts
from miniai.racing.answer import Answer, best_configuration
from miniai.racing.budget import chosen, measured, planned, seconds_of, seeds_that_fit, typical_seconds
from miniai.racing.entrants import BASELINES, Entrant, Space, find_entrant
from miniai.racing.ladder import TASKS, find_task
from miniai.racing.page import RACE_PAGE, race_page
from miniai.racing.plan import Protocol, plan_text, seconds_in
from miniai.racing.progress import Progress
from miniai.racing.runs import comparison_runs, device_type, trial_of, tuning_runs
from miniai.racing.store import Store
from miniai.racing.tasks import Task, task_digest
from miniai.racing.trial import own_globals, run_trial

__all__ = ['LADDER', 'plan_race', 'race']

LADDER = tuple(TASKS)


def race(*rules: Any, tasks: Iterable[str | Task] = LADDER, baselines: Iterable[Any] = BASELINES,
         trials: int | None = None, seeds: int | None = None, budget: str | float = '10m',
         lengths: Sequence[float] = (0.25, 1.), seed: int = 0, compare: str = 'all', out: str | Path = 'race',
         tell: Callable[[str], Any] = print) -> Answer:
    """Race `rules` against `baselines`: names as of `miniai train`, 'FILE.py:rule', rule functions or optimizer
    classes. `compare='baselines'` does not compare `rules` with one another: with many, fewer comparisons tell more.
    Without both `trials` and `seeds`, `budget` (seconds, or '10m') chooses them. Everything is kept in `out`: call
    again to resume, or from several processes at once to share the work. Writes race.json, from which anyone can
    recompute the verdict, race.md and race.html. ValueError for what does not exist, or another race in `out`."""
    given = _listed(tasks)
    tasks, entrants, facts = _found(rules, given, baselines, dict(lengths=tuple(lengths), seed=seed, compare=compare))
    named = {nm: task if isinstance(task, str) else '' for nm, task in zip(tasks, given, strict=True)}
    store = Store(out, tell)
    try: plan = _plan(store, tasks, entrants, facts, trials, seeds, budget, tell)
    except BaseException:
        store.leave()
        raise
    tell(plan['text'])
    protocol, runs = _run_all(store, plan, tasks, entrants, tell)
    answer = Answer(dict(protocol=protocol.as_dict(), runs=runs, machine=machine_facts(def_device),
                         rules={e.name: dict(space=_plain(e.space), code=e.code, given=e.given)
                                for e in entrants.values()},
                         tasks={nm: _described(tasks[nm]) | dict(given=named[nm]) for nm in protocol.tasks},
                         left_out=[nm for nm in TASKS if nm not in protocol.tasks]))
    store.write('race.json', answer.record)
    store.write('race.md', str(answer))
    try: store.write(RACE_PAGE, race_page(answer))
    except ImportError as e: tell(f'{RACE_PAGE} was not written: {e}')
    return answer


def plan_race(*rules: Any, tasks: Iterable[str | Task] = LADDER, baselines: Iterable[Any] = BASELINES,
              trials: int | None = None, seeds: int | None = None, budget: str | float = '10m',
              lengths: Sequence[float] = (0.25, 1.), seed: int = 0, compare: str = 'all',
              tell: Callable[[str], Any] = print) -> str:
    "What `race` would do with these arguments, and how long it would take, from a few measured steps."
    tasks, entrants, facts = _found(rules, tasks, baselines, dict(lengths=tuple(lengths), seed=seed, compare=compare))
    return _planned(tasks, entrants, facts, trials, seeds, budget, tell, math.inf)['text']


def _found(rules: Sequence[Any], tasks: Iterable[str | Task], baselines: Iterable[Any],
           options: dict[str, Any]) -> tuple[dict[str, Task], dict[str, Entrant], dict[str, Any]]:
    "Tasks and rules by name, and the facts of the protocol that do not depend on the budget."
    found = [find_task(task) if isinstance(task, str) else task for task in _listed(tasks)]
    with own_globals(0): entrants, others = ([*map(find_entrant, given)] for given in (rules, _listed(baselines)))
    named = [e.name for e in entrants]
    same = {(e.name, e.digest) for e in entrants}
    others = [e for e in others if (e.name, e.digest) not in same]
    names = [*named, *(e.name for e in others)]
    for nms, advice in ((names, "two rules are called {0}; a rule may have a label, as in my_{0}={0}"),
                        ([t.name for t in found], "two tasks are called {0}: give each once, with a name of its own")):
        twice = next((nm for nm in nms if nms.count(nm) > 1), None)
        if twice: raise ValueError(advice.format(twice))
    if not named: raise ValueError("a race needs a rule, such as my_rule.py:rule")
    if len(names) < 2: raise ValueError(f"a race needs two rules or more, got {names[0]} alone")
    if not found: raise ValueError("a race needs a task")
    facts = dict(entrants=tuple(named), baselines=tuple(e.name for e in others)) | options
    return {t.name: t for t in found}, {e.name: e for e in (*entrants, *others)}, facts


def _listed(given: Any) -> list[Any]:
    "What was given as a list, or as text with commas, as in 'mlp,gpt'."
    return [nm.strip() for nm in given.split(',') if nm.strip()] if isinstance(given, str) else [*given]


def _planned(tasks: dict[str, Task], entrants: dict[str, Entrant], facts: dict[str, Any], trials: int | None,
             seeds: int | None, budget: str | float, tell: Callable, measure: float) -> dict[str, Any]:
    """The plan as plain data: the protocol, in words too, how long runs take, and how long it took to find out. With
    `trials` and `seeds` tasks that take longer than `measure` seconds are measured with one rule alone."""
    if (trials is None) != (seeds is None): raise ValueError("give both trials and seeds, or a budget")
    limit, exact, started = seconds_in(budget), trials is not None, time.monotonic()
    protocol = Protocol(**facts, tasks=tuple(tasks), trials=trials, seeds=seeds) if exact else None
    times = measured(tasks, entrants, facts, measure if exact else limit, tell)
    measuring = time.monotonic() - started
    protocol = protocol or chosen(limit, facts, tasks, entrants, times, measuring)
    tuning, one_seed = map(len, planned(protocol, tasks, entrants))
    text = plan_text(protocol, tasks, tuning + protocol.seeds*one_seed, seconds_of(protocol, tasks, entrants, times),
                     exact)
    return dict(protocol=protocol.as_dict(), text=text, measuring_seconds=measuring,
                times=[[*key, *value] for key, value in times.items()])


def _plan(store: Store, tasks: dict[str, Task], entrants: dict[str, Entrant], facts: dict[str, Any],
          trials: int | None, seeds: int | None, budget: str | float, tell: Callable) -> dict[str, Any]:
    "The plan of the race in the folder; the first process makes it. ValueError if the folder has another race."
    asked = Protocol(**facts, tasks=tuple(tasks), trials=trials or 1, seeds=seeds or 2).as_dict()
    asked |= dict(trials=trials, seeds=seeds, budget=None if trials else seconds_in(budget),
                  device=device_type(), codes={e.name: e.digest for e in entrants.values()},
                  tasks_code=[task_digest(t) for t in tasks.values()])
    with store.lock('plan.lock'):
        plan = store.read('plan.json')
        if plan is None:
            plan = _planned(tasks, entrants, facts, trials, seeds, budget, tell, 0.) | dict(asked=asked)
            store.write('plan.json', plan)
    if not (isinstance(plan, dict) and {'protocol', 'text', 'measuring_seconds', 'times', 'asked'} <= plan.keys()):
        raise ValueError(f"{store.folder/'plan.json'} is not the plan of a race: choose another folder, or remove it")
    for nm, value in asked.items():
        if plan['asked'].get(nm) != value: raise ValueError(
            f"{store.folder} holds a race with other {nm}, {plan['asked'].get(nm)!r} instead of {value!r}: choose "
            f"another folder for this one")
    return plan


def _run_all(store: Store, plan: dict[str, Any], tasks: dict[str, Task], entrants: dict[str, Entrant],
             tell: Callable) -> tuple[Protocol, list[dict]]:
    "The runs of tuning, then those of the comparison, each as plain data with its result; and how many seeds it had."
    protocol, budget = Protocol.from_dict(plan['protocol']), plan['asked']['budget']
    expected = {(nm, steps, rule): fixed + steps*step for nm, rule, fixed, step in plan['times'] if nm in protocol.tasks
                for steps in protocol.steps(tasks[nm])}
    tuned = _results(store, tuning_runs(protocol, tasks, entrants), tasks, entrants, 'tuning', expected, tell)
    comparison = partial(comparison_runs, protocol, tasks, entrants, partial(best_configuration, tuned))
    if budget: protocol = replace(protocol, seeds=seeds_that_fit(budget, plan['measuring_seconds'], tuned,
                                                                 comparison(protocol.comparison_seeds[:1])))
    return protocol, tuned + _results(store, comparison(protocol.comparison_seeds), tasks, entrants, 'comparison',
                                      typical_seconds(tuned), tell)


def _results(store: Store, runs: list[dict], tasks: dict[str, Task], entrants: dict[str, Entrant], stage: str,
             expected: Mapping[tuple, float], tell: Callable) -> list[dict]:
    "The runs with their results. `expected` has their expected seconds by task, steps and rule."
    by_digest = {e.digest: e for e in entrants.values()}
    def execute(trial: dict) -> dict:
        return run_trial(tasks[trial['task']], by_digest[trial['rule']], trial['config'], trial['seed'], trial['steps'],
                         trial['tunes'])
    seconds = {r['trial']: expected[r['task'], r['steps'], r['rule']] for r in runs}
    results = store.results([trial_of(r, tasks, entrants) for r in runs], execute, Progress(stage, seconds, tell))
    return [r | dict(result=result) for r, result in zip(runs, results, strict=True)]


def _plain(space: Space) -> dict[str, Any]:
    "A space as JSON has it, which knows no tuples."
    return {nm: dict(low=v[0], high=v[1]) if isinstance(v, tuple) else v for nm, v in space.items()}


def _described(task: Task) -> dict[str, Any]:
    return dict(steps=task.steps, figure=task.figure_name, about=task.about)
