"A stopwatch for parts of a whole: where the time goes. Knows functions to time, not what they do."
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any

__all__ = ['Stopwatch', 'REST']

REST = 'loop'


class Stopwatch:
    """From `start` to `stop` every moment belongs to one part: that of the innermost `timed` function that runs, or
    `REST` where none does. So the parts sum to the time that went by. They are added, in seconds, to `totals`, a dict
    that `turn_to` may change for another. Before and after, timed functions run as they are."""
    __slots__ = ('inner', 'last', 'now', 'on', 'totals')
    def __init__(self) -> None:
        self.now, self.last, self.inner, self.totals, self.on = perf_counter, 0., 0., None, False

    def start(self, totals: defaultdict[str, float], now: Callable[[], float] = perf_counter) -> None:
        "Time goes to `totals` from here on, as `now` tells it."
        self.now, self.totals, self.inner, self.on, self.last = now, totals, 0., True, now()

    def stop(self) -> None:
        "The whole ends here."
        self._charge()
        self.on = False

    def turn_to(self, totals: defaultdict[str, float], in_parts: bool = True) -> None:
        """Time goes to `totals` from here on; without `in_parts` all of it to `REST`, which costs next to nothing.
        Not to be called by a timed function."""
        if totals is self.totals: return
        self._charge()
        self.totals, self.on = totals, in_parts

    def _charge(self) -> None:
        now = self.now()
        self.totals[REST] += now - self.last - self.inner
        self.last, self.inner = now, 0.

    @contextmanager
    def paused(self) -> Iterator[None]:
        "Within it timed functions run as they are: their time is that of the part around them."
        on, self.on = self.on, False
        try: yield
        finally: self.on = on

    def timed(self, f: Callable, part: str) -> Callable:
        "`f`, of positional arguments alone, its time put down to `part`."
        @wraps(f, updated=())
        def timed_f(*args: Any) -> Any:
            if not self.on: return f(*args)
            around, self.inner, started = self.inner, 0., self.now()
            try: return f(*args)
            finally:
                took = self.now() - started
                self.totals[part] += took - self.inner
                self.inner = around + took
        return timed_f
