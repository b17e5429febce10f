"A stopwatch that divides the elapsed time among the parts of a program."
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from time import perf_counter
from typing import Any

__all__ = ['Stopwatch', 'REST']

REST = 'loop'


class Stopwatch:
    """Between `start` and `stop`, every moment belongs to exactly one part: the innermost running `timed` function, or
    `REST` if none is running. So the parts sum to the elapsed time. Seconds are added to the dict `totals`. Outside,
    timed functions run as usual."""
    __slots__ = ('inner', 'last', 'now', 'on', 'totals')
    # `last` is when REST was last charged, `inner` the time of timed functions since then that is not REST's.
    def __init__(self) -> None:
        self.now, self.last, self.inner, self.totals, self.on = perf_counter, 0., 0., None, False

    def start(self, totals: defaultdict[str, float], now: Callable[[], float] = perf_counter) -> None:
        "Start to add time to `totals`; `now` is the clock."
        self.now, self.totals, self.inner, self.on, self.last = now, totals, 0., True, now()

    def stop(self) -> None:
        "Stop timing."
        self._charge_rest()
        self.on = False

    def turn_to(self, totals: defaultdict[str, float], in_parts: bool = True) -> None:
        """From now on, add time to `totals`. With `in_parts=False` all of it goes to `REST`, at almost no cost. Do not
        call this from inside a timed function."""
        if totals is self.totals: return
        self._charge_rest()
        self.totals, self.on = totals, in_parts

    def _charge_rest(self) -> None:
        now = self.now()
        self.totals[REST] += now - self.last - self.inner
        self.last, self.inner = now, 0.

    @contextmanager
    def paused(self) -> Iterator[None]:
        "Within this context timed functions are not timed, so their time belongs to the surrounding part."
        on, self.on = self.on, False
        try: yield
        finally: self.on = on

    def timed(self, f: Callable, part: str) -> Callable:
        "`f`, which takes positional arguments only, with its time added to `part`."
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

    def __repr__(self) -> str:
        parts = ', '.join(f'{part} {seconds:.3f} s' for part, seconds in (self.totals or {}).items())
        return f'<Stopwatch {"running" if self.on else "stopped"}: {parts or "nothing timed"}>'
