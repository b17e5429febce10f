"""A pass over a loader from any batch on: by index, without loading what came before, with the random numbers that the
whole pass would have drawn. Knows loaders and random states, no training."""
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from miniai.data.loaders import length_of
from miniai.data.seeded import SeededSamples
from miniai.randomness import host_states, same_states, set_random_states
from miniai.resume.generators import generators_of, is_generator, set_state_of, state_of

__all__ = ['RemainingBatches', 'describe_loader', 'goes_by_epoch', 'loader_state', 'own_generators',
           'samplers_of', 'set_loader_state', 'set_workers']


def loader_state(dl: Any) -> dict[str, Any]:
    """What a loader's next pass depends on beside the global random states: its epoch, its own generators, what it and
    its samplers keep from pass to pass, the generators that its dataset holds, and whether workers are up that stay
    from pass to pass, of which the first draws one number more."""
    return dict(epoch=getattr(dl, 'epoch', None), generators=[state_of(g) for g in own_generators(dl)],
                kept=[sampler_state(x) for x in _keepers(dl)], held=[state_of(g) for _, g in _held(dl)],
                workers_up=_keeps_workers(dl) and dl._iterator is not None)


def set_loader_state(dl: Any, state: dict[str, Any]) -> None:
    "Put back what `loader_state` gave, workers aside."
    _set_all_but_own(dl, state)
    for g, s in zip(own_generators(dl), state['generators'], strict=True): set_state_of(g, s)
    for x, kept in zip(_keepers(dl), state['kept'], strict=True): set_sampler_state(x, kept)


def _keepers(dl: Any) -> list:
    "What may keep something from pass to pass: samplers, and loaders of others' classes."
    own = [] if type(dl) is DataLoader or goes_by_epoch(dl) else [dl]
    return [x for x in (*own, *samplers_of(dl)) if hasattr(x, '__dict__')]


def _set_all_but_own(dl: Any, state: dict[str, Any]) -> None:
    if state['epoch'] is not None: dl.epoch = state['epoch']
    for (_, g), s in zip(_held(dl), state['held'], strict=True): set_state_of(g, s)


def set_workers(dl: Any, state: dict[str, Any]) -> None:
    """Start the workers that stay from pass to pass, or let them go, so that they are up or not as in what
    `loader_state` gave. To start them draws a random number: put random states back after it."""
    if not _keeps_workers(dl) or (state['workers_up'] and _are_alive(dl._iterator)): return
    _let_workers_go(dl)
    if not state['workers_up']: return
    with _pass_over(dl, ()): _PLAIN(dl)


def _keeps_workers(dl: Any) -> bool: return isinstance(dl, DataLoader) and dl.persistent_workers
def _are_alive(iterator: Any) -> bool: return iterator is not None and all(w.is_alive() for w in iterator._workers)


def _let_workers_go(dl: DataLoader) -> None:
    "At once: an error's traceback may hold on to the iterator that has them."
    if dl._iterator is not None: dl._iterator._shutdown_workers()
    dl._iterator = None


def own_generators(dl: Any) -> list:
    "The generators of a loader and of what gives it its indices."
    held = [getattr(x, 'generator', None) for x in (dl, getattr(dl, 'sampler', None), *samplers_of(dl))]
    return list({id(g): g for g in held if is_generator(g)}.values())


def _held(dl: Any) -> list[tuple[str, Any]]:
    "The other generators that a loader's batches may be made with, with where they are."
    roots = dict(dataset=dl.dataset, collate_fn=dl.collate_fn) if isinstance(dl, DataLoader) else dict(loader=dl)
    own = {id(g) for g in own_generators(dl)}
    return [(nm, g) for nm, g in generators_of(roots, objects=True) if id(g) not in own]


def samplers_of(dl: Any) -> list:
    "What gives a loader its batches of indices, and what gives these their indices."
    batches = getattr(dl, 'batch_sampler', None)
    return [s for s in (batches, getattr(batches, 'sampler', None)) if s is not None]


def goes_by_epoch(dl: Any) -> bool:
    "Does it give a pass's batches by epoch and first batch, as a MemoryLoader does?"
    return callable(getattr(dl, 'batches', None)) and isinstance(getattr(dl, 'epoch', None), int)


class RemainingBatches:
    """The rest of a pass over `dl`, from batch `start` on. `begun` and `now` are pairs of `random_states()` and
    `loader_state(dl)`: when the pass began, and after batch `start - 1`. Its length is the whole pass's. `taken` says
    whether iteration has begun."""
    def __init__(self, dl: Any, start: int, begun: tuple[dict, dict], now: tuple[dict, dict]) -> None:
        self.dl, self.first_batch, self.begun, self.now, self.taken = dl, start, begun, now, False

    def __len__(self) -> int: return len(self.dl)

    def __iter__(self) -> Iterator:
        self.taken = True
        set_workers(self.dl, self.begun[1])
        self._set(self.begun)
        if goes_by_epoch(self.dl): return self._by_epoch()
        return self._by_index() if _goes_by_index(self.dl) else self._by_loading()

    def _set(self, states: tuple[dict, dict]) -> None:
        set_random_states(states[0])
        set_loader_state(self.dl, states[1])

    def _by_epoch(self) -> Iterator:
        rest = self.dl.batches(self.begun[1]['epoch'], self.first_batch)
        self._set(self.now)
        return rest

    def _by_index(self) -> Iterator:
        with _pass_over(self.dl, _Rest(self.dl.batch_sampler, self.first_batch, self._go_on)): return iter(self.dl)

    def _go_on(self) -> None:
        """Put all as it was after the batch before, but not the loader's own generators where it has workers: these
        stay where the replay has left them. As saved, they had been drawn from for batches that were to be made
        ahead."""
        if not self.dl.num_workers: return self._set(self.now)
        set_random_states(self.now[0])
        _set_all_but_own(self.dl, self.now[1])

    def _by_loading(self) -> Iterator:
        batches = iter(self.dl)
        _skip(batches, min(1, self.first_batch))
        before = host_states()
        _skip(batches, self.first_batch, 1)
        if not same_states(before, host_states()): warnings.warn(_AHEAD, stacklevel=2)
        self._set(self.now)
        return batches


_AHEAD = ("a loader with an __iter__ of its own drew random numbers as the batches that were done were loaded anew: "
          "the run goes on exactly only if it draws for each batch when that is asked for, and not ahead")
_PLAIN = DataLoader.__iter__  # a class with one of its own may make other batches of the same indices


def _goes_by_index(dl: Any) -> bool:
    "A stream has no indices; without a batch sampler a dataset makes batches of its own."
    return (getattr(type(dl), '__iter__', None) is _PLAIN and dl.batch_sampler is not None
            and not isinstance(dl.dataset, IterableDataset))


@contextmanager
def _pass_over(dl: DataLoader, indices: Any) -> Iterator[None]:
    "Within it a pass of `dl` begins that goes over `indices` instead: a DataLoader lets nobody set its sampler."
    name = 'sampler' if dl.batch_sampler is None else 'batch_sampler'
    whole, vars(dl)[name] = vars(dl)[name], indices
    _tell_workers(dl, indices)
    try: yield
    finally:
        vars(dl)[name] = whole
        _tell_workers(dl, whole)


def _tell_workers(dl: DataLoader, indices: Any) -> None:
    "Workers that stay keep what their first pass went over."
    if dl._iterator is not None: dl._iterator._index_sampler = indices


class _Rest:
    """A batch sampler without its first batches of indices; `drawn` is called when these have been drawn. The sampler
    begins as often, and as early, as it is asked to: some draw then."""
    def __init__(self, sampler: Any, start: int, drawn: Callable[[], None]) -> None:
        self.sampler, self.start, self.drawn = sampler, start, drawn

    def __len__(self) -> int: return max(len(self.sampler) - self.start, 0)
    def __iter__(self) -> Iterator: return self._rest(iter(self.sampler))

    def _rest(self, batches: Iterator) -> Iterator:
        _skip(batches, self.start)
        self.drawn()
        yield from batches


def _skip(batches: Iterator, n: int, done: int = 0) -> None:
    "Take `n` batches, of which some are `done`. ValueError where there are fewer."
    for i in range(done, n):
        if next(batches, _NONE) is _NONE:
            raise ValueError(f"a pass that was left after {n} batches cannot be taken up there: it has {i} now")


_NONE = object()


def describe_loader(dl: Any) -> dict[str, Any]:
    "What of a loader must be the same for a run to go on: plain values."
    sampler = getattr(dl, 'sampler', None)
    samples = getattr(dl, 'n', None) if goes_by_epoch(dl) else length_of(getattr(dl, 'dataset', None))
    found = dict(batches=length_of(dl), samples=samples, batch_size=getattr(dl, 'batch_size', getattr(dl, 'bs', None)),
                 seed=getattr(dl, 'seed', None), drop_last=getattr(dl, 'drop_last', None),
                 order=type(sampler).__name__ if sampler is not None else getattr(dl, 'shuffle', None),
                 workers=_has_workers(dl), persistent_workers=_keeps_workers(dl),
                 seeded_samples=isinstance(getattr(dl, 'dataset', None), SeededSamples))
    return {k: x if isinstance(x, int | str | None) else None for k, x in found.items()}


def _has_workers(dl: Any) -> bool: return bool(getattr(dl, 'num_workers', 0))


_PLAIN_VALUES = int, float, bool, type(None)
_OF_LOADERS = frozenset(vars(DataLoader([0])))  # choices of its user's


def sampler_state(x: Any) -> dict[str, Any]:
    """The attributes of `x` that a pass may change: numbers, such as a count of passes, truth values and None, and
    orders, which are flat lists, tensors and arrays of whole numbers, none twice; those of torch's own samplers stay as
    they are given."""
    with_orders = not type(x).__module__.startswith('torch.')
    return {k: _copy(v) for k, v in vars(x).items()
            if k not in _OF_LOADERS and (type(v) in _PLAIN_VALUES or (with_orders and _is_order(v)))}


def _is_order(x: Any) -> bool:
    if type(x) is list: return len(x) > 1 and all(type(i) is int for i in x) and len(set(x)) == len(x)
    if type(x) is Tensor and _is_plain_row(x): x = x.numpy(force=True)
    return type(x) is np.ndarray and x.ndim == 1 and len(x) > 1 and x.dtype.kind in 'iu' and len(np.unique(x)) == len(x)


def _is_plain_row(t: Tensor) -> bool:
    return (not (t.is_nested or t.is_quantized or t.is_meta) and t.layout is torch.strided and t.ndim == 1
            and not (t.is_floating_point() or t.is_complex()))


def set_sampler_state(x: Any, kept: dict[str, Any]) -> None:
    "Give `x` back what `sampler_state` gave: orders in the very memory that others may share."
    for k, v in kept.items():
        there = vars(x).get(k)
        if _fits(there, v): there[:] = v
        else: vars(x)[k] = _copy(v)


def _fits(there: Any, v: Any) -> bool:
    if type(there) is not type(v) or type(v) in _PLAIN_VALUES: return False
    return type(v) is list or (there.shape == v.shape and (type(v) is Tensor or there.flags.writeable))


def _copy(v: Any) -> Any:
    if isinstance(v, Tensor): return v.clone()
    return v.copy() if isinstance(v, list | np.ndarray) else v
