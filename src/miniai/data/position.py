"""A pass over a loader from any batch on: by index, without loading what came before, with the random numbers that the
whole pass would have drawn. Knows loaders and random states, no training."""
import random
from collections.abc import Callable, Iterator, Sequence
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
    _set_epoch(dl, state)
    for g, s in zip(_generators(dl), state['generators'], strict=True): g.set_state(s)


def _set_epoch(dl: Any, state: dict[str, Any]) -> None:
    if state['epoch'] is not None: dl.epoch = state['epoch']


def _generators(dl: Any) -> list[torch.Generator]:
    held = [getattr(x, 'generator', None) for x in (dl, getattr(dl, 'sampler', None), *_samplers(dl))]
    return list({id(g): g for g in held if isinstance(g, torch.Generator)}.values())


def _samplers(dl: Any) -> list:
    "What gives a loader its batches of indices, and what gives these their indices."
    batches = getattr(dl, 'batch_sampler', None)
    return [s for s in (batches, getattr(batches, 'sampler', None)) if s is not None]


def _goes_by_epoch(dl: Any) -> bool:
    return callable(getattr(dl, 'batches', None)) and isinstance(getattr(dl, 'epoch', None), int)


class FromBatch:
    """The rest of a pass over `dl`, from batch `start` on. `begun` and `now` are pairs of `random_states()` and
    `loader_state(dl)`: when the pass began, and after batch `start - 1`. Its length is the whole pass's, and all else
    that is asked of it is asked of `dl`."""
    def __init__(self, dl: Any, start: int, begun: tuple[dict, dict], now: tuple[dict, dict]) -> None:
        self.dl, self.start, self.begun, self.now = dl, start, begun, now

    def __len__(self) -> int: return len(self.dl)

    def __getattr__(self, name: str) -> Any:
        if name == 'dl': raise AttributeError(name)  # of a copy in the making, which has none yet
        return getattr(self.dl, name)

    def __iter__(self) -> Iterator:
        self._set(self.begun)
        if _goes_by_epoch(self.dl): return self._by_epoch()
        return self._by_index() if getattr(type(self.dl), '__iter__', None) is _PLAIN else self._by_loading()

    def _set(self, states: tuple[dict, dict]) -> None:
        set_random_states(states[0])
        set_loader_state(self.dl, states[1])

    def _go_on(self) -> None:
        """Put the global states as they were after the batch before. The loader's own generators stay where the replay
        has left them: as saved, they may have been drawn from for batches that workers were to make ahead."""
        set_random_states(self.now[0])
        _set_epoch(self.dl, self.now[1])

    def _by_epoch(self) -> Iterator:
        rest = self.dl.batches(self.begun[1]['epoch'], self.start)
        self._set(self.now)
        return rest

    def _by_index(self) -> Iterator:
        whole, kept = self.dl.batch_sampler, {k: getattr(self.dl, k) for k in _KEPT if hasattr(self.dl, k)}
        if whole is None: return self._by_loading()
        return iter(DataLoader(self.dl.dataset, batch_sampler=_Rest(whole, self.start, self._go_on), **kept))

    def _by_loading(self) -> Iterator:
        batches = iter(self.dl)
        for _ in range(self.start): next(batches)
        self._go_on()
        return batches


_PLAIN = DataLoader.__iter__  # a class with one of its own may make other batches of the same indices
_KEPT = ('num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'multiprocessing_context', 'generator',
         'prefetch_factor', 'pin_memory_device', 'in_order')


class _Rest:
    "A batch sampler without its first batches of indices; `drawn` is called when these have been drawn."
    def __init__(self, sampler: Any, start: int, drawn: Callable[[], None]) -> None:
        self.sampler, self.start, self.drawn = sampler, start, drawn

    def __len__(self) -> int: return max(len(self.sampler) - self.start, 0)

    def __iter__(self) -> Iterator:
        rest = iter(self.sampler)
        for _ in range(self.start): next(rest)
        self.drawn()
        yield from rest


class SeededSamples:
    """A dataset whose random transforms draw, in workers, the same for the same sample of the same pass, whichever
    worker takes it and whatever it did before: torch's, numpy's and Python's generators are seeded for each sample by
    the pass's own seed and the sample's index, and put back. Without workers the dataset draws as it is. With
    persistent_workers=True every pass has the same seed, and each sample its same draws: leave that at False."""
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
    if _goes_by_epoch(dl) or not isinstance(dl, DataLoader): return ''
    if dl.batch_sampler is None: return "its dataset makes batches of its own"
    if isinstance(dl.dataset, IterableDataset): return "its dataset is a stream"
    return _unknown_order(dl) or (_unknown_workers(dl) if dl.num_workers else '')


def _unknown_order(dl: DataLoader) -> str:
    odd = next((type(s).__name__ for s in _samplers(dl) if not _can_be_replayed(s)), None)
    return '' if odd is None else (f"nobody knows what its sampler, of class {odd}, draws from: let it draw from "
                                   f"nothing but a torch.Generator that is its attribute `generator`")


def _can_be_replayed(sampler: Any) -> bool:
    "Torch's own draw from a generator, or once as a pass begins; sequences draw nothing."
    if isinstance(sampler, Sequence | torch.Tensor | np.ndarray): return True
    if isinstance(getattr(sampler, 'generator', None), torch.Generator): return True
    return getattr(getattr(type(sampler), '__iter__', None), '__module__', '').startswith('torch.utils.data.')


def _unknown_workers(dl: DataLoader) -> str:
    if dl.persistent_workers:
        return ("its workers stay from pass to pass with the seed of the first, which no later start can draw again, "
                "not even between epochs: use persistent_workers=False")
    if dl.num_workers > 1 and not getattr(dl, 'in_order', True):
        return "its batches come in the order in which workers are done: use in_order=True"
    if any(g is torch.default_generator for g in _generators(dl)):
        return "its workers run ahead of training, which draws from the same generator: give it one of its own"
    return '' if isinstance(dl.dataset, SeededSamples) or not _draws(dl) else _drawing_workers(dl)


def _drawing_workers(dl: DataLoader) -> str:
    return (f"its dataset draws random numbers in {dl.num_workers} worker(s), whose states nobody knows: wrap it in "
            f"miniai.data.SeededSamples(dataset)")


def _draws(dl: DataLoader) -> bool:
    "Does the first sample of a pass draw random numbers?"
    before, own = random_states(), loader_state(dl)
    try:
        first = list(next(iter(dl.batch_sampler), ()))[:1]
        drawn = random_states()
        for i in first: dl.dataset[i]
        return not same_states(drawn, random_states())
    finally:
        set_random_states(before)
        set_loader_state(dl, own)


def describe_loader(dl: Any) -> dict[str, Any]:
    "What of a loader must be the same for a run to go on: plain values."
    sampler = getattr(dl, 'sampler', None)
    samples = getattr(dl, 'n', None) if _goes_by_epoch(dl) else length_of(getattr(dl, 'dataset', None))
    found = dict(batches=length_of(dl), samples=samples, batch_size=getattr(dl, 'batch_size', getattr(dl, 'bs', None)),
                 seed=getattr(dl, 'seed', None), drop_last=getattr(dl, 'drop_last', None),
                 order=type(sampler).__name__ if sampler is not None else getattr(dl, 'shuffle', None),
                 workers=_has_workers(dl), seeded_samples=isinstance(getattr(dl, 'dataset', None), SeededSamples))
    return {k: x if isinstance(x, int | str | None) else None for k, x in found.items()}


def _has_workers(dl: Any) -> bool: return bool(getattr(dl, 'num_workers', 0))


def length_of(x: Any) -> int | None:
    "How many items, such as batches, `x` gives; None where it does not know."
    try: return len(x)
    except TypeError: return None
