"How many batches an epoch takes: the first ones of each pass, or the next ones of a pass that continues across epochs."
import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from numbers import Integral
from typing import Any

from miniai.callbacks.wrapped import WrappedLoader, first_batch_of
from miniai.data.indices import tell_epoch
from miniai.data.loaders import length_of
from miniai.data.parts import innermost
from miniai.events import Callback

__all__ = ['EpochCB', 'MaxBatchesCB', 'StepsCB', 'steps_cbs', 'training_batches']

_END = object()


def _check_counts(where: str, **counts: Any) -> None:
    "ValueError unless each count is a whole number, 1 or more, or None."
    for nm, n in counts.items():
        if n is None or (isinstance(n, Integral) and not isinstance(n, bool) and n >= 1): continue
        raise ValueError(f"{where}: {nm} must be a whole number of batches, 1 or more, got {n!r}")


class MaxBatchesCB(Callback):
    """Ends each pass after its first `train` or `valid` batches; None means all. Such an epoch is whole for history,
    schedules and checkpoints, and the next one begins a new pass. `capture_preds` and `tta` still see the whole
    validation set."""
    order = -1e9  # callbacks that wrap the loader or look at its length see the shorter pass
    def __init__(self, train: int | None = None, valid: int | None = None) -> None:
        _check_counts('MaxBatchesCB', train=train, valid=valid)
        self.train, self.valid = train, valid

    def before_epoch(self, learn: Any) -> None:
        n, length = self.train if learn.model.training else self.valid, length_of(learn.dl)
        predicts = getattr(learn, 'dry_run', False) and not learn.model.training
        if n is not None and not predicts and (length is None or n < length): learn.dl = _FirstBatches(learn.dl, n)


class _FirstBatches(WrappedLoader):
    "The first `n` batches of each pass over `dl`."
    def __init__(self, dl: Iterable, n: int) -> None:
        super().__init__(dl)
        self.n = n

    def __len__(self) -> int: return self.n
    def __iter__(self) -> Iterator: return islice(self.dl, self.n - first_batch_of(self.dl))


class EpochCB(Callback):
    "Tells samplers that have a `set_epoch`, as torch's DistributedSampler does, which epoch begins. Every fit adds it."
    order, only_shows = -math.inf, True
    def before_epoch(self, learn: Any) -> None:
        if not (learn.model.training and any(isinstance(cb, StepsCB) for cb in learn.cbs)):
            tell_epoch(innermost(learn.dl), learn.epoch)


class StepsCB(Callback):
    """Makes a fit take `steps` training batches, in epochs of `valid_every`; `fit(steps=…, valid_every=…)` adds it. A
    pass over the loader continues from epoch to epoch, and a new one begins where it ends. `done` is how many batches
    of the pass are done, and `passes` how many have begun; samplers with a `set_epoch` are told."""
    order = -1e8
    def __init__(self, steps: int, valid_every: int | None = None) -> None:
        _check_counts('fit', steps=steps, valid_every=valid_every)
        self._steps, self._valid_every, self.every = steps, valid_every, None
        self.done, self.passes, self._on_new_pass = 0, 0, lambda: None

    steps = property(lambda self: self._steps, doc="Training batches of the whole fit.")
    paused = property(lambda self: self._pass is None and self.done > 0, doc="Is this a resumed run, within a pass?")

    def when_a_pass_begins(self, f: Callable[[], Any]) -> None:
        "Let `f()` be called when a new pass begins, before its iterator is made."
        self._on_new_pass = f

    def before_fit(self, learn: Any) -> None:
        if not learn.trains: raise ValueError("fit(steps=…) counts training batches, but was called with train=False")
        self.every = self._valid_every or _batches_per_pass(learn) or self._steps
        learn.n_epochs = -(-self._steps//self.every)
        learn.epochs = range(learn.n_epochs)
        self._pass, self.done, self.passes, self._epoch, self._taken = None, 0, 0, None, 0

    def before_epoch(self, learn: Any) -> None:
        if not learn.model.training: return
        if self._epoch != learn.epoch: self._epoch, self._taken = learn.epoch, 0  # equal in an epoch that is resumed
        learn.dl = _NextBatches(learn.dl, self, self._length_of(learn.epoch), self._taken)

    def _length_of(self, epoch: int) -> int: return min(self.every, self._steps - epoch*self.every)

    def begin_pass(self, dl: Iterable) -> None:
        "Begin a pass over `dl`, unless one is going on."
        if self._pass is not None: return
        if not self.done:  # in a resumed run, `dl` is the rest of the pass that it was in
            tell_epoch(innermost(dl), self.passes)
            self.passes += 1
            self._on_new_pass()
        self._pass = iter(dl)

    def next_batch(self, dl: Iterable) -> Any:
        "The next batch of the pass, or the first of a new pass over `dl`. ValueError if that gives none."
        while True:
            self.begin_pass(dl)
            batch = next(self._pass, _END)
            if batch is not _END: break
            if not self.done: raise ValueError(f"the loader gave no batch in epoch {self._epoch}: it is empty, or an "
                                               f"iterator that can be used only once")
            self._pass, self.done = None, 0
        self.done, self._taken = self.done + 1, self._taken + 1
        return batch

    def end_pass(self, dl: Iterable) -> None:
        "Let a pass end now, as in an ordinary epoch, if it has given all its batches."
        if self.done != length_of(dl): return
        batch = next(self._pass, _END)
        if batch is _END: self._pass, self.done = None, 0
        else: self._pass = chain([batch], self._pass)  # the loader gives more than its length

    def cleanup_fit(self, learn: Any) -> None: self._pass = None  # which stops its workers

    def state_dict(self) -> dict[str, Any]:
        "Where the fit stands."
        return dict(steps=self._steps, epoch=self._epoch, taken=self._taken, done=self.done,
                    passes=self.passes)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned. ValueError for more steps after an epoch that the last step had cut short."
        epoch, taken = state['epoch'], state['taken']
        if self._steps > state['steps'] == taken + (epoch or 0)*self.every and taken < self.every:
            raise ValueError(f"the run has ended, with {taken} steps in its last epoch instead of {self.every}: it "
                             f"cannot take more than its {state['steps']} steps")
        self._epoch, self._taken, self.done, self.passes = epoch, taken, state['done'], state.get('passes', 0)


class _NextBatches(WrappedLoader):
    "The rest of an epoch of `n` batches, from passes over `dl`."
    def __init__(self, dl: Iterable, steps: StepsCB, n: int, first_batch: int) -> None:
        super().__init__(dl)
        self.steps, self.n, self.first_batch = steps, n, first_batch

    def __len__(self) -> int: return self.n

    def reaches_end(self) -> bool: return self.steps.steps >= (length_of(self.dl) or math.inf)

    def __iter__(self) -> Iterator:
        self.steps.begin_pass(self.dl)
        for _ in range(self.first_batch, self.n): yield self.steps.next_batch(self.dl)
        self.steps.end_pass(self.dl)


def steps_cbs(n_epochs: int | None, steps: int | None, valid_every: int | None) -> list[StepsCB]:
    "What makes a fit count steps, if it is asked to. ValueError for arguments that do not go together."
    if steps is not None and n_epochs is not None:
        raise ValueError(f"fit was called with n_epochs={n_epochs!r} and steps={steps!r}: pass one of them")
    if steps is None and valid_every is not None: raise ValueError(
        f"valid_every={valid_every!r} counts training batches of fit(steps=…): pass steps too, not n_epochs")
    return [] if steps is None else [StepsCB(steps, valid_every)]


def _batches_per_pass(learn: Any) -> int | None:
    "The batches of a pass over the training loader; None if it has no length and no MaxBatchesCB limits it."
    counts = [length_of(learn.dls.train), *(cb.train for cb in learn.cbs if isinstance(cb, MaxBatchesCB))]
    return min((n for n in counts if n is not None), default=None)


def training_batches(learn: Any) -> int | None:
    "How many training batches the fit takes; None if that is not known."
    steps, n = [cb.steps for cb in learn.cbs if isinstance(cb, StepsCB)], _batches_per_pass(learn)
    if steps: return steps[0]
    return None if n is None else learn.n_epochs*n
