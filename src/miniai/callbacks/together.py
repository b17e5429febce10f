"Callbacks of a fit on several processes: each gets its part of every batch, and all share losses and decisions."
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from miniai.callbacks.trained import loss_parameters
from miniai.callbacks.wrapped import WrappedLoader
from miniai.data.loaders import length_of
from miniai.data.parts import in_parts, innermost, known_batch_size
from miniai.device import is_number
from miniai.distributed.ranks import most, part, rank, total, total_on_device, world
from miniai.distributed.wrap import is_wrapped, share_buffers, what_trains
from miniai.events import Callback, CancelBatchException, CancelEpochException, CancelFitException, is_cancel
from miniai.metrics.metrics import MetricsCB
from miniai.metrics.weight import is_sum, sum_error, summed, weight_of

__all__ = ['PartCB', 'TogetherCB', 'rank_cbs', 'join_parts']

_CANCELS = CancelFitException, CancelEpochException, CancelBatchException  # from wide to narrow


def rank_cbs() -> list[Callback]:
    "What a fit needs on several processes; nothing on one."
    return [PartCB(), TogetherCB()] if world() > 1 else []


class PartCB(Callback):
    "Gives this process its part of every batch, and lets a pass end for all processes together."
    order, only_shows = -2e9, True  # MaxBatchesCB and all others see this process's part

    def before_epoch(self, learn: Any) -> None: learn.dl = _PartLoader(learn, learn.dl)

    def after_epoch(self, learn: Any) -> None:
        "Compute metrics while all processes are here: after this one of them may end the epoch or the fit."
        for cb in dict.fromkeys([*learn.cbs, getattr(learn, 'metrics', None)]):
            if isinstance(cb, MetricsCB): cb.compute()


class _PartLoader(WrappedLoader):
    """This process's part of each batch of `dl`. `learn.counts` is False for a batch that only repeats samples, since
    there are fewer than processes, or since this process has no more data while others have."""
    def __init__(self, learn: Any, dl: Iterable) -> None:
        super().__init__(dl)
        _check_batch_size(learn, innermost(dl))
        self.learn, n = learn, -1 if length_of(dl) is None else length_of(dl)
        longest, shortest = (sign*x for sign, x in zip((1, -1), most([n, -n]), strict=True))
        self.n = int(longest) if shortest >= 0 else None
        self.may_differ = self.n is None or shortest != longest

    def __len__(self) -> int:
        if self.n is None: raise TypeError("the number of batches is not known")
        return self.n

    def __iter__(self) -> Iterator:
        parts = in_parts(self.dl, self.first_batch)
        for batch, counts in _until_all_end(parts) if self.may_differ else parts:
            self.learn.counts = counts
            yield batch
        self.learn.counts = True


def _check_batch_size(learn: Any, dl: Any) -> None:
    bs, parts = known_batch_size(dl), part()[1]
    if learn.model.training and bs is not None and bs < parts: raise ValueError(
        f"the batch size, {bs}, is that of all {parts} processes together, and must not be less than their number")


def _until_all_end(parts: Iterator) -> Iterator:
    "All processes end together: one that has no batch left repeats its last one, which does not count."
    batch = None
    while True:
        batch, counts = next(parts, (batch, None))
        if not most([float(counts is not None)])[0]: return
        if batch is None: raise ValueError(f"there is no batch for process {rank()}, but for others there is: the data "
                                           f"must have a batch for each of the {world()} processes")
        yield batch, bool(counts)


class TogetherCB(Callback):
    """Shares the loss of each training batch: all processes see that of the whole batch, and each one's gradient weighs
    as much as its part of it. Shares what cancels a batch, an epoch or the fit: if one process raises it, all do. A
    callback may have `asks()`, a list of numbers; at the end of each batch its `answer(numbers)` gets the largest of
    each that any process has. Callbacks may have `join_parts()`, which all processes call at the end of each epoch."""
    order, only_shows = 1e8, True  # after callbacks that change the loss, before AccumulateCB

    def before_fit(self, learn: Any) -> None:
        self._weigh, self._epoch_shared, self._batch_shared, self.batch_weight = None, False, False, None
        self._asking = [cb for cb in learn.cbs if hasattr(cb, 'asks')]

    def before_epoch(self, learn: Any) -> None:
        trains = world() > 1 and learn.model.training and any(what_trains(learn.model))
        if trains and not is_wrapped(learn.model): raise ValueError(
            f"{world()} processes train together, but the model is not wrapped, so each would train its own: add "
            f"DistributedCB('ddp') to cbs")
        self._epoch_shared = True
        _follow(learn, total(_cancels(None)))
        share_buffers(learn.model)

    def after_loss(self, learn: Any) -> None:
        if not learn.model.training: return
        self._batch_shared = True
        if isinstance(learn.loss, Tensor) and is_number(learn.loss): learn.loss = self._shared(learn, learn.loss)
        else: _follow(learn, total([*_cancels(None), 0., 0.]))

    def _shared(self, learn: Any, loss: Tensor) -> Tensor:
        "The loss of the whole batch, whose gradient here is that of this process's part, by its weight."
        weight = self._weight(learn) if getattr(learn, 'counts', True) else 0.
        if loss.is_cpu:
            *cancels, loss_sum, weights = total([*_cancels(None), loss.item()*weight if weight else 0., weight])
            _follow(learn, cancels)
            weights = weights or math.nan
        else:
            _follow(learn, total([*_cancels(None), 0., 0.]))
            weight = torch.as_tensor(weight, dtype=torch.float64, device=loss.device)
            mine = torch.stack([torch.where(weight == 0, 0., loss.detach().double()*weight), weight])
            loss_sum, weights = total_on_device(mine)
        self.batch_weight = weights
        if self._weigh is summed: weights = world()/part()[1]  # processes that share a part have the same loss
        return _SharedLoss.apply(loss, loss_sum/weights, world()*weight/weights)

    def _weight(self, learn: Any) -> float | Tensor:
        if self._weigh is None:
            own = next((cb.weight for cb in learn.cbs if getattr(cb, 'weight', None) is not None), None)
            self._weigh = weight_of(learn, own)
            if own is None and self._weigh is not summed and is_sum(learn): raise sum_error(learn.loss_func)
        weight = self._weigh(learn)
        return weight.item() if isinstance(weight, Tensor) and weight.is_cpu else weight

    def after_backward(self, learn: Any) -> None:
        for p in loss_parameters(learn).values():  # the model's gradients are averaged by its wrapper
            if p.grad is not None: total_on_device(p.grad).div_(world())

    def cleanup_batch(self, learn: Any) -> None:
        if learn.ended_by is not None and not is_cancel(learn.ended_by): return  # this process ends, and so will all
        if learn.model.training and not self._batch_shared:  # the others wait in after_loss
            total([*_cancels(learn.ended_by), 0., 0.])
        self._batch_shared = False
        asked = [cb.asks() for cb in self._asking]
        shared = most([*_cancels(learn.ended_by), *(x for numbers in asked for x in numbers)])
        cancels, answers = shared[:3], shared[3:]
        for cb, numbers in zip(self._asking, asked, strict=True):
            cb.answer(answers[:len(numbers)])
            answers = answers[len(numbers):]
        _follow(learn, cancels)

    def cleanup_epoch(self, learn: Any) -> None:
        if learn.ended_by is not None and not is_cancel(learn.ended_by): return
        if not self._epoch_shared: total(_cancels(learn.ended_by))  # the others wait in before_epoch
        self._epoch_shared = False
        cancels = total(_cancels(learn.ended_by))
        join_parts(learn)
        _follow(learn, cancels)


def join_parts(learn: Any) -> None:
    "Let callbacks put together what processes have of their parts of batches. All processes call it."
    for cb in learn.cbs:
        if hasattr(cb, 'join_parts'): cb.join_parts()


def _cancels(error: BaseException | None) -> list[float]: return [float(isinstance(error, kind)) for kind in _CANCELS]


def _follow(learn: Any, cancels: list[float]) -> None:
    "Raise what another process has raised, unless this one has."
    kind = next((kind for kind, n in zip(_CANCELS, cancels, strict=False) if n), None)
    if kind is not None and not isinstance(learn.ended_by, kind): raise kind("raised in another process")


class _SharedLoss(torch.autograd.Function):
    "The number `value`; its gradient is that of `loss` times `factor`."
    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: Any, factor: Any) -> Tensor:
        ctx.factor = factor
        return loss.new_zeros(loss.shape) + value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple: return g*ctx.factor, None, None
