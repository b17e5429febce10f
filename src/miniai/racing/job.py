"The job that races rules, or gives the verdict of a race that is over."
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from miniai.jobs.config import ConfigError, column_names
from miniai.jobs.report import to_write
from miniai.racing.answer import Answer
from miniai.racing.page import RACE_PAGE, race_page
from miniai.racing.race import LADDER, plan_race, race
from miniai.report.page import write_page

__all__ = ['RaceConfig', 'RaceOptions', 'run_race']


@dataclass
class RaceOptions:
    "The options of a race."
    baselines: str = 'adamw,nesterov,muon'
    """The rules to race against, tuned in the same way. Separated by commas, or '' for none."""
    task: str = ','.join(LADDER)
    """Tasks, separated by commas: those of the default, or module:function that returns a miniai.racing.tasks.Task."""
    budget: str = '10m'
    """How long the race may take on this machine: chooses tasks, trials and seeds."""
    lengths: str = '0.25,1'
    """Lengths of runs, as shares of each task's steps, separated by commas."""
    compare: Literal['all', 'baselines'] = 'all'
    """With 'baselines' the rules are not compared with one another: with many, fewer comparisons tell more."""
    trials: int | None = None
    """Configurations that each rule tries for each task and length. With --seeds, instead of --budget."""
    seeds: int | None = None
    """Seeds of the comparison. With --trials, instead of --budget."""
    seed: int = 0
    """Chooses the seeds."""
    out: str = 'race'
    """The folder of the race. A race that was interrupted resumes; several processes may share it."""
    plan: bool = False
    """Print the plan, from a few measured steps, and race nothing."""
    verdict: str = ''
    """Print the answer of this race.json again, computed from its runs."""
    html: str = ''
    """With --verdict, also write the answer as a page to this file."""


@dataclass
class RaceConfig(RaceOptions):
    "Race update rules against tuned baselines: same tasks, same seeds, and a verdict that may be 'cannot tell'."
    rules: tuple[str, ...] = ()
    """Names of --optimizer, FILE.py:rule or module:rule. LABEL=RULE gives a rule another name."""


def run_race(config: RaceConfig) -> None:
    "Run the job. ConfigError for rules, tasks or numbers that are invalid, or a folder that holds another race."
    try: _run(config)
    except ValueError as e: raise ConfigError(str(e)) from e


def _run(config: RaceConfig) -> None:
    if config.verdict:
        answer = Answer.read(config.verdict)
        print(answer)
        if config.html: print(write_page(race_page(answer), to_write(Path(config.html), RACE_PAGE, '--html')))
        return
    if config.html: raise ConfigError('--html needs --verdict: a race writes race.html in its folder')
    if not config.out: raise ConfigError('--out must name a folder')
    options: dict[str, Any] = dict(tasks=column_names(config.task), baselines=column_names(config.baselines),
                                   seed=config.seed, trials=config.trials, seeds=config.seeds, budget=config.budget,
                                   compare=config.compare, lengths=_shares(config.lengths))
    tell = partial(print, flush=True)
    if config.plan: print(plan_race(*config.rules, **options, tell=tell))
    else:
        try: print(race(*config.rules, **options, out=config.out, tell=tell))
        except KeyboardInterrupt as e:
            e.add_note('(the same command continues the race)')
            raise
        print(f'race: {config.out}/race.html, race.md and race.json')


def _shares(text: str) -> list[float]:
    try: return [float(share) for share in column_names(text)]
    except ValueError as e: raise ConfigError(f"--lengths must be numbers such as 0.25,1, got {text!r}") from e
