"""Why a pass over a loader may not be taken up exactly in its middle: what nobody knows, or can draw again. Knows
loaders and random states, no training."""
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, get_worker_info

from miniai.randomness import (
    generators_of,
    host_states,
    is_generator,
    random_states,
    same_states,
    set_random_states,
    set_state_of,
    state_of,
)

from .position import goes_by_epoch, own_generators, samplers_of
from .seeded import SeededSamples

__all__ = ['why_not_exact']

_LOOKED_AT = 16  # samples


def why_not_exact(dl: Any, others: Sequence[Any] = ()) -> str:
    """Why a pass over `dl` cannot be taken up exactly in its middle; '' where it can. `others`, such as callbacks, may
    hold generators too. Where there are workers, one makes the first samples of a pass, to see whether these draw
    random numbers."""
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
    return '' if odd is None else (f"nobody knows what its sampler, of class {odd}, draws from, or keeps from pass to "
                                   f"pass: let it keep nothing, and draw from nothing but a generator that is its "
                                   f"attribute `generator`")


def _can_be_replayed(sampler: Any) -> bool:
    "Torch's own draw from a generator, or once as a pass begins; sequences draw nothing."
    if isinstance(sampler, Sequence | torch.Tensor | np.ndarray): return True
    if is_generator(getattr(sampler, 'generator', None)): return True
    return getattr(getattr(type(sampler), '__iter__', None), '__module__', '').startswith('torch.utils.data.')


def _shared(dl: DataLoader, others: Sequence[Any]) -> str:
    if not dl.num_workers and type(dl.sampler) is RandomSampler and not dl.sampler.replacement: return ''  # at once
    own = {id(g) for g in own_generators(dl)}
    taken = next((f'{type(o).__name__}.{nm}' for o in others for nm, g in generators_of(o) if id(g) in own), None)
    return '' if taken is None else (f"it draws its order from a generator that {taken} draws from too, in turns that "
                                     f"nobody knows: give each its own")


def _unknown_workers(dl: DataLoader) -> str:
    if dl.num_workers > 1 and not getattr(dl, 'in_order', True):
        return "its batches come in the order in which workers are done: use in_order=True"
    if any(g is torch.default_generator for g in own_generators(dl)):
        return "its workers run ahead of training, which draws from the same generator: give it one of its own"
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
        moved = [nm for (nm, _), a, b in zip(self.held, self.before[1], after[1], strict=True) if not same_states(a, b)]
        return not same_states(self.before[0], made[0]), not same_states(made[0], after[0]), moved


def _drawn_in_a_worker(dl: DataLoader) -> tuple[bool, bool, list[str]]:
    "What is drawn as the first samples of a pass are made: by them, by what puts them together, from what is held."
    before, own = random_states(), [(g, state_of(g)) for g in own_generators(dl)]
    try:
        first, probe = list(next(iter(dl.batch_sampler), ()))[:_LOOKED_AT], _Probe(dl)
        if not first: return False, False, []
        seeded = dl.persistent_workers and isinstance(dl.dataset, SeededSamples)
        [found] = DataLoader(
            dl.dataset.dataset if seeded else dl.dataset, batch_sampler=[first], num_workers=1, collate_fn=probe,
            worker_init_fn=probe.begin, timeout=dl.timeout, multiprocessing_context=dl.multiprocessing_context)
        return found
    finally:
        set_random_states(before)
        for g, state in own: set_state_of(g, state)
