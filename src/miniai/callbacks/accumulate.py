"Gradient accumulation: one step for several batches, equal to a step with one large batch."
import math
import warnings
from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import Tensor
from torch.autograd import Variable

from miniai.callbacks.together import TogetherCB
from miniai.callbacks.wrapped import WrappedLoader
from miniai.data.loaders import length_of
from miniai.device import to_scalar
from miniai.distributed.ranks import world
from miniai.distributed.wrap import average_in_backward, average_kept
from miniai.events import Callback, CancelBatchException, is_cancel
from miniai.metrics.batch import batch_size
from miniai.metrics.weight import Weight, check_weight, is_sum, sum_error, summed, weight_of

__all__ = ['AccumulateCB']


class AccumulateCB(Callback):
    """Steps once per `n` training batches, with the gradient of one batch that holds them all. A batch weighs as much
    as the number of its samples, or what PyTorch's cross-entropy divides by, or `weight(learn)`; batches of a loss that
    is a sum add up (PyTorch's with reduction='sum', or weight='sum'). An epoch's last group may be smaller. Processes
    average their gradients in the last backward of a group.

    While a group is incomplete `learn.hold_step` is True: `after_backward`, `step`, `after_step` and `zero_grad` are
    skipped. A batch cancelled before its backward is not counted; a group is dropped if its step is cancelled, if an
    error or a cancelled epoch cuts it short, and, with a warning, if a batch is cancelled in its backward. ValueError
    if `n` is below 1, for a batch without samples, for a sum without weight='sum', and for a Learner whose `zero_grad`
    keeps gradients, as MomentumLearner's does."""
    order = 1e9  # after callbacks that change the loss, before those that save the run
    def __init__(self, n: int, weight: Weight = None) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"AccumulateCB: n must be a whole number of batches, 1 or more, got {n!r}")
        check_weight('AccumulateCB', weight)
        self.n, self.weight, self.length = n, weight, None
        self.planned, self._adds_up = 0, False  # gradients are weighted for a group of this weight
        self._weighting, self._averages = _WeightingCB(self), True
        self._start_group()

    def _start_group(self) -> None:
        self.batches, self.samples, self.complete, self.in_backward = 0, 0, False, False

    def before_fit(self, learn: Any) -> None:
        self._zeroing_checked = self.n == 1
        if not hasattr(learn, 'hold_step'):
            raise TypeError(f"AccumulateCB needs a Learner that, while learn.hold_step is True, skips all that follows "
                            f"backward in a batch; {type(learn).__name__} has no hold_step: use a Learner of miniai")
        if self.n == 1: return
        self._warn_of_other_losses(learn)
        learn.cbs.append(self._weighting)

    def _warn_of_other_losses(self, learn: Any) -> None:
        "A second optimizer and a backward of the user's are the signs of a second loss, as in a GAN."
        owner = next((o for o in (learn, *learn.cbs) if hasattr(o, 'backward')
                      and not (getattr(o.backward, '__module__', None) or '').startswith('miniai.')), None)
        others = [nm for nm, o in vars(learn).items() if hasattr(o, 'param_groups') and o is not learn.opt]
        if owner is not None and others: warnings.warn(
            f"AccumulateCB averages the gradients of learn.loss over {self.n} batches. {type(owner).__name__}.backward "
            f"is your own: if it also computes gradients of other losses, such as that of learn.{others[0]}, these are "
            f"added up, not averaged. Divide those losses by {self.n}", stacklevel=4)

    def before_epoch(self, learn: Any) -> None:
        self._start_group()
        self.length, self._weigh, self._adds_up = length_of(learn.dl), None, False
        if learn.model.training: learn.dl = WrappedLoader(learn.dl, at_end=lambda: self._finish(learn))

    def before_batch(self, learn: Any) -> None:
        if learn.model.training: self._average(learn, self._completes(learn))

    def _completes(self, learn: Any) -> bool: return self.batches + 1 == self.n or learn.iter + 1 == self.length

    def _average(self, learn: Any, on: bool) -> None:
        if on != self._averages and world() > 1: average_in_backward(learn.model, on)
        self._averages = on

    def after_loss(self, learn: Any) -> None:
        if not learn.model.training: return
        if not batch_size(learn.batch):
            raise ValueError(f"AccumulateCB weights batches by their samples, and batch {learn.iter} of epoch "
                             f"{learn.epoch} (both counted from 0) has none: let the loader skip empty batches")
        if not isinstance(learn.loss, Tensor):
            raise TypeError(f"AccumulateCB needs a loss that is a tensor, got a {type(learn.loss).__name__}")
        size = self._weight_of_batch(learn)
        batches, samples, complete = self.batches + 1, self.samples + size, self._completes(learn)
        if not self.batches: self.planned = self.n*(size + (size == 0))
        weight = 1. if self._adds_up else size/self.planned
        def start_backward(g: Tensor | None = None) -> Tensor | None:
            "The batch counts from the moment its gradients begin to flow, weighted."
            self.batches, self.samples, self.complete = batches, samples, complete
            if g is None: return None
            self.in_backward = True
            Variable._execution_engine.queue_callback(self._end_backward)
            return g*weight
        if learn.loss.requires_grad: learn.loss.register_hook(start_backward)
        else: start_backward()
        learn.hold_step = not complete

    def _weight_of_batch(self, learn: Any) -> float | Tensor:
        if self._weigh is None:
            self._weigh = weight_of(learn, self.weight)
            self._adds_up = self._weigh is summed
            if self.weight is None and not self._adds_up and is_sum(learn):
                raise sum_error(learn.loss_func)
        of_all = next((cb.batch_weight for cb in learn.cbs if isinstance(cb, TogetherCB)), None)
        return to_scalar(self._weigh(learn) if of_all is None else of_all)

    def weigh_group(self, learn: Any) -> None:
        "Change the weights of the gradients to those of the group as it is."
        if self._adds_up: return
        samples = self.samples + (self.samples == 0)
        if isinstance(samples, Tensor) or samples != self.planned:
            for g in _gradients(learn): g.mul_(self.planned/samples)
        self.planned = samples

    def _end_backward(self) -> None: self.in_backward = False

    def after_step(self, learn: Any) -> None: self._start_group()

    def after_batch(self, learn: Any) -> None:
        if not self._zeroing_checked and learn.model.training and not learn.hold_step: self._check_zeroing(learn)

    def _check_zeroing(self, learn: Any) -> None:
        self._zeroing_checked = True
        held = {id(p) for g in getattr(learn.opt, 'param_groups', ()) for p in g['params']}
        others = [nm for nm, p in learn.model.named_parameters()
                  if held and id(p) not in held and p.grad is not None and p.grad.any()]
        if others:
            raise ValueError(f"AccumulateCB: {len(others)} parameter(s) that learn.opt does not hold, such as "
                             f"{others[0]}, still have gradients after zero_grad: zero them there too, as "
                             f"learn.model.zero_grad() does, or freeze them by requires_grad_(False)")
        if any(g.any() for g in _gradients(learn)):
            raise ValueError(f"AccumulateCB cannot be used with {type(learn).__name__}, whose zero_grad keeps "
                             f"gradients: use a Learner that zeroes them, such as TrainLearner, and take momentum from "
                             f"the optimizer")

    def cleanup_batch(self, learn: Any) -> None:
        if not learn.training: return
        cut = self.in_backward or self._zeroed(learn)
        if cut and isinstance(learn.ended_by, CancelBatchException): warnings.warn(
            f"AccumulateCB: batch {learn.iter} of epoch {learn.epoch} (both counted from 0) was cancelled in its "
            f"backward: the gradients of its group are not complete, and are dropped", stacklevel=2)
        if cut or self.complete: self._drop(learn)
        learn.hold_step = self.batches > 0

    def _zeroed(self, learn: Any) -> bool:
        "Are the gradients of an incomplete group gone, because its last batch was cancelled as its backward began?"
        waits = self.batches and not self.complete and not learn.hold_step
        return bool(waits) and not any(g.any() for g in _gradients(learn))

    def _finish(self, learn: Any) -> None:
        "At the end of the epoch, step with an incomplete last group."
        if not self.batches: return
        if world() > 1: average_kept(learn.model)
        learn.hold_step = False
        try:
            learn.callback('after_backward')
            learn.step()
            learn.callback('after_step')
            learn.zero_grad()
        except CancelBatchException: self._drop(learn)

    def _drop(self, learn: Any) -> None:
        failed = learn.ended_by is not None and not is_cancel(learn.ended_by)
        if world() > 1 and self.batches and not self.complete and not failed: average_kept(learn.model)  # FSDP2 has it
        self._start_group()
        learn.zero_grad()

    def cleanup_epoch(self, learn: Any) -> None:
        if self.batches: self._drop(learn)
        self._average(learn, True)

    def cleanup_fit(self, learn: Any) -> None:
        learn.hold_step = False
        learn.cbs[:] = [cb for cb in learn.cbs if cb is not self._weighting]

    def state_dict(self) -> dict[str, Any]:
        "The group so far."
        return dict(n=self.n, batches=self.batches, samples=self.samples, planned=self.planned,
                    known=self._zeroing_checked, adds_up=self._adds_up)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned. ValueError if that was for another `n`."
        if state['n'] != self.n: raise ValueError(f"n was {state['n']} in the checkpoint and is {self.n} now")
        self.batches, self.samples, self.planned = state['batches'], state['samples'], state['planned']
        self._zeroing_checked, self._adds_up = state['known'], state.get('adds_up', False)


class _WeightingCB(Callback):
    "Gives the gradients of a group their weights before any other callback sees them."
    order, only_shows = -math.inf, True
    def __init__(self, accumulate: AccumulateCB) -> None: self._accumulate = accumulate
    def after_backward(self, learn: Any) -> None: self._accumulate.weigh_group(learn)


def _gradients(learn: Any) -> Iterable[Tensor]:
    "The gradients of the model's parameters, and of parameters that only the optimizer has."
    groups = (g['params'] for g in getattr(learn.opt, 'param_groups', ()))
    params = {id(p): p for p in chain(learn.model.parameters(), *groups)}
    return [p.grad for p in params.values() if p.grad is not None]
