"What a verdict is, the facts that rules judge, and the table of rules with their thresholds and sources."
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any, NamedTuple

__all__ = ['EXPLAINED', 'NAMES', 'Facts', 'Verdict', 'judge', 'known', 'last', 'mean_of', 'median_of', 'of_size',
           'percent', 'rule', 'since_when']

NAMES = ('non-finite values', 'labels out of range', 'outputs and targets broadcast', 'softmax before the loss',
         'validation data in training', 'constant inputs', 'repeated inputs', 'unbalanced labels', 'shuffled labels',
         'inputs not normalized', 'validation inputs differ', 'parameter in no group',
         'batch too small for batch norm', 'rate too high', 'warm-up too short', 'exploding gradients',
         'wrong initial loss', 'saturated layer', 'dead layer', 'vanishing gradients', 'parameter never moves',
         'clipping always', 'rate too low', 'stuck at chance', 'batch norm differs between modes',
         'validation worse than guessing', 'overfitting', 'underfitting', 'slow data loading',
         'decay on norms')  # causes before what they bring about
EXPLAINED = {'underfitting': {  # left out beside one of these, which may be its cause; so are the others
    'non-finite values', 'constant inputs', 'inputs not normalized', 'parameter in no group', 'rate too high',
    'batch too small for batch norm', 'exploding gradients', 'saturated layer', 'dead layer', 'vanishing gradients',
    'parameter never moves', 'clipping always', 'rate too low', 'stuck at chance', 'decay on norms',
    'outputs and targets broadcast', 'softmax before the loss'},
    'overfitting': {'validation inputs differ', 'validation worse than guessing'},
    'batch norm differs between modes': {'validation inputs differ'},
    'validation worse than guessing': {
        'shuffled labels', 'validation inputs differ', 'batch norm differs between modes',
        'batch too small for batch norm', 'non-finite values', 'rate too high', 'exploding gradients'}}


class Verdict(NamedTuple):
    """What is wrong with a run. `where` is a module or parameter, '' for the whole run; `since` is a training batch,
    counted over the whole fit; `certain` is 'sure', 'likely' or 'possible'; `source` says where `threshold` is from."""
    name: str
    where: str
    value: float | None
    threshold: float | None
    since: int | None
    says: str
    do: str
    certain: str
    source: str


@dataclass
class Facts:
    """Recorded numbers, as rules see them. `batches` are the sampled ones; `layers` and `parameters` hold a dict of
    lists by name, and `run` such lists, with a value for each of `batches`; None where nothing was measured. `losses`
    has each training batch, `epochs` the mean losses of each pass. `rate` is the mean learning rate of all batches, and
    `done` the share of the fit that is done."""
    batches: list[int] = field(default_factory=list)
    layers: dict[str, dict[str, Any]] = field(default_factory=dict)
    parameters: dict[str, dict[str, list]] = field(default_factory=dict)
    run: dict[str, list] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    setup: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    nonfinite: dict[str, Any] | None = None  # where the first loss that is not finite began, in training
    nonfinite_valid: dict[str, Any] | None = None  # and in validation
    rate: float | None = None
    done: float = 0.

    @property
    def baseline(self) -> float | None:
        "The loss of the best prediction that does not look at the inputs; None if the kind of loss is not known."
        return self.data.get('baseline')

    @property
    def scale(self) -> float:
        "What a loss is compared with: the baseline, or the first loss if there is none."
        return self.baseline or abs(next(iter(self.losses), 0.))

    @property
    def variety(self) -> float | None:
        "How much of the variety of targets a batch has, for batches of 16 or more: 1 if shuffled, 0 if all are equal."
        return self.data.get('variety') if (median_of(self.data.get('sizes', ())) or 0) >= 16 else None

    @property
    def is_late(self) -> bool:
        "Whether enough of the fit is done to judge its outcome: half of it, and 30 batches."
        return self.done >= 0.5 and len(self.losses) >= 30

    def window(self, start: float, end: float) -> float | None:
        "The mean loss from one share of the batches so far to another: the last quarter is 0.75, 1."
        n = len(self.losses)
        return mean_of(self.losses[int(n*start):max(int(n*end), int(n*start) + 1)])


_RULES: dict[str, Callable[[Facts], list[Verdict] | None]] = {}


def rule(name: str, threshold: float | None, source: str) -> Callable:
    """Decorator for a rule: a function of facts and the threshold that returns what it found, as dicts of `where`,
    `value`, `since`, `says`, `do` and `certain`, or None if the facts are not enough to judge."""
    def register(f: Callable[[Facts, float | None], Iterable[dict] | None]) -> Callable:
        def judged(facts: Facts) -> list[Verdict] | None:
            found, defaults = f(facts, threshold), dict(where='', value=None, since=None, certain='likely')
            if found is None: return None
            return _few([Verdict(name=name, threshold=threshold, source=source, **(defaults | x)) for x in found])
        _RULES[name] = judged
        return f
    return register


def _few(found: list[Verdict]) -> list[Verdict]:
    "Three of them, the third with the number of the others."
    if len(found) <= 3: return found
    third = found[2]
    return [*found[:2], third._replace(says=f'{third.says.rstrip(".")}; as in {len(found) - 3} more.')]


def judge(facts: Facts) -> tuple[list[Verdict], list[str]]:
    """The verdicts, causes first and those that are only possible last, without those that likely causes explain, and
    the rules that could be evaluated."""
    results = {name: _RULES[name](facts) for name in NAMES if name in _RULES}
    verdicts = [v for found in results.values() for v in found or ()]
    likely = {v.name for v in verdicts if v.certain != 'possible'}
    verdicts = [v for v in verdicts if not likely & EXPLAINED.get(v.name, set())]
    verdicts.sort(key=lambda v: (v.certain == 'possible', NAMES.index(v.name)))
    return verdicts, [name for name, found in results.items() if found is not None]


def known(values: Iterable[float | None]) -> list[float]:
    "The values that were measured and are finite."
    return [v for v in values if v is not None and abs(v) < float('inf')]


def mean_of(values: Iterable[float | None]) -> float | None:
    "The mean of the values that were measured; None if none was."
    found = known(values)
    return fmean(found) if found else None


def median_of(values: Iterable[float | None]) -> float | None:
    "The median of the values that were measured; None if none was."
    found = known(values)
    return median(found) if found else None


def last(values: Sequence[float | None], n: int) -> list[float]:
    "The last `n` values that were measured."
    return known(values)[-n:]


def since_when(facts: Facts, values: Sequence[float | None], holds: Callable[[float], bool]) -> int | None:
    "The batch since when `holds` has been true for all sampled values; None if it is not true for the last one."
    since = None
    for batch, v in zip(reversed(facts.batches), reversed(values), strict=True):
        if v is None: continue
        if not holds(v): break
        since = batch
    return since


def percent(x: float) -> str:
    "A share in words, such as '93 %'."
    return f'{100*x:.2g} %' if x < 0.01 else f'{100*x:.0f} %'


def of_size(x: float) -> str:
    "A step of weights in words, such as '3 % of their size' or '40 times their size'."
    return f'{percent(x)} of their size' if x < 2 else f'{x:.3g} times their size'
