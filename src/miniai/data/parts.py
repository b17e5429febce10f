"A process's part of each batch of a loader, when several processes train together."
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import chain, count, islice
from typing import Any

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader

from miniai.data.indices import OwnIndices, as_first, is_indexed, iterating_over, samplers_of
from miniai.data.memory import MemoryLoader, own_part
from miniai.data.stream import is_hf_stream, stream_part
from miniai.device import map_tensors, tensors_in
from miniai.distributed.ranks import gathered, part_of, world
from miniai.metrics.batch import batch_size

__all__ = ['in_parts', 'is_divided', 'innermost', 'known_batch_size']

_END = object()


def in_parts(dl: Iterable, first_batch: int = 0) -> Iterator[tuple[Any, bool]]:
    """This process's part of each batch of `dl`, of which the first is number `first_batch`, and whether it counts: a
    part that would be empty repeats a sample of the batch instead. Loads only its own part, if `dl` is a MemoryLoader,
    a DataLoader that loads by index, or one of a Hugging Face stream; of other loaders each process loads all."""
    inner = innermost(dl)
    if is_divided(inner): return ((batch, True) for batch in dl)
    if isinstance(inner, MemoryLoader):
        sizes = (min(inner.bs, inner.n - i*inner.bs) for i in count(first_batch))
        return zip(_begun(dl, inner.in_parts()), (bool(part_of(n)) for n in sizes), strict=False)
    if is_indexed(inner):
        own = OwnIndices(inner.batch_sampler)
        batches = _begun(dl, iterating_over(inner, own))
        return ((batch, i not in own.empty) for i, batch in enumerate(batches, first_batch))
    if is_hf_stream(inner): return ((batch, True) for batch in _begun(dl, stream_part(inner)))
    return _parts_of_whole_batches(dl, inner)


def _begun(dl: Iterable, within: AbstractContextManager) -> Iterator:
    "A pass over `dl` that has begun `within` a block. A loader around another may begin only with its first batch."
    with within:
        batches = iter(dl)
        first = list(islice(batches, 1))
    return chain(first, batches)


def innermost(dl: Any) -> Any:
    "The loader inside those that wrap it."
    while hasattr(dl, 'dl'): dl = dl.dl
    return dl


def is_divided(dl: Any) -> bool:
    """Does `dl` give each process data of its own already? So do Accelerate's loaders, and those whose sampler or
    dataset says for how many processes, as torch's DistributedSampler does by `num_replicas`."""
    if type(dl).__module__.startswith('accelerate.'): return True
    names = 'num_replicas', 'num_processes', 'world_size', '_distributed'  # the last one of streams of Hugging Face
    return any(getattr(x, nm, None) is not None for x in (*samplers_of(dl), getattr(dl, 'dataset', None))
               for nm in names)


def known_batch_size(dl: Any) -> int | None:
    "The batch size of a loader that has one, and that is divided over the processes."
    bs = getattr(dl, 'bs' if isinstance(dl, MemoryLoader) else 'batch_size', None)
    return bs if isinstance(bs, int) and not is_divided(dl) else None


def _parts_of_whole_batches(dl: Iterable, inner: Any) -> Iterator[tuple[Any, bool]]:
    "Every process loads each batch whole, with the random numbers that the first one draws, and takes its part."
    begins_only = isinstance(inner, list | tuple) or (isinstance(inner, DataLoader) and inner.num_workers)
    batches = as_first(iter, dl)
    for i in count():
        batch = next(batches, _END) if begins_only and i else as_first(next, batches, _END)
        if i == 0: _check_same(batch, inner)
        if batch is _END: return
        n = batch_size(batch)
        yield _part_of_batch(batch, n), bool(part_of(n))


def _check_same(batch: Any, dl: Any) -> None:
    "ValueError unless all processes have the same first batch."
    sums = gathered(None if batch is _END else [_checksum(t) for t in tensors_in(batch)])
    if any(x != sums[0] for x in sums): raise ValueError(
        f"the first batch of a {type(dl).__name__} is not the same in the {world()} processes, so it cannot be divided "
        f"over them. If it gives each process data of its own, say so by an attribute world_size of its dataset or "
        f"sampler. Otherwise seed what it draws, or use a DataLoader of a dataset with indices")


def _checksum(t: torch.Tensor) -> int:
    return zlib.crc32(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _part_of_batch(batch: Any, n: int) -> Any:
    if hasattr(batch, 'num_graphs') or any(isinstance(x, PackedSequence) for x in (batch, *_items(batch))):
        raise TypeError("a batch of graphs or packed sequences cannot be divided over processes: use a DataLoader of a "
                        "dataset with indices")
    return map_tensors(lambda t: own_part(t) if t.ndim and len(t) == n else t, batch)


def _items(batch: Any) -> Iterable: return batch if isinstance(batch, tuple | list) else ()
