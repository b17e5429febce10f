"Learning rates read off a finder's curve in several ways, how far they agree, and when to believe none."
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ['LRSuggestions', 'suggest_lr', 'suggestions']

FEWEST, FAR_APART, FALL, CLEAR_FALL, EARLY, BEGINS = 10, 100, 2, 2.3, 3, 0.1


class LRSuggestions(NamedTuple):
    """What a curve of losses over rising rates suggests. For a constant rate: `half`, where half of the fall is done;
    `steepest`, where the loss falls fastest; `valley`, two thirds of the way down the longest fall; `tenth`, a tenth of
    the rate with the lowest loss. `peak` is the highest rate of a schedule that reaches it only briefly. All are None
    if the loss never fell clearly. `spread` is how far those for a constant rate are apart, the largest over the
    smallest. `doubt` says why to believe none of them, and is '' if nothing speaks against them. `lrs` and `losses` are
    the curve as it was recorded. str() shows the suggestions as lines of text."""
    half: float | None
    steepest: float | None
    valley: float | None
    tenth: float | None
    peak: float | None
    spread: float | None
    doubt: str
    lrs: list[float]
    losses: list[float]

    def __str__(self) -> str:
        if self.half is None: return f'No suggestion: {self.doubt}'
        names = dict(half='half of the fall', steepest='steepest fall', valley='valley', tenth='minimum / 10',
                     peak='peak of a schedule')
        lines = [f'{name:<18}  {getattr(self, nm):.2g}' for nm, name in names.items()]
        lines.append(f'Those for a constant rate agree within a factor of {self.spread:.1f}.')
        return '\n'.join([*lines, *([f'Do not rely on them: {self.doubt}.'] if self.doubt else [])])


def suggestions(lrs: Sequence[float], losses: Sequence[float]) -> LRSuggestions:
    "All suggestions of a curve."
    curve, lrs, losses = _curve(lrs, losses), list(map(float, lrs)), list(map(float, losses))
    if curve is None: return LRSuggestions(*[None]*6, _why_none(losses), lrs, losses)
    x, smooth, _, end, _ = curve
    begins = int((x >= _done(curve, BEGINS)).argmax())  # before, noise may be steeper
    steepest = begins + int(np.gradient(smooth[:end], x[:end])[begins:].argmin())
    valley = begins + _within_the_longest_fall(smooth[begins:])
    places = (_done(curve, 0.5), x[steepest], x[valley], x[end - 1] - np.log(10))
    rates = [float(np.exp(p)) for p in places]
    spread = max(rates)/min(rates)
    return LRSuggestions(*rates, float(np.exp(_done(curve, 0.95))), spread, _doubt(curve, spread, losses), lrs, losses)


def suggest_lr(lrs: Sequence[float], losses: Sequence[float], part: float = 0.5) -> float | None:
    """The learning rate at which the smoothed loss has fallen by `part` of the way to its minimum. Half suits constant
    rates. A `part` near 1 gives the highest rate that still helps, which Smith (2015) uses as the peak of a cycle. None
    if the loss does not fall by more than its noise."""
    curve = _curve(lrs, losses)
    return None if curve is None else float(np.exp(_done(curve, part)))


def _curve(lrs: Sequence[float], losses: Sequence[float]) -> tuple | None:
    """Logarithms of the rates, smoothed losses, the level they fall from, how many there are up to the lowest, and
    their noise. None without a fall. The level is the median of the first quarter, as single losses are up to chance,
    or the first loss if it falls at once."""
    ok = np.isfinite(losses)
    x, raw = np.log(np.asarray(lrs)[ok]), np.asarray(losses)[ok]
    if len(raw) < 5: return None
    smooth = np.convolve(np.pad(raw, 2, mode='edge'), np.ones(5)/5, mode='valid')
    end = int(smooth.argmin()) + 1
    start = smooth[0] if _falls_at_once(smooth, end) else np.median(raw[:min(max(end//4, 5), end)])
    noise = np.std((raw - smooth)[:end])
    if end < 3 or start - smooth[end - 1] <= FALL*noise: return None
    return x, smooth, start, end, noise


def _falls_at_once(smooth: np.ndarray, end: int) -> bool: return smooth[EARLY] < (smooth[0] + smooth[end - 1])/2


def _done(curve: tuple, part: float) -> float:
    "The logarithm of the rate from which on, up to the lowest loss, at least `part` of the fall is done."
    x, smooth, start, end, _ = curve
    fall = start - smooth[:end]
    before = np.flatnonzero(fall < part*fall[-1])
    return x[before[-1] + 1 if len(before) else 0]


def _within_the_longest_fall(losses: np.ndarray) -> int:
    "Two thirds of the way down the longest subsequence of falling losses, which may leave out some in between."
    length, before = np.ones(len(losses), int), np.arange(len(losses))
    for i in range(1, len(losses)):
        higher = np.flatnonzero(losses[:i] > losses[i])
        if len(higher): before[i] = higher[length[higher].argmax()]
        if len(higher): length[i] = length[before[i]] + 1
    start = end = int(length.argmax())
    while before[start] != start: start = before[start]
    return start + 2*(end - start)//3


def _why_none(losses: Sequence[float]) -> str:
    finite = int(np.isfinite(losses).sum())
    why = f'only {finite} finite losses were recorded' if finite < 5 else 'is the model already trained?'
    return f'the loss never fell clearly; {why}'


def _doubt(curve: tuple, spread: float, losses: Sequence[float]) -> str:
    "The first reason not to believe a curve, as a sentence; '' if there is none."
    x, smooth, start, end, noise = curve
    fall = start - smooth[end - 1]
    if len(x) < FEWEST: return f'only {len(x)} losses were recorded; use a smaller gamma or a lower start rate'
    if fall < CLEAR_FALL*noise: return (
        f'the loss fell by {fall:.3g}, only {fall/noise:.1f} times its noise; use larger batches or a smaller gamma')
    if _falls_at_once(smooth, end): return 'the loss fell from the first rates on; start at a lower rate'
    if end >= len(x) - 1 and len(x) == len(losses): return (
        'the loss still fell at the last rate; allow more epochs, so that the search ends where it rises')
    if spread > FAR_APART: return f'the suggestions differ by a factor of {spread:.0f}; look at the curve'
    return ''
