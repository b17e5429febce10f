"A process's part of each batch of a loader, when several processes train together."
from collections.abc import Iterable, Iterator
from typing import Any

from miniai.data.loaders import last_batch_size
from miniai.data.memory import MemoryLoader, own_part
from miniai.device import map_tensors
from miniai.distributed.ranks import part
from miniai.metrics.batch import batch_size

__all__ = ['in_parts', 'last_part_is_empty']


def in_parts(dl: Iterable) -> Iterator:
    "This process's part of each batch of `dl`."
    if _inner(dl, MemoryLoader): return iter(dl)  # which gathers its own part only
    return map(_part_of_batch, dl)


def last_part_is_empty(dl: Any) -> bool:
    "Does the last batch have fewer samples than there are processes, and none for this one?"
    inner = dl
    while hasattr(inner, 'dl'): inner = inner.dl
    n = last_batch_size(inner)
    if n is None and hasattr(inner, '__getitem__') and len(inner): n = batch_size(inner[-1])
    return n is not None and n <= part()[0]


def _inner(dl: Any, kind: type) -> bool:
    while hasattr(dl, 'dl'): dl = dl.dl
    return isinstance(dl, kind)


def _part_of_batch(batch: Any) -> Any:
    n = batch_size(batch)
    return map_tensors(lambda t: own_part(t) if t.ndim and len(t) == n else t, batch)
