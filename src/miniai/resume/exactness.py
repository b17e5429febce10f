"Reasons why a loader cannot be resumed mid-epoch."
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
from miniai.resume.loader import can_seek, own_generators, samplers_of

__all__ = ['loader_resume_blocker']

_COVER_DATASET = {BatchSampler, RandomSampler, SequentialSampler, DistributedSampler}


def loader_resume_blocker(dl: Any, others: Sequence[tuple[str, Any]] = ()) -> str:
    """Why a pass over `dl` cannot be resumed exactly from within; '' if it can. `others` are generators, with their
    names, that training draws from. If `dl` has workers, one is started and makes up to two batches, to see whether it
    draws random numbers."""
    if isinstance(dl, Iterator): return "it is an iterator, which can be used only once: use a DataLoader or a list"
    if can_seek(dl): return ''
    if not isinstance(dl, DataLoader):
        inside = [x for x in getattr(dl, '__dict__', {}).values() if isinstance(x, DataLoader)]
        return ("it wraps a DataLoader with persistent workers: use persistent_workers=False"
                if any(x.persistent_workers for x in inside) else '')
    if dl.batch_sampler is None: return f"its dataset makes whole batches{_if_persistent(dl)}"
    if isinstance(dl.dataset, IterableDataset): return f"its dataset is an IterableDataset{_if_persistent(dl)}"
    return _sampler_blocker(dl, others) or (_worker_blocker(dl) if dl.num_workers else '')


def _if_persistent(dl: DataLoader) -> str:
    return (". Its persistent workers keep the seeds of the first epoch, so that resuming between epochs is not exact "
            "either: use persistent_workers=False") if dl.persistent_workers else ''


def _sampler_blocker(dl: DataLoader, others: Sequence[tuple[str, Any]]) -> str:
    "Why the order cannot be drawn again."
    unknown = next((type(s).__name__ for s in samplers_of(dl) if not _can_be_replayed(s)), None)
    if unknown: return (f"the sampler's random source is unknown: let {unknown} draw only from a generator in its "
                        f"attribute `generator`")
    s = dl.sampler
    draws_at_once = type(s) is RandomSampler and not s.replacement and s.num_samples <= len(s.data_source)
    if draws_at_once and not dl.num_workers: return ''
    own = {id(g) for g in own_generators(dl)}
    if id(torch.default_generator) in own: return ("its order comes from torch's default generator, which training "
                                                   "draws from too: give the loader a generator of its own")
    shared = next((nm for nm, g in others if id(g) in own), None)
    return '' if shared is None else f"its order comes from a generator that {shared} draws from too: give each its own"


def _can_be_replayed(sampler: Any) -> bool:
    "Sequences draw nothing; torch's samplers draw from their generator, or once when a pass begins."
    if isinstance(sampler, Sequence | torch.Tensor | np.ndarray): return True
    if is_generator(getattr(sampler, 'generator', None)): return True
    return getattr(getattr(type(sampler), '__iter__', None), '__module__', '').startswith('torch.utils.data.')


# What workers draw

def _worker_blocker(dl: DataLoader) -> str:
    if dl.num_workers > 1 and not getattr(dl, 'in_order', True):
        return "its batches come in whatever order the workers finish: use in_order=True"
    dataset, collate, held = _drawn_in_a_worker(dl)
    if not (dataset or collate or held): return ''
    if dl.persistent_workers: return f"its workers draw random numbers{_if_persistent(dl)}"
    where = f"in {dl.num_workers} worker(s), whose random states are not saved"
    wrap = "wrap the dataset in miniai.SeededSamples(dataset)"
    if held: return (f"it draws from copies of {' and '.join(held)} {where}: draw from torch's, numpy's or Python's "
                     f"global generator instead, and {wrap}")
    if dataset: return f"its dataset draws random numbers {where}: {wrap}"
    return f"its collate_fn draws random numbers {where}: draw them in the dataset instead, and {wrap}"


class _Probe:
    """Replaces a worker's `collate_fn`, as `begin` replaces its `worker_init_fn`, and reports for each batch what drew
    random numbers. It runs in a worker because a dataset may open files that processes must not share."""
    def __init__(self, dl: DataLoader) -> None: self.collate, self.init = dl.collate_fn, dl.worker_init_fn

    def begin(self, worker: int) -> None:
        if self.init is not None: self.init(worker)
        roots = dict(dataset=get_worker_info().dataset, collate_fn=self.collate)
        self.held = list(generators_of(roots, objects=True))
        self.before = self._states()

    def _states(self) -> tuple[dict, list]: return host_states(), [state_of(g) for _, g in self.held]

    def __call__(self, samples: Any) -> tuple[bool, bool, list[str]]:
        "Did the dataset draw, did `collate` draw, and which generators inside them were drawn from?"
        before, loaded = self.before, self._states()
        self.collate(samples)
        self.before = after = self._states()
        moved = [nm for (nm, _), a, b in zip(self.held, before[1], after[1], strict=True) if not same_states(a, b)]
        return not same_states(before[0], loaded[0]), not same_states(loaded[0], after[0]), moved


def _drawn_in_a_worker(dl: DataLoader) -> tuple[bool, bool, list[str]]:
    "What `_Probe` reports of a few batches, together. Leaves this process's random states as they were."
    before, own, probe = random_states(), [(g, state_of(g)) for g in own_generators(dl)], _Probe(dl)
    ds = dl.dataset
    if dl.persistent_workers and isinstance(ds, SeededSamples): ds = _Unseeded(ds.dataset)
    try:
        reports = list(DataLoader(ds, batch_sampler=_some_batches(dl), num_workers=1, collate_fn=probe,
                                  worker_init_fn=probe.begin, timeout=dl.timeout,
                                  multiprocessing_context=dl.multiprocessing_context))
    finally:
        set_random_states(before)
        for g, state in own: set_state_of(g, state)
    return (any(dataset for dataset, _, _ in reports), any(collate for _, collate, _ in reports),
            sorted({nm for _, _, moved in reports for nm in moved}))


class _Unseeded:
    "The dataset inside SeededSamples, also sample by sample: persistent workers repeat seeds, so no draw is safe."
    def __init__(self, dataset: Any) -> None: self.dataset = dataset
    def __len__(self) -> int: return len(self.dataset)
    def __getitem__(self, i: Any) -> Any: return self.dataset[i]


def _some_batches(dl: DataLoader) -> list:
    "Indices of two batches, in a row and spread over the dataset; with a user's sampler, its own first batch."
    n = length_of(dl.dataset)
    if n and not {type(s) for s in samplers_of(dl)} - _COVER_DATASET:
        size = min(dl.batch_sampler.batch_size, n)
        return [list(range(size)), [i*(n - 1)//max(size - 1, 1) for i in range(size)]]
    try: first = list(islice(deepcopy(dl.batch_sampler, {id(dl.dataset): dl.dataset}), 1))  # it may count its passes
    except Exception: return []  # no copy: training itself will show what is wrong
    return [b for b in first if isinstance(b, slice) or len(b)]
