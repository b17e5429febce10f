"""A pass over a loader from any batch on: by index, without loading what came before, with the random numbers that the
whole pass would have drawn. Knows loaders and random states, no training."""
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from miniai.randomness import random_states, same_states, set_random_states

__all__ = ['FromBatch', 'SeededSamples', 'describe_loader', 'length_of', 'loader_state', 'set_loader_state',
           'why_not_exact']


def loader_state(dl: Any) -> dict[str, Any]:
    "What a loader's next pass depends on beside the global random states: its epoch, its own generators."
    return dict(epoch=getattr(dl, 'epoch', None), generators=[g.get_state() for g in _generators(dl)])


def set_loader_state(dl: Any, state: dict[str, Any]) -> None:
    "Put back what `loader_state` gave."
    if state['epoch'] is not None: dl.epoch = state['epoch']
    for g, s in zip(_generators(dl), state['generators'], strict=True): g.set_state(s)


def _generators(dl: Any) -> list[torch.Generator]:
    held = [getattr(dl, 'generator', None), getattr(getattr(dl, 'sampler', None), 'generator', None)]
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())


class FromBatch:
    """The rest of a pass over `dl`, from batch `start` on. `begun` and `now` are pairs of `random_states()` and
    `loader_state(dl)`: when the pass began, and after batch `start - 1`. Its length is the whole pass's."""
    def __init__(self, dl: Any, start: int, begun: tuple[dict, dict], now: tuple[dict, dict]) -> None:
        self.dl, self.start, self.begun, self.now = dl, start, begun, now

    def __len__(self) -> int: return len(self.dl)

    def __iter__(self) -> Iterator:
        self._set(self.begun)
        if hasattr(self.dl, 'batches'): return self._by_epoch()
        return self._by_index() if isinstance(self.dl, DataLoader) else self._by_loading()

    def _set(self, states: tuple[dict, dict]) -> None:
        set_random_states(states[0])
        set_loader_state(self.dl, states[1])

    def _by_epoch(self) -> Iterator:
        rest = self.dl.batches(self.begun[1]['epoch'], self.start)
        self._set(self.now)
        return rest

    def _by_index(self) -> Iterator:
        whole, kept = self.dl.batch_sampler, {k: getattr(self.dl, k) for k in _KEPT}
        if whole is None: return self._by_loading()
        return iter(DataLoader(self.dl.dataset, batch_sampler=_Rest(whole, self.start, lambda: self._set(self.now)),
                               **kept))

    def _by_loading(self) -> Iterator:
        batches = iter(self.dl)
        for _ in range(self.start): next(batches)
        self._set(self.now)
        return batches


_KEPT = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'multiprocessing_context', 'generator',
         'prefetch_factor', 'pin_memory_device')


class _Rest:
    "A batch sampler without its first batches of indices; `drawn` is called when these have been drawn."
    def __init__(self, sampler: Any, start: int, drawn: Callable[[], None]) -> None:
        self.sampler, self.start, self.drawn = sampler, start, drawn

    def __len__(self) -> int: return max(len(self.sampler) - self.start, 0)

    def __iter__(self) -> Iterator:
        rest = iter(self.sampler)
        for _ in range(self.start): next(rest)
        following = next(rest, None)
        self.drawn()
        if following is None: return
        yield following
        yield from rest


class SeededSamples:
    """A dataset whose random transforms draw, in workers, the same for the same sample of the same pass, whichever
    worker takes it and whatever it did before: torch's, numpy's and Python's generators are seeded for each sample by
    the pass's own seed and the sample's index, and put back. Without workers the dataset draws as it is."""
    def __init__(self, dataset: Any) -> None: self.dataset = dataset
    def __len__(self) -> int: return len(self.dataset)

    def __getitem__(self, i: int) -> Any:
        worker = get_worker_info()
        if worker is None: return self.dataset[i]
        before = random_states()
        try:
            _seed_all((worker.seed - worker.id)*1_000_003 + int(i))
            return self.dataset[i]
        finally: set_random_states(before)


def _seed_all(seed: int) -> None:
    torch.random.default_generator.manual_seed(seed % 2**63)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def why_not_exact(dl: Any) -> str:
    """Why a pass over `dl` cannot be taken up exactly in its middle; '' where it can. A sample is drawn to see whether
    the dataset of workers draws random numbers."""
    if hasattr(dl, 'batches') or not isinstance(dl, DataLoader): return ''
    if dl.batch_sampler is None: return "its dataset makes batches of its own"
    if isinstance(dl.dataset, IterableDataset): return "its dataset is a stream"
    if not dl.num_workers or isinstance(dl.dataset, SeededSamples) or not len(dl.dataset): return ''
    return _drawing_workers(dl) if _draws(dl.dataset) else ''


def _drawing_workers(dl: DataLoader) -> str:
    return (f"its dataset draws random numbers in {dl.num_workers} worker(s), whose states nobody knows: wrap it in "
            f"miniai.data.SeededSamples(dataset)")


def _draws(dataset: Any) -> bool:
    before = random_states()
    try:
        dataset[0]
        after = random_states()
    finally: set_random_states(before)
    return not same_states(before, after)


def describe_loader(dl: Any) -> dict[str, Any]:
    "What of a loader must be the same for a run to go on: plain values."
    sampler = getattr(dl, 'sampler', None)
    samples = getattr(dl, 'n', None) if hasattr(dl, 'batches') else length_of(getattr(dl, 'dataset', None))
    found = dict(batches=length_of(dl), samples=samples, batch_size=getattr(dl, 'batch_size', getattr(dl, 'bs', None)),
                 seed=getattr(dl, 'seed', None), drop_last=getattr(dl, 'drop_last', None),
                 order=type(sampler).__name__ if sampler is not None else getattr(dl, 'shuffle', None))
    return {k: x if isinstance(x, int | str | None) else None for k, x in found.items()}


def length_of(x: Any) -> int | None:
    "How many items, such as batches, `x` gives; None where it does not know."
    try: return len(x)
    except TypeError: return None
