"The indices that a DataLoader loads, replaced for one pass, such as by a process's part of each batch."
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from miniai.data.memory import own_part
from miniai.distributed.ranks import from_first, is_first, part_of
from miniai.randomness import host_states, set_host_states

__all__ = ['is_indexed', 'iterating_over', 'OwnIndices', 'as_first', 'samplers_of', 'tell_epoch']

_TORCH_ITER = DataLoader.__iter__


def is_indexed(dl: Any) -> bool:
    "Does `dl` load each batch by a list of indices? A subclass with its own __iter__ may do anything."
    return (isinstance(dl, DataLoader) and type(dl).__iter__ is _TORCH_ITER and dl.batch_sampler is not None
            and not isinstance(dl.dataset, IterableDataset))


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


class OwnIndices:
    """A batch sampler: this process's part of each batch of `sampler`, in the same order in all processes. `empty` are
    the numbers of the batches that have fewer samples than there are processes, and none for this one."""
    def __init__(self, sampler: Any) -> None:
        inner = getattr(sampler, 'sampler', None)
        # Torch's samplers draw from the global generators only when they begin: one message per pass.
        self.once = type(sampler) is BatchSampler and type(inner).__module__.startswith('torch.utils.data')
        self.sampler, self.drawn, self.empty = sampler, 0, set()

    def __len__(self) -> int: return len(self.sampler)

    def __iter__(self) -> Iterator:
        self.batches, self.drawn = iter(self.sampler) if self.once else as_first(iter, self.sampler), 0
        return self

    def __next__(self) -> Any:
        batch = next(self.batches) if self.once and self.drawn else as_first(next, self.batches)
        if not part_of(len(batch)): self.empty.add(self.drawn)
        self.drawn += 1
        return own_part(batch)


def as_first(f: Callable, *args: Any) -> Any:
    "What `f(*args)` returns if it draws random numbers from the states that the first process has; own ones stay."
    own = host_states()
    states = from_first(own)
    if is_first(): return f(*args)
    set_host_states(states)
    try: return f(*args)
    finally: set_host_states(own)


def samplers_of(dl: Any) -> list:
    "The sampler and batch sampler of a loader, and the sampler inside the latter, as far as it has them."
    sampler, batches = (getattr(dl, nm, None) for nm in ('sampler', 'batch_sampler'))
    found = sampler, batches, getattr(batches, 'sampler', None)
    return list({id(s): s for s in found if s is not None}.values())


def tell_epoch(dl: Any, epoch: int) -> None:
    "Call `set_epoch(epoch)` of samplers that have it, as torch's DistributedSampler, which has one order otherwise."
    for sampler in samplers_of(dl):
        if hasattr(sampler, 'set_epoch'): sampler.set_epoch(epoch)
