"Gradient accumulation: several batches to a step, equal to one large batch. Knows events and the flag `hold_step`."
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial
from itertools import chain
from typing import Any

from torch import Tensor

from miniai.callbacks.dry_run import patch
from miniai.callbacks.metrics import batch_size
from miniai.data.loaders import length_of
from miniai.events import Callback, CancelBatchException

__all__ = ['AccumulateCB']


class AccumulateCB(Callback):
    """Steps once for every `n` training batches, with the gradient of one batch that holds them all. For a loss that
    is a mean over samples: batches weigh by their size (the length of their first tensor), however unequal. An epoch's
    last group steps at its last batch, fewer than `n` though it may have; where a loader does not know its length, or
    gives less, when it has no more, before any `after_epoch`. A batch that is cancelled before its backward counts for
    nothing. A group whose step is cancelled, or that an epoch's cancel or an error cuts short, is dropped, its
    gradients zeroed.

    `learn.loss` stays the batch's own. Until a group is whole `learn.hold_step` is True, and `after_backward`, `step`,
    `after_step` and `zero_grad` are left out, so that who clips or looks at gradients sees whole ones. Schedules still
    count batches, and move when a step is taken. BatchNorm still makes its statistics of each batch.
    ValueError for `n` below 1, for a batch without samples, and after a first step whose `zero_grad` keeps gradients,
    as MomentumLearner's does."""
    order = 1e9  # after all that may change a loss, before what saves the run
    def __init__(self, n: int) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"AccumulateCB: n must be a whole number of batches, 1 or more, got {n!r}")
        self.n, self.planned, self._undo = n, 0, ExitStack()
        self._start_group(None)

    def state_dict(self) -> dict[str, Any]:
        "The group so far."
        return dict(n=self.n, batches=self.batches, samples=self.samples, planned=self.planned,
                    known=self._zeroing_is_known)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave. ValueError where that was for another `n`."
        if state['n'] != self.n: raise ValueError(f"n was {state['n']} in the checkpoint and is {self.n} here")
        self.batches, self.samples, self.planned = state['batches'], state['samples'], state['planned']
        self._zeroing_is_known = state['known']

    def before_fit(self, learn: Any) -> None: self._zeroing_is_known = self.n == 1
    def before_epoch(self, learn: Any) -> None:
        self._start_group(length_of(learn.dl))
        patch(self._undo, learn, '_batches', partial(self._batches, learn, learn._batches))

    def _batches(self, learn: Any, batches: Callable) -> Iterator:
        "The epoch's batches; where they end within a group, its step."
        self._undo.close()
        yield from batches()
        if self.batches: self._finish(learn)

    def _start_group(self, length: int | None) -> None:
        self.batches, self.samples, self.length, self.whole = 0, 0, length, False

    def after_loss(self, learn: Any) -> None:
        if not learn.training: return
        size = _samples_in(learn)
        batches, samples = self.batches + 1, self.samples + size
        whole = batches == self.n or learn.iter + 1 == self.length
        if not self.batches: self.planned = self.n*size
        if whole: self._plan_anew(learn, samples)
        _weigh(learn.loss, size/self.planned, partial(self._count, batches, samples, whole))
        learn.hold_step = not whole

    def _count(self, batches: int, samples: int, whole: bool) -> None:
        self.batches, self.samples, self.whole = batches, samples, whole

    def _plan_anew(self, learn: Any, samples: int) -> None:
        "Gradients so far were weighed for groups of `planned` samples; let them be weighed for `samples`."
        if samples != self.planned and self.batches:
            for g in _gradients(learn): g.mul_(self.planned/samples)
        self.planned = samples

    def after_step(self, learn: Any) -> None: self._start_group(self.length)

    def cleanup_batch(self, learn: Any) -> None:
        if self.whole: self._drop(learn)

    def after_batch(self, learn: Any) -> None:
        if self._zeroing_is_known or not learn.training or learn.hold_step: return
        self._zeroing_is_known = True
        if any(g.any() for g in _gradients(learn)):
            raise ValueError(f"AccumulateCB cannot tell a group's gradients from those that {type(learn).__name__} "
                             f"keeps in its zero_grad phase: use it with a Learner that zeroes them, such as "
                             f"TrainLearner, and take momentum from the optimizer")

    def _finish(self, learn: Any) -> None:
        self._plan_anew(learn, self.samples)
        learn.hold_step = False
        try:
            learn.callback('after_backward')
            learn.step()
            learn.callback('after_step')
            learn.zero_grad()
        except CancelBatchException: self._drop(learn)

    def cleanup_epoch(self, learn: Any) -> None:
        self._undo.close()
        if self.batches: self._drop(learn)

    def cleanup_fit(self, learn: Any) -> None: learn.hold_step = False

    def _drop(self, learn: Any) -> None:
        self._start_group(self.length)
        learn.zero_grad()


def _samples_in(learn: Any) -> int:
    "The batch's samples. ValueError where there are none."
    size = batch_size(learn.batch)
    if size: return size
    raise ValueError(f"AccumulateCB weighs batches by their samples, and batch {learn.iter} of epoch {learn.epoch} "
                     f"(both counted from 0) has none: let the loader leave empty batches out")


def _weigh(loss: Any, weight: float, begun: Callable[[], None]) -> None:
    """Let gradients that flow back from `loss` be multiplied by `weight`, and `begun` be called when they begin to; the
    loss itself stays."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"AccumulateCB needs a loss that is a tensor, got a {type(loss).__name__}")
    if not loss.requires_grad: return begun()
    def weighed(g: Tensor) -> Tensor:
        begun()
        return g*weight
    loss.register_hook(weighed)


def _gradients(learn: Any) -> Iterable[Tensor]:
    "Every gradient of the model's parameters and of the optimizer's other ones."
    groups = (g['params'] for g in getattr(learn.opt, 'param_groups', ()))
    params = {id(p): p for p in chain(learn.model.parameters(), *groups)}
    return [p.grad for p in params.values() if p.grad is not None]
