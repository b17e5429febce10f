"A loader of a stream: a dataset without length or index, whose order changes with the epoch only if it is told."
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.data import BatchSampler, DataLoader

from miniai.data.indices import iterating_over
from miniai.distributed.ranks import gathered, part

__all__ = ['StreamLoader', 'is_hf_stream', 'stream_part']

_parts = WeakKeyDictionary()  # persistent workers keep the first that they get


class StreamLoader(DataLoader):
    """A DataLoader of an IterableDataset, in the stream's order. Each pass begins with `dataset.set_epoch(epoch)`, if
    there is such a method, so that a stream of Hugging Face that was shuffled has another order each time. `epoch` is
    the next epoch: each pass adds one, and it may be set."""
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.epoch = 0  # not in the class: checkpoints hold an object's own attributes, also before the first pass

    def __iter__(self) -> Any:
        if hasattr(self.dataset, 'set_epoch'): self.dataset.set_epoch(self.epoch)
        self.epoch += 1
        return super().__iter__()

    def snapshot(self) -> Callable[[], None]:
        "A function that puts `epoch` back as it is now, such as after a dry run."
        epoch = self.epoch
        def restore() -> None: self.epoch = epoch
        return restore


def is_hf_stream(dl: Any) -> bool:
    "Is `dl` a DataLoader of a stream of Hugging Face that makes batches itself?"
    hf = sys.modules.get('datasets')
    return (hf is not None and isinstance(dl, DataLoader) and dl.batch_sampler is not None
            and isinstance(dl.dataset, hf.IterableDataset))


@contextmanager
def stream_part(dl: DataLoader) -> Iterator[None]:
    """Within it, a pass over `dl` that begins reads this process's part of the stream, in batches that are smaller by
    the number of processes: its shards, if their number can be divided by that of the processes, else one sample of as
    many as there are processes. ValueError if the batch size cannot be divided, or if the stream is shuffled without a
    seed."""
    own, parts = dl.dataset, part()[1]
    if dl.batch_size % parts: raise ValueError(
        f"batches of a stream must be of equal parts: the batch size, {dl.batch_size}, is divided over {parts} "
        f"processes; use a multiple of {parts}")
    if own not in _parts: _parts[own] = _split(own)
    vars(dl)['dataset'] = _parts[own]  # DataLoader refuses to have it set
    try:
        with iterating_over(dl, BatchSampler(dl.sampler, dl.batch_size//parts, dl.drop_last)): yield
    finally: vars(dl)['dataset'] = own


def _split(stream: Any) -> Any:
    from datasets.distributed import split_dataset_by_node
    seeds = gathered(_generators(stream._ex_iterable))
    if any(x != seeds[0] for x in seeds): raise ValueError(
        "the stream is shuffled without a seed, so each process would have another order: use shuffle(seed=…)")
    return split_dataset_by_node(stream, *part())


def _generators(examples: Any) -> list:
    "The states of the generators that shuffle a stream."
    found = []
    while examples is not None:
        if hasattr(examples, 'generator'): found.append(repr(examples.generator.bit_generator.state))
        examples = getattr(examples, 'ex_iterable', None)
    return found
