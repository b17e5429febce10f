"The rest of a pass over a loader, from any batch on, with the random numbers that a whole pass would draw."
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch.utils.data import DataLoader
from tqdm import tqdm

from miniai.data.indices import is_indexed, iterating_over
from miniai.data.seeded import SeededSamples
from miniai.randomness import host_states, same_states
from miniai.resume.restore import restore_data
from miniai.resume.state import RunState
from miniai.resume.walk import has_state_dict, walk
from miniai.resume.workers import is_fixed, set_workers

__all__ = ['RemainingBatches', 'can_seek', 'resume_warning']


def can_seek(dl: Any) -> bool:
    "Can a pass over `dl` start at any batch, by `dl.batches(epoch, first_batch)` as in MemoryLoader?"
    return callable(getattr(dl, 'batches', None)) and isinstance(getattr(dl, 'epoch', None), int)


def resume_warning(dl: Any, limited: bool = False) -> str:
    "Why a run over `dl`, with passes `limited` by MaxBatchesCB, may not resume exactly, and what to do; '' if it will."
    if limited and has_state_dict(dl): return ("by its state_dict it continues a pass that MaxBatchesCB has ended: use "
                                               "fit(steps=…, valid_every=…)")
    if isinstance(dl, Iterator): return "it is an iterator, which can be used only once: use a DataLoader or a list"
    if not isinstance(dl, DataLoader) or not dl.num_workers: return ''
    if not getattr(dl, 'in_order', True):
        return "its batches come in whatever order the workers finish: use in_order=True"
    if dl.persistent_workers and (isinstance(dl.dataset, SeededSamples) or not is_fixed(dl)):
        return ("if its persistent workers draw random numbers, they do it from states that no checkpoint holds: use "
                "persistent_workers=False")
    return ''


class RemainingBatches:
    """The rest of a pass over `dl`, a loader of `learn`, from batch `first_batch` on; then, if iterated again, whole
    passes. `begun` and `now` are the states of the data when the pass began and when its rest begins, by default that
    of the moment. Its length is that of the whole pass; `taken` says whether iteration has begun. ValueError if the
    pass has fewer batches now."""
    def __init__(self, learn: Any, dl: Any, path: str, first_batch: int, begun: dict, now: dict | None,
                 state: RunState) -> None:
        self.learn, self.dl, self.path, self.first_batch = learn, dl, path, first_batch
        self.begun, self.now, self.state, self.names, self.taken = begun, now, state, state.names, False

    def __len__(self) -> int: return len(self.dl)

    def __iter__(self) -> Iterator:
        dl, whole = self.dl, self.taken
        start, self.first_batch, self.taken = self.first_batch, 0, True
        if whole or has_state_dict(dl): return iter(dl)  # the latter was restored, and goes on by itself
        now = self.now or self.state.data(self.learn, self.begun)
        set_workers(dl, self.path in self.begun['running'])
        restore_data(self.learn, self.begun, self.names)
        if can_seek(dl):
            batches = dl.batches(dl.epoch, start)
            restore_data(self.learn, now, self.names)
            return batches
        if not is_indexed(dl) or (dl.num_workers and not self._is_fixed()):
            return self._loading_earlier_batches(start, now)
        rest = _RemainingIndices(dl.batch_sampler, start, partial(self._after_indices, now))
        with iterating_over(dl, rest): batches = iter(dl)
        rest.skip()
        return batches

    def _is_fixed(self) -> bool:
        "Are samples the same whatever a worker did before? Not if it may draw from a copy of a generator."
        held = f'{self.path}.dataset', f'{self.path}.collate_fn', 'class ', 'module '
        nodes = walk(self.learn, self.names).items()
        return is_fixed(self.dl) and not any(n.kind == 'generator' and path.startswith(held) for path, n in nodes)

    def _after_indices(self, now: dict) -> None:
        # With workers, the saved state of the sampler is ahead by the batches that were prefetched: drawing the indices
        # again has put it where it belongs.
        own = tuple(f'{self.path}.{nm}' for nm in ('sampler', 'batch_sampler', 'generator'))
        restore_data(self.learn, now, self.names, own if self.dl.num_workers else ())

    def _loading_earlier_batches(self, start: int, now: dict) -> Iterator:
        "Workers have random states of their own, and a stream must be read from its start: load everything again."
        batches = iter(self.dl)
        _skip(batches, min(1, start))
        before = host_states()
        for done in tqdm(range(1, start), 'loading earlier batches again', delay=2, leave=False):
            _skip(batches, done + 1, done)
        if not same_states(before, host_states()): warnings.warn(
            f"the first {start} batches were loaded again to resume, and {type(self.dl).__name__} drew "
            f"random numbers for them: the rest will be the same only if it draws for one batch at a time",
            stacklevel=2)
        restore_data(self.learn, now, self.names)
        return batches


class _RemainingIndices:
    """A batch sampler without its first `start` batches; calls `skipped()` once these are drawn, in `skip()` or for the
    first batch. iter() starts the sampler at once, because some samplers draw random numbers when they start."""
    def __init__(self, sampler: Any, start: int, skipped: Callable[[], None]) -> None:
        self.sampler, self.start, self.skipped, self.at_start = sampler, start, skipped, True

    def __len__(self) -> int: return max(len(self.sampler) - self.start, 0)

    def __iter__(self) -> Iterator:
        self.batches = iter(self.sampler)
        return self

    def __next__(self) -> Any:
        self.skip()
        return next(self.batches)

    def skip(self) -> None:
        "Draw the first batches, if that is not done."
        if not self.at_start: return
        self.at_start = False
        _skip(self.batches, self.start)
        self.skipped()


def _skip(batches: Iterator, n: int, done: int = 0) -> None:
    "Take batches until `n` are done."
    end = object()
    for i in range(done, n):
        if next(batches, end) is end: raise ValueError(
            f"cannot resume a pass after {n} batches: the loader gives only {i} now")
