"Fits over a few batches: the first ones of a loader, or its first one again and again, and loaders that allow it."
import math
from collections.abc import Iterable, Iterator
from itertools import islice, repeat
from time import perf_counter
from typing import Any

from miniai.callbacks.wrapped import WrappedLoader
from miniai.device import map_tensors
from miniai.events import Callback

__all__ = ['check_repeatable']


def check_repeatable(learn: Any, what: str) -> None:
    "ValueError if a loader can be used only once, because `what` would take batches that the next fit then lacks."
    for name in ('train', 'valid'):
        dl = getattr(learn.dls, name, None)
        if isinstance(dl, Iterator): raise ValueError(
            f"learn.{what}() cannot put back the batches that it takes from dls.{name}, a {type(dl).__name__}, which "
            f"can be used only once: pass a list, or an object whose __iter__ begins again")


class FewBatchesCB(Callback):
    """Ends each training pass after `train` batches and each validation pass after `valid`; loaders keep their length,
    for which schedules are made. Or with `again` gives the first batch that often. `waits` has the seconds that the
    loader took for each batch, by phase, and `given` when it gave the last one."""
    order, only_shows = -math.inf, True
    def __init__(self, train: int, valid: int = 0, again: bool = False) -> None:
        self.train, self.valid, self.again = train, valid, again
        if again: self.order = -1.5e9  # after PartCB, which counts the samples of a pass
        self.waits, self.given = dict(train=[], valid=[]), 0.

    def before_epoch(self, learn: Any) -> None:
        training = learn.model.training
        waits = self.waits['train' if training else 'valid']
        learn.dl = _FewBatches(learn.dl, self, self.train if training else self.valid, waits)


class _FewBatches(WrappedLoader):
    def __init__(self, dl: Iterable, few: FewBatchesCB, n: int, waits: list[float]) -> None:
        super().__init__(dl)
        self.few, self.n, self.waits = few, n, waits

    def __len__(self) -> int: return self.n if self.few.again else len(self.dl)

    def __iter__(self) -> Iterator:
        if self.few.again: return map(_copied, repeat(next(iter(self.dl)), self.n))
        return islice(self._timed(), self.n)

    def _timed(self) -> Iterator:
        started, batches = perf_counter(), iter(self.dl)
        for batch in batches:
            self.few.given = perf_counter()
            self.waits.append(self.few.given - started)
            yield batch
            started = perf_counter()


def _copied(batch: Any) -> Any: return map_tensors(lambda t: t.clone(), batch)  # callbacks may change it in place
