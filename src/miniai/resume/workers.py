"Workers of a DataLoader: whether it matters which one loads a sample, and starting and stopping persistent ones."
from typing import Any

from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate

from miniai.data.indices import iterating_over
from miniai.data.loaders import Dataset
from miniai.data.seeded import SeededSamples

__all__ = ['is_fixed', 'has_running_workers', 'set_workers']

_FIXED = SeededSamples, TensorDataset, Dataset


def is_fixed(dl: DataLoader) -> bool:
    "Is a batch of `dl` the same whatever its worker did before? True only for datasets that are known."
    def fixed(ds: Any) -> bool:
        if isinstance(ds, Subset): return fixed(ds.dataset)
        if isinstance(ds, ConcatDataset): return all(map(fixed, ds.datasets))
        return type(ds) in _FIXED
    return fixed(dl.dataset) and dl.collate_fn is default_collate


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
        with iterating_over(dl, ()): DataLoader.__iter__(dl)
