"A loader with something added around it, for one pass."
from collections.abc import Callable, Iterable, Iterator
from typing import Any

__all__ = ['WrappedLoader']


class WrappedLoader:
    """The batches of `dl`, then a call of `at_end()`. Its `first_batch` is that of `dl`: which batch of the pass comes
    first, 0 unless a resumed run has done some already."""
    def __init__(self, dl: Iterable, at_end: Callable[[], Any] | None = None) -> None:
        self.dl, self.at_end, self.first_batch = dl, at_end, getattr(dl, 'first_batch', 0)

    def __len__(self) -> int: return len(self.dl)
    def __iter__(self) -> Iterator: return iter(self.dl) if self.at_end is None else self._then()

    def _then(self) -> Iterator:
        yield from self.dl
        self.at_end()
