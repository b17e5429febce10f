"A loader's state, and the rest of a pass from any batch on, with the random numbers that a whole pass would draw."
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

__all__ = ['RemainingBatches', 'can_seek', 'describe_loader', 'loader_state', 'own_generators', 'sampler_state',
           'samplers_of', 'set_loader_state', 'set_sampler_state', 'set_workers']

_TORCH_ITER = DataLoader.__iter__
_DATALOADER_OPTIONS = frozenset(vars(DataLoader([0])))
_PLAIN = int, float, bool, type(None)


# What a loader is made of

def can_seek(dl: Any) -> bool:
    "Can a pass over `dl` start at any batch, by `dl.batches(epoch, first_batch)` as in MemoryLoader?"
    return callable(getattr(dl, 'batches', None)) and isinstance(getattr(dl, 'epoch', None), int)


def samplers_of(dl: Any) -> list:
    "The batch sampler of `dl`, and the sampler inside it."
    batches = getattr(dl, 'batch_sampler', None)
    return [s for s in (batches, getattr(batches, 'sampler', None)) if s is not None]


def own_generators(dl: Any) -> list:
    "The random generators of a loader and its samplers."
    found = [getattr(x, 'generator', None) for x in (dl, getattr(dl, 'sampler', None), *samplers_of(dl))]
    return list({id(g): g for g in found if is_generator(g)}.values())


def _data_generators(dl: Any) -> list:
    "The other generators that may be drawn from to make a batch: those inside the dataset and the collate_fn."
    roots = dict(dataset=dl.dataset, collate_fn=dl.collate_fn) if isinstance(dl, DataLoader) else dict(loader=dl)
    own = {id(g) for g in own_generators(dl)}
    return [g for _, g in generators_of(roots, objects=True) if id(g) not in own]


def _with_attributes(dl: Any) -> list:
    "The samplers of `dl`, and `dl` itself if it is of a user's class: their attributes may change from pass to pass."
    own = [] if type(dl) is DataLoader or can_seek(dl) else [dl]
    return [x for x in (*own, *samplers_of(dl)) if hasattr(x, '__dict__')]


def _has_persistent_workers(dl: Any) -> bool: return isinstance(dl, DataLoader) and dl.persistent_workers


def describe_loader(dl: Any) -> dict[str, Any]:
    "What must be the same about a loader for a run to resume, as plain values."
    sampler = getattr(dl, 'sampler', None)
    samples = getattr(dl, 'n', None) if can_seek(dl) else length_of(getattr(dl, 'dataset', None))
    found = dict(batches=length_of(dl), samples=samples, batch_size=getattr(dl, 'batch_size', getattr(dl, 'bs', None)),
                 seed=getattr(dl, 'seed', None), drop_last=getattr(dl, 'drop_last', None),
                 order=type(sampler).__name__ if sampler is not None else getattr(dl, 'shuffle', None),
                 workers=bool(getattr(dl, 'num_workers', 0)), persistent_workers=_has_persistent_workers(dl),
                 seeded_samples=isinstance(getattr(dl, 'dataset', None), SeededSamples))
    return {k: x if isinstance(x, int | str | None) else None for k, x in found.items()}


# Its state

def loader_state(dl: Any) -> dict[str, Any]:
    """What the next pass over `dl` depends on besides the global random states: its epoch, the generators of the loader
    and of its data, attributes that change from pass to pass, and whether persistent workers are running, because
    starting them draws a random number."""
    return dict(epoch=getattr(dl, 'epoch', None), generators=[state_of(g) for g in own_generators(dl)],
                data_generators=[state_of(g) for g in _data_generators(dl)],
                attributes=[sampler_state(x) for x in _with_attributes(dl)],
                workers_running=_has_persistent_workers(dl) and dl._iterator is not None)


def set_loader_state(dl: Any, state: dict[str, Any], samplers: bool = True) -> None:
    "Restore what `loader_state` returned, except workers; with `samplers` False, not what the samplers depend on."
    if state['epoch'] is not None: dl.epoch = state['epoch']
    for g, s in zip(_data_generators(dl), state['data_generators'], strict=True): set_state_of(g, s)
    if not samplers: return
    for g, s in zip(own_generators(dl), state['generators'], strict=True): set_state_of(g, s)
    for x, s in zip(_with_attributes(dl), state['attributes'], strict=True): set_sampler_state(x, s)


def set_workers(dl: Any, state: dict[str, Any]) -> None:
    """Start or stop the persistent workers of `dl`, to match what `loader_state` returned. Starting them draws a random
    number, so restore random states after this."""
    if not _has_persistent_workers(dl): return
    iterator, running = dl._iterator, state['workers_running']
    if running and iterator is not None and all(w.is_alive() for w in iterator._workers): return
    if iterator is not None: iterator._shutdown_workers()  # now: an error's traceback may keep the iterator alive
    dl._iterator = None
    if running:
        with _iterating_over(dl, ()): _TORCH_ITER(dl)


def sampler_state(x: Any) -> dict[str, Any]:
    """The attributes of `x` that a pass may change: numbers (such as a count of passes), bools, None, and orders, which
    are flat lists, tensors or arrays of distinct integers. Orders in torch's own samplers never change and are left
    out."""
    with_orders = not type(x).__module__.startswith('torch.')
    return {k: _copy(v) for k, v in vars(x).items()
            if k not in _DATALOADER_OPTIONS and (type(v) in _PLAIN or (with_orders and _is_order(v)))}


def _is_order(x: Any) -> bool:
    if type(x) is list: return len(x) > 1 and all(type(i) is int for i in x) and len(set(x)) == len(x)
    if type(x) is Tensor:
        if x.is_nested or x.is_quantized or x.is_meta or x.layout is not torch.strided: return False
        if x.ndim != 1 or x.is_floating_point() or x.is_complex(): return False
        x = x.numpy(force=True)
    return type(x) is np.ndarray and x.ndim == 1 and len(x) > 1 and x.dtype.kind in 'iu' and len(np.unique(x)) == len(x)


def set_sampler_state(x: Any, state: dict[str, Any]) -> None:
    "Restore what `sampler_state` returned. Orders keep their memory where possible, since other objects may share it."
    for k, v in state.items():
        there = vars(x).get(k)
        if _fits_into(there, v): there[:] = v
        else: vars(x)[k] = _copy(v)


def _fits_into(there: Any, v: Any) -> bool:
    if type(there) is not type(v) or type(v) in _PLAIN: return False
    return type(v) is list or (there.shape == v.shape and (type(v) is Tensor or there.flags.writeable))


def _copy(v: Any) -> Any:
    if isinstance(v, Tensor): return v.clone()
    return v.copy() if isinstance(v, list | np.ndarray) else v


# The rest of a pass

class RemainingBatches:
    """The rest of a pass over `dl`, from batch `first_batch` on. `begun` and `now` are pairs of `random_states()` and
    `loader_state(dl)`: when the pass began, and after batch `first_batch - 1`. Its length is that of the whole pass;
    `taken` says whether iteration has begun. ValueError if the pass has fewer batches now."""
    def __init__(self, dl: Any, first_batch: int, begun: tuple[dict, dict], now: tuple[dict, dict]) -> None:
        self.dl, self.first_batch, self.begun, self.now, self.taken = dl, first_batch, begun, now, False

    def __len__(self) -> int: return len(self.dl)

    def __iter__(self) -> Iterator:
        self.taken = True
        set_workers(self.dl, self.begun[1])
        self._restore(self.begun)
        if can_seek(self.dl):
            batches = self.dl.batches(self.begun[1]['epoch'], self.first_batch)
            self._restore(self.now)
            return batches
        if not _is_indexed(self.dl): return self._reloading_earlier_batches()
        rest = _RemainingIndices(self.dl.batch_sampler, self.first_batch, self._restore_after_indices)
        with _iterating_over(self.dl, rest): return iter(self.dl)

    def _restore(self, states: tuple[dict, dict], samplers: bool = True) -> None:
        set_random_states(states[0])
        set_loader_state(self.dl, states[1], samplers)

    def _restore_after_indices(self) -> None:
        # With workers, the saved sampler state is ahead by the batches that were prefetched: drawing the indices again
        # has put it where it belongs.
        self._restore(self.now, samplers=not self.dl.num_workers)

    def _reloading_earlier_batches(self) -> Iterator:
        batches = iter(self.dl)
        _skip(batches, min(1, self.first_batch))
        before = host_states()
        _skip(batches, self.first_batch, 1)
        if not same_states(before, host_states()): warnings.warn(
            f"the first {self.first_batch} batches were loaded again to resume, and {type(self.dl).__name__} drew "
            f"random numbers for them: the rest will be the same only if it draws for one batch at a time",
            stacklevel=2)
        self._restore(self.now)
        return batches


def _is_indexed(dl: Any) -> bool:
    "Does `dl` load each batch by a list of indices? A subclass with its own __iter__ may do anything."
    return (getattr(type(dl), '__iter__', None) is _TORCH_ITER and dl.batch_sampler is not None
            and not isinstance(dl.dataset, IterableDataset))


@contextmanager
def _iterating_over(dl: DataLoader, indices: Any) -> Iterator[None]:
    "Within it, a pass over `dl` that begins goes over `indices`. DataLoader refuses to have its sampler set."
    name = 'sampler' if dl.batch_sampler is None else 'batch_sampler'
    own = vars(dl)[name]
    def set_indices(x: Any) -> None:
        vars(dl)[name] = x
        if dl._iterator is not None: dl._iterator._index_sampler = x  # persistent workers keep their first sampler
    set_indices(indices)
    try: yield
    finally: set_indices(own)


class _RemainingIndices:
    """A batch sampler without its first `start` batches; calls `skipped()` once these are drawn. Each call of iter()
    starts the sampler at once, because some samplers draw random numbers when they start."""
    def __init__(self, sampler: Any, start: int, skipped: Callable[[], None]) -> None:
        self.sampler, self.start, self.skipped = sampler, start, skipped

    def __len__(self) -> int: return max(len(self.sampler) - self.start, 0)
    def __iter__(self) -> Iterator: return self._rest(iter(self.sampler))

    def _rest(self, batches: Iterator) -> Iterator:
        _skip(batches, self.start)
        self.skipped()
        yield from batches


def _skip(batches: Iterator, n: int, done: int = 0) -> None:
    "Take batches until `n` are done."
    end = object()
    for i in range(done, n):
        if next(batches, end) is end: raise ValueError(
            f"cannot resume a pass after {n} batches: the loader gives only {i} now")
