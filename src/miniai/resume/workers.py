"Workers of a DataLoader: whether it matters which one loads a sample, and starting and stopping persistent ones."
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from miniai.data.loaders import Dataset
from miniai.data.seeded import SeededSamples

__all__ = ['is_fixed', 'is_indexed', 'has_running_workers', 'set_workers', 'iterating_over']

_TORCH_ITER = DataLoader.__iter__
_FIXED = SeededSamples, TensorDataset, Dataset


def is_fixed(dl: DataLoader) -> bool:
    "Is a batch of `dl` the same whatever its worker did before? True only for datasets that are known."
    def fixed(ds: Any) -> bool:
        if isinstance(ds, Subset): return fixed(ds.dataset)
        if isinstance(ds, ConcatDataset): return all(map(fixed, ds.datasets))
        return type(ds) in _FIXED
    return fixed(dl.dataset) and dl.collate_fn is default_collate


def is_indexed(dl: Any) -> bool:
    "Does `dl` load each batch by a list of indices? A subclass with its own __iter__ may do anything."
    return (getattr(type(dl), '__iter__', None) is _TORCH_ITER and dl.batch_sampler is not None
            and not isinstance(dl.dataset, IterableDataset))


def has_running_workers(dl: Any) -> bool:
    "Are persistent workers of `dl` running? Starting them draws a random number."
    return isinstance(dl, DataLoader) and dl.persistent_workers and dl._iterator is not None


def set_workers(dl: Any, running: bool) -> None:
    "Start or stop the persistent workers of `dl`. Starting them draws a random number: restore random states after it."
    if not isinstance(dl, DataLoader) or not dl.persistent_workers: return
    iterator = dl._iterator
    if running and iterator is not None and all(w.is_alive() for w in iterator._workers): return
    if iterator is not None: iterator._shutdown_workers()  # now: an error's traceback may keep the iterator alive
    dl._iterator = None
    if running:
        with iterating_over(dl, ()): _TORCH_ITER(dl)


@contextmanager
def iterating_over(dl: DataLoader, indices: Any) -> Iterator[None]:
    "Within it, a pass over `dl` that begins goes over `indices`. DataLoader refuses to have its sampler set."
    name = 'sampler' if dl.batch_sampler is None else 'batch_sampler'
    own = vars(dl)[name]
    def set_indices(x: Any) -> None:
        vars(dl)[name] = x
        if dl._iterator is not None: dl._iterator._index_sampler = x  # persistent workers keep their first sampler
    set_indices(indices)
    try: yield
    finally: set_indices(own)
