"The plan of a race: what is run, what it can detect, and durations in words."
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from miniai.racing.tasks import Task
from miniai.racing.verdict import COMPARE, detectable, pairs_of

__all__ = ['MOST', 'Protocol', 'plan_text', 'seconds_in', 'steps_in', 'words_of']

MOST = 900  # seeds


@dataclass(frozen=True)
class Protocol:
    """What a race does: for each of `tasks` and each of `lengths`, shares of the task's steps, every rule tries
    `trials` configurations on a tuning seed and then runs its best one on `seeds` other seeds, which follow from
    `seed`. `entrants` are compared with `baselines`, which are tuned in the same way, and if `compare` is 'all' with
    one another. ValueError for numbers that are too small."""
    entrants: tuple[str, ...]
    baselines: tuple[str, ...]
    tasks: tuple[str, ...]
    trials: int
    seeds: int
    lengths: tuple[float, ...] = (0.25, 1.)
    seed: int = 0
    alpha: float = 0.05
    power: float = 0.8
    compare: str = 'all'

    def __post_init__(self) -> None:
        if self.trials < 1: raise ValueError(f"trials must be 1 or more, got {self.trials}")
        if not 2 <= self.seeds <= MOST: raise ValueError(f"seeds must be from 2 to {MOST}, got {self.seeds}")
        if not self.lengths or not all(0 < x <= 1 for x in self.lengths):
            raise ValueError(f"lengths must be shares of a task's steps, from 0 to 1, got {self.lengths}")
        if self.compare not in COMPARE:
            raise ValueError(f"compare must be {' or '.join(COMPARE)}, got {self.compare!r}")
        if not self.pairs: raise ValueError("there are no baselines to compare with: give some, or compare all")
        if not (0 < self.alpha < 1 and 0 < self.power < 1):
            raise ValueError(f"alpha and power must be between 0 and 1, got {self.alpha} and {self.power}")

    @property
    def rules(self) -> tuple[str, ...]: return self.entrants + self.baselines

    @property
    def pairs(self) -> list[tuple[str, str]]:
        "What is compared."
        return pairs_of(self.entrants, self.baselines, self.compare)

    @property
    def tuning_seed(self) -> int: return 1000*self.seed + 999

    @property
    def comparison_seeds(self) -> list[int]: return [1000*self.seed + i for i in range(self.seeds)]

    def steps(self, task: Task) -> list[int]:
        "The lengths of runs on a task, each once."
        return steps_in(task.steps, self.lengths)

    def as_dict(self) -> dict[str, Any]:
        "As JSON has it."
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Self:
        "The protocol that `as_dict` gave."
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in given.items()})


def steps_in(steps: int, lengths: Iterable[float]) -> list[int]:
    "Shares of the steps of a task as numbers of steps, each once."
    return list(dict.fromkeys(max(1, round(steps*share)) for share in lengths))


def plan_text(protocol: Protocol, tasks: Mapping[str, Task], runs: int, seconds: float, exact: bool = True) -> str:
    "What a race is going to do, in words. Not `exact`: tuning will show how many seeds there are."
    p, lengths = protocol, {nm: ' and '.join(map(str, protocol.steps(tasks[nm]))) for nm in protocol.tasks}
    comparisons = len(p.pairs)*sum(len(p.steps(tasks[nm])) for nm in p.tasks)
    seen = detectable(1., p.seeds, p.alpha/comparisons, p.power)
    left_out = [nm for nm in tasks if nm not in p.tasks]
    return '\n'.join([
        f"{'' if exact else 'about '}{runs:,} runs, about {words_of(seconds)} in one process on this machine",
        f"rules: {', '.join(p.entrants)} against {', '.join(p.baselines) or 'one another'}, each with {p.trials} "
        f"configurations and {p.seeds if exact else f'about {p.seeds}'} seeds",
        *([] if exact else ["the exact number of seeds follows from how long tuning takes"]),
        f"tasks: {', '.join(f'{nm} ({steps} steps)' for nm, steps in lengths.items())}",
        *([f"left out, to fit the budget: {', '.join(left_out)}"] if left_out else []),
        f"{comparisons} comparison{'s'*(comparisons != 1)}, with a chance of at most {p.alpha:.0%} of one or more "
        f"false verdicts in all",
        f"a difference of {seen:.1f} times its standard deviation between seeds is detected with a chance of "
        f"{p.power:.0%}"])


def words_of(seconds: float) -> str:
    "A duration in words."
    if seconds < 100: return f'{seconds:.1f} seconds' if seconds < 10 else f'{seconds:.0f} seconds'
    return f'{seconds/60:.0f} minutes' if seconds < 6000 else f'{seconds/3600:.1f} hours'


def seconds_in(text: str | float) -> float:
    "The seconds in '90s', '10m' or '2h'. ValueError for anything else."
    found = re.fullmatch(r'(\d+(?:\.\d+)?)([smh])', str(text))
    value = float(found[1])*dict(s=1, m=60, h=3600)[found[2]] if found else text
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf: return float(value)
    raise ValueError(f"a budget must be a duration such as 90s, 10m or 2h, got {text!r}")
