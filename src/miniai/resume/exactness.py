"""Why a pass over a loader may not be taken up exactly in its middle: what nobody knows, or can draw again. Knows
loaders and random states, no training."""
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    get_worker_info,
)

from miniai.data.loaders import length_of
from miniai.data.seeded import SeededSamples
from miniai.randomness import host_states, random_states, same_states, set_random_states
from miniai.resume.generators import generators_of, is_generator, set_state_of, state_of
from miniai.resume.loader import goes_by_epoch, own_generators, samplers_of

__all__ = ['loader_resume_blocker']


_THROUGH_ALL = {BatchSampler, RandomSampler, SequentialSampler, DistributedSampler}


def loader_resume_blocker(dl: Any, others: Sequence[tuple[str, Any]] = ()) -> str:
    """Why a pass over `dl` cannot be taken up exactly in its middle; '' where it can. `others` are the generators, with
    their names, that are drawn from in training. Where there are workers, one makes a batch or two, to see whether
    these draw random numbers."""
    if isinstance(dl, Iterator): return "it is an iterator, which gives its batches once: use a loader or a list"
    if goes_by_epoch(dl): return ''
    if not isinstance(dl, DataLoader): return _wrapped(dl)
    if dl.batch_sampler is None: return f"its dataset makes batches of its own{_staying(dl)}"
    if isinstance(dl.dataset, IterableDataset): return f"its dataset is a stream{_staying(dl)}"
    return _unknown_order(dl) or _shared(dl, others) or (_unknown_workers(dl) if dl.num_workers else '')


def _wrapped(dl: Any) -> str:
    "What goes over a loader is taken up by loading anew, but workers that stay are not brought back for it."
    inside = [x for x in getattr(dl, '__dict__', {}).values() if isinstance(x, DataLoader)]
    return ("the DataLoader that it goes over has workers that stay from pass to pass: use persistent_workers=False"
            if any(x.persistent_workers for x in inside) else '')


def _staying(dl: DataLoader) -> str:
    return (", and its workers stay from pass to pass with the seed of the first, so that what they draw is other "
            "between epochs too: use persistent_workers=False") if dl.persistent_workers else ''


def _unknown_order(dl: DataLoader) -> str:
    odd = next((type(s).__name__ for s in samplers_of(dl) if not _can_be_replayed(s)), None)
    return '' if odd is None else (f"nobody knows what its sampler, of class {odd}, draws from: let it draw from "
                                   f"nothing but a generator that is its attribute `generator`")


def _can_be_replayed(sampler: Any) -> bool:
    "Torch's own draw from a generator, or once as a pass begins; sequences draw nothing."
    if isinstance(sampler, Sequence | torch.Tensor | np.ndarray): return True
    if is_generator(getattr(sampler, 'generator', None)): return True
    return getattr(getattr(type(sampler), '__iter__', None), '__module__', '').startswith('torch.utils.data.')


def _shared(dl: DataLoader, others: Sequence[tuple[str, Any]]) -> str:
    if not dl.num_workers and _draws_at_once(dl.sampler): return ''
    own = {id(g) for g in own_generators(dl)}
    if id(torch.default_generator) in own: return _AS_TRAINING_DOES
    taken = next((nm for nm, g in others if id(g) in own), None)
    return '' if taken is None else (f"it draws its order from a generator that {taken} draws from too, in turns that "
                                     f"nobody knows: give each its own")


def _draws_at_once(sampler: Any) -> bool:
    return (type(sampler) is RandomSampler and not sampler.replacement
            and sampler.num_samples <= len(sampler.data_source))


_AS_TRAINING_DOES = ("it draws its order from torch's default generator, and training draws from that too, in turns "
                     "that nobody knows: give it one of its own")


def _unknown_workers(dl: DataLoader) -> str:
    if dl.num_workers > 1 and not getattr(dl, 'in_order', True):
        return "its batches come in the order in which workers are done: use in_order=True"
    samples, collate, held = _drawn_in_a_worker(dl)
    if not (samples or collate or held): return ''
    if dl.persistent_workers: return f"it draws random numbers in its workers{_staying(dl)}"
    return _drawing(dl.num_workers, samples, held)


def _drawing(workers: int, samples: bool, held: list[str]) -> str:
    if held:
        return (f"it draws in {workers} worker(s) from generators that it holds, {' and '.join(held)}, and each worker "
                f"has copies, whose states nobody knows: let it draw from torch's, numpy's or Python's global "
                f"generator, and wrap its dataset in miniai.SeededSamples(dataset)")
    if not samples:
        return (f"its collate_fn draws random numbers in {workers} worker(s), whose states nobody knows: let the "
                f"dataset draw them, in miniai.SeededSamples(dataset)")
    return (f"its dataset draws random numbers in {workers} worker(s), whose states nobody knows: wrap it in "
            f"miniai.SeededSamples(dataset)")


class _Probe:
    """Stands in for a loader's `collate_fn`, and its `begin` for the `worker_init_fn`, of one worker, and says what was
    drawn there: never in this process, where a dataset may open what workers must not share."""
    def __init__(self, dl: DataLoader) -> None: self.collate, self.init = dl.collate_fn, dl.worker_init_fn

    def begin(self, worker: int) -> None:
        if self.init is not None: self.init(worker)
        roots = dict(dataset=get_worker_info().dataset, collate_fn=self.collate)
        self.held = list(generators_of(roots, objects=True))
        self.before = self._states()

    def _states(self) -> tuple[dict, list]: return host_states(), [state_of(g) for _, g in self.held]

    def __call__(self, samples: Any) -> tuple[bool, bool, list[str]]:
        made = self._states()
        self.collate(samples)
        after = self._states()
        before, self.before = self.before, after
        moved = [nm for (nm, _), a, b in zip(self.held, before[1], after[1], strict=True) if not same_states(a, b)]
        return not same_states(before[0], made[0]), not same_states(made[0], after[0]), moved


def _drawn_in_a_worker(dl: DataLoader) -> tuple[bool, bool, list[str]]:
    "What is drawn as the first samples of a pass are made: by them, by what puts them together, from what is held."
    before, own, probe = random_states(), [(g, state_of(g)) for g in own_generators(dl)], _Probe(dl)
    try:
        found = [(False, False, []), *DataLoader(
            _Bare(dl.dataset) if dl.persistent_workers and isinstance(dl.dataset, SeededSamples) else dl.dataset,
            batch_sampler=_some_batches(dl), num_workers=1, collate_fn=probe, worker_init_fn=probe.begin,
            timeout=dl.timeout, multiprocessing_context=dl.multiprocessing_context)]
        samples, collate, held = zip(*found, strict=True)
        return any(samples), any(collate), sorted({nm for nms in held for nm in nms})
    finally:
        set_random_states(before)
        for g, state in own: set_state_of(g, state)


class _Bare:
    "A dataset of SeededSamples whose samples draw without seeds."
    def __init__(self, seeded: SeededSamples) -> None: self.dataset = seeded.dataset
    def __len__(self) -> int: return len(self.dataset)
    def __getitem__(self, i: Any) -> Any: return self.dataset[i]


def _some_batches(dl: DataLoader) -> list:
    """Batches of indices, the same each time: two of the dataset, in a row and spread, where all of it is gone through;
    else the first of a copy of the samplers, which may keep something from pass to pass."""
    n = length_of(dl.dataset)
    if not n or {type(s) for s in samplers_of(dl)} - _THROUGH_ALL: return _first_of_a_copy(dl)
    size = min(dl.batch_sampler.batch_size, n)
    return [list(range(size)), [i*(n - 1)//max(size - 1, 1) for i in range(size)]]


def _first_of_a_copy(dl: DataLoader) -> list:
    "None where there is no copying it: training itself will tell what is wrong."
    try: first = list(islice(deepcopy(dl.batch_sampler, {id(dl.dataset): dl.dataset}), 1))
    except Exception: return []
    return [b for b in first if isinstance(b, slice) or len(b)]
