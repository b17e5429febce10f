"How far a stage of a race is, in words, with the time that is left."
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from miniai.racing.plan import words_of

__all__ = ['PAUSE', 'Progress']

TIMES = 10  # messages for a stage, at most
PAUSE = 2   # seconds between messages, at least


class Progress:
    """Tells how many of the runs of a stage are done: `expected` has the expected seconds of each, by its name. What is
    done at the first call was done earlier; how quickly the rest gets done, by whatever processes, gives the time left.
    A stage of less than two seconds is told at its end alone."""
    def __init__(self, stage: str, expected: Mapping[str, float], tell: Callable[[str], Any]) -> None:
        self.stage, self.expected, self.tell, self.began, self.part = stage, expected, tell, None, -1

    def __call__(self, done: Collection[str]) -> None:
        now, n, total = time.monotonic(), len(done), len(self.expected)
        if self.began is None:
            self.began, self.before = now, frozenset(done)
            self.said = now - PAUSE*(self._left(done) > PAUSE)
        part = n*TIMES//total
        if n < total and (part == self.part or now - self.said < PAUSE): return
        self.part, self.said, left = part, now, self._left(done)
        fresh = sum(self.expected[nm] for nm in done if nm not in self.before)
        if fresh: left *= (now - self.began)/fresh
        self.tell(f'{self.stage}: {n} of {total} runs' + (f', about {words_of(left)} left' if n < total else ''))

    def _left(self, done: Collection[str]) -> float: return sum(s for nm, s in self.expected.items() if nm not in done)
