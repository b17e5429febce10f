"What paired figures can tell: differences with intervals, tests corrected for their number, ranks, seeds needed."
import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

__all__ = ['COMPARE', 'compare', 'compare_all', 'detectable', 'holm', 'pairs_of', 'ranks', 'seeds_needed', 'with_worst']

COMPARE = 'all', 'baselines'  # what each rule of a race is compared with
ROUNDING = 1e-5  # of a figure: smaller differences are those of the order of operations
RESAMPLES = 4000
FLIPS = 14     # up to so many seeds all 2**n sign flips are counted, with more seeds a fixed sample of them
SAMPLED = 10*RESAMPLES
ENOUGH = 8     # times the smallest p-value of sign flips must be below the level: nearer to it they detect little
FEW = 10       # with fewer seeds the interval is Student's: a bootstrap of so few is too narrow
UNKNOWN = 10**4  # no more seeds than this are worth naming


def with_worst(figures: Mapping[str, Sequence[float | None]], starts: Sequence[float]) -> dict[str, list[float]]:
    """The figures of each rule by seed, where lower is better, with runs that failed, None, counted as the worst there
    is: the worst figure of any rule, or one from before training."""
    finite = [x for xs in figures.values() for x in xs if x is not None]
    worst = max([*finite, *starts], default=math.inf)
    return {nm: [worst if x is None else x for x in xs] for nm, xs in figures.items()}


def pairs_of(entrants: Sequence[str], baselines: Sequence[str], compare: str = 'all') -> list[tuple[str, str]]:
    """The pairs of rules that a race compares: each entrant with the baselines and, if `compare` is 'all', with the
    entrants after it. Fewer comparisons need fewer seeds."""
    return [(a, b) for i, a in enumerate(entrants)
            for b in ([*entrants[i + 1:], *baselines] if compare == 'all' else baselines)]


def compare_all(cells: Mapping[Any, Mapping[str, Sequence[float]]], pairs: Sequence[tuple[str, str]],
                alpha: float = 0.05, power: float = 0.8) -> list[dict[str, Any]]:
    """Compare each of `pairs` of rules in each cell, a task and length, whose figures are those of each rule by seed.
    `p` is corrected by Holm's method for all comparisons of the race together, so that the chance of one or more false
    'better' or 'worse' in a whole race is at most `alpha`."""
    m = len(cells)*len(pairs)
    rows = [dict(cell=cell, a=a, b=b) | compare(figures[a], figures[b], alpha, m)
            for cell, figures in cells.items() for a, b in pairs]
    for row, p in zip(rows, holm([row['p_alone'] for row in rows]), strict=True):
        decided = p <= alpha and row['difference'] != 0
        row['p'], row['verdict'] = p, ('better' if row['difference'] < 0 else 'worse') if decided else 'cannot tell'
        n, spread = row['seeds'], row['spread']
        row['detectable'] = detectable(spread, n, alpha/m, power)
        row['more_seeds'] = 0 if decided else max(0, seeds_needed(row['difference'], spread, alpha/m, power) - n)
    return rows


def compare(a: Sequence[float], b: Sequence[float], alpha: float = 0.05, m: int = 1) -> dict[str, Any]:
    """`a` against `b`, figures at the same seeds, of which lower is better: the mean difference, the standard deviation
    of differences, a 95 % interval, and a p-value for one test of `m`. The test counts sign flips of the differences
    (Fisher 1935), which assumes only that equal rules differ as often in one direction as in the other; where so few
    seeds hardly reach `alpha`/`m`, it is Student's, if all differences are not the same. Figures that differ by less
    than a hundred-thousandth are equal: rules that are may round differently, always in the same direction."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    d = np.where(abs(a - b) <= ROUNDING*np.maximum(abs(a), abs(b)), 0., a - b)
    if len(d) < 2: raise ValueError(f"a comparison needs 2 or more seeds, got {len(d)}")
    spread = float(d.std(ddof=1))
    exact = ENOUGH*_least_p(len(d)) <= alpha/m or spread <= 1e-12*abs(d).max()
    p = _sign_flip(d) if exact else _student(d)
    return dict(difference=float(d.mean()), spread=spread, interval=_interval(d), p_alone=p, seeds=len(d),
                test='sign flips' if exact else 'Student')


def _least_p(n: int) -> float:
    "The smallest p-value that sign flips of `n` differences can give."
    return 2/2**n if n <= FLIPS else 1/(1 + SAMPLED)


def _sign_flip(d: np.ndarray) -> float:
    "The share of sign flips whose mean is at least as far from 0."
    if len(d) <= FLIPS:
        signs = np.array(list(product((1, -1), repeat=len(d))))
        return float((abs(signs @ d) >= abs(d.sum())*(1 - 1e-9)).mean())
    signs = np.random.default_rng(0).choice((1, -1), (SAMPLED, len(d)))
    return float((1 + (abs(signs @ d) >= abs(d.sum())*(1 - 1e-9)).sum())/(1 + len(signs)))


def _student(d: np.ndarray) -> float:
    from scipy.stats import ttest_1samp
    return float(ttest_1samp(d, 0.).pvalue)


def _interval(d: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    "Of the mean: by bias-corrected bootstrap (Efron 1987), Student's for few seeds."
    from scipy.stats import bootstrap, t
    if np.ptp(d) <= 1e-12*abs(d).max(): return float(d.mean()), float(d.mean())
    if len(d) < FEW:
        half = t.ppf((1 + level)/2, len(d) - 1)*d.std(ddof=1)/len(d)**.5
        return float(d.mean() - half), float(d.mean() + half)
    found = bootstrap((d,), np.mean, n_resamples=RESAMPLES, confidence_level=level, rng=0).confidence_interval
    return float(found.low), float(found.high)


def holm(ps: Sequence[float]) -> list[float]:
    "p-values corrected for their number (Holm 1979), in the same order."
    order, out, most = np.argsort(ps, kind='stable'), [0.]*len(ps), 0.
    for i, k in enumerate(order):
        most = max(most, min(1., (len(ps) - i)*ps[k]))
        out[k] = float(most)
    return out


def detectable(spread: float, n: int, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference that `n` seeds detect with probability `power` by Student's test, if differences vary by
    `spread`: from the noncentral t distribution (Cohen 1988, ch. 2)."""
    from scipy.special import nctdtrinc, stdtrit
    return float(nctdtrinc(n - 1, 1 - power, stdtrit(n - 1, 1 - alpha/2))*spread/n**.5)


def seeds_needed(difference: float, spread: float, alpha: float = 0.05, power: float = 0.8) -> int:
    "The seeds that detect a true difference of this size with probability `power`, at most `UNKNOWN`."
    low, high = 1, UNKNOWN
    while high - low > 1:
        middle = (low + high)//2
        low, high = (low, middle) if detectable(spread, middle, alpha, power) <= abs(difference) else (middle, high)
    return high


def ranks(cells: Mapping[Any, Mapping[str, Sequence[float]]]) -> dict[str, tuple[float, ...]]:
    """The mean rank of each rule over cells and seeds, 1 for the best, ties shared, with the ends of a 95 % interval
    over seeds, which are the same for all rules and lengths. It says nothing of other tasks."""
    from scipy.stats import rankdata
    names = list(next(iter(cells.values())))
    by_seed = np.mean([[rankdata([_rounded(x) for x in row])
                        for row in zip(*(figures[nm] for nm in names), strict=True)]
                       for figures in cells.values()], axis=0)
    return {nm: (float(xs.mean()), *np.clip(_interval(xs), 1, len(names)).tolist())
            for nm, xs in zip(names, by_seed.T, strict=True)}


def _rounded(x: float) -> float:
    "As far as figures of equal rules agree."
    return float(f'{x:.4e}')
