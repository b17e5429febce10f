"A loader with something added around it, for one pass."
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from miniai.data.loaders import length_of

__all__ = ['WrappedLoader', 'MappedLoader', 'first_batch_of']


def first_batch_of(dl: Any) -> int:
    "Which batch of the pass `dl` begins with: 0 unless a resumed run has already done part of it."
    first = getattr(dl, 'first_batch', 0)
    return first if isinstance(first, int) else 0  # a user's loader may use this name for something else


class WrappedLoader:
    "The batches of `dl`, then a call of `at_end()`."
    def __init__(self, dl: Iterable, at_end: Callable[[], Any] | None = None) -> None:
        self.dl, self.at_end, self.first_batch = dl, at_end, first_batch_of(dl)

    def __len__(self) -> int: return len(self.dl)
    def __iter__(self) -> Iterator: return iter(self.dl) if self.at_end is None else self._then()
    def reaches_end(self) -> bool:
        "Does the fit take the last batch of `dl`, as far as lengths tell?"
        return length_of(self) == length_of(self.dl)

    def _then(self) -> Iterator:
        yield from self.dl
        self.at_end()


class MappedLoader(WrappedLoader):
    "The batches of `dl`, each changed by `f`."
    def __init__(self, dl: Iterable, f: Callable[[Any], Any]) -> None:
        super().__init__(dl)
        self.f = f

    def __iter__(self) -> Iterator: return map(self.f, self.dl)
