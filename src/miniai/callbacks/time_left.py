"How long a fit will still take, estimated from the passes so far."
import time
from typing import Any

from miniai.data.loaders import length_of

__all__ = ['TimeLeft']


class TimeLeft:
    """Estimates the seconds that are left of a fit. A kind of pass that has not run yet is assumed to need as long for
    each batch as the current one. The first batches of a pass, in which things are compiled, count only once."""
    def __init__(self) -> None: self._took = {}

    def begin_pass(self, training: bool, first: int, total: int | None) -> None:
        "A pass of `total` batches, None if unknown, begins at batch `first`."
        self._training, self._first, self._total, self._started = training, first, total, time.perf_counter()
        self._warm = None

    def end_pass(self) -> None:
        "The pass is over: passes of its kind take as long."
        if self._total is None or self._total == self._first: return
        whole = self._total/(self._total - self._first)  # a pass that was resumed is not a whole one
        self._took[self._training] = (time.perf_counter() - self._started)*whole

    def seconds(self, learn: Any, done: int) -> tuple[float, float] | None:
        "The seconds left of the pass and of the fit, after `done` batches of the pass; None if that is unknown."
        if self._total is None or done <= self._first: return None
        now = time.perf_counter()
        if self._warm is None: self._warm = done, now
        since, at = self._warm if self._warm[0] < done else (self._first, self._started)
        each, epochs = (now - at)/(done - since), learn.n_epochs - learn.epoch - 1
        left = of_pass = (self._total - done)*each
        for training, n in ((True, epochs*learn.trains), (False, (epochs + self._training)*learn.validates)):
            if n: left += n*self._pass(learn, training, each)
        return of_pass, left

    def _pass(self, learn: Any, training: bool, each: float) -> float:
        "How long a pass takes, if a batch takes `each`."
        if training == self._training: return self._total*each
        if training in self._took: return self._took[training]
        return (length_of(learn.dls.train if training else learn.dls.valid) or 0)*each
