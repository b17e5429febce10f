"Callbacks of a check before training: one looks at a few batches, the other learns one batch by heart."
import math
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from miniai.callbacks.train import as_tuple
from miniai.callbacks.trained import trained_parameters
from miniai.data.loaders import length_of
from miniai.device import is_number, map_tensors, to_scalar
from miniai.diagnosis.few_batches import FewBatchesCB
from miniai.diagnosis.memory import bytes_of, kept_for_backward, state_bytes
from miniai.diagnosis.ranges import kind_of, of_outputs
from miniai.distributed.dtensor import is_dtensor
from miniai.events import Callback, CancelFitException
from miniai.metrics.batch import batch_size, n_inputs, target_slice

__all__ = []


class ProbeCB(Callback):
    """Looks at the first batch of each phase and at the gradients, measures the memory of the first training batch, and
    times the others. `seen`, `seconds` and `lengths` are figures by phase, 'train' and 'valid'. Without `keeps` the
    memory for the backward pass is not measured."""
    order, only_shows = math.inf, True

    def __init__(self, few: FewBatchesCB, keeps: bool) -> None:
        self.few, self.keeps, self.seen, self.lengths, self.memory, self.gradients = few, keeps, {}, {}, {}, None
        self.seconds, self.inputs_known = dict(train=[], valid=[]), False
        self._undo, self._phase, self._first = ExitStack(), '', False

    def before_epoch(self, learn: Any) -> None:
        self._phase = 'train' if learn.model.training else 'valid'
        self.lengths[self._phase] = length_of(learn.dl)

    def before_batch(self, learn: Any) -> None:
        self._first = self._phase not in self.seen
        if not self._first: return
        self.inputs_known = isinstance(learn.batch, tuple | list)
        inputs, targets = _parts(learn) if self.inputs_known else (learn.batch, ())
        found = self.seen[self._phase] = dict(n=batch_size(learn.batch), inputs=kind_of(inputs))
        found['targets'] = kind_of(targets) if targets else {}
        if self._phase == 'train':
            self._kept = self._undo.enter_context(kept_for_backward() if self.keeps else nullcontext([None]))

    def after_loss(self, learn: Any) -> None:
        self._undo.close()
        if self._first:
            self.seen[self._phase]['outputs'] = of_outputs(learn.preds)
            if is_number(learn.loss): self.seen[self._phase]['loss'] = float(to_scalar(learn.loss))
        if learn.model.training and not math.isfinite(self.seen['train'].get('loss', 0.)): raise CancelFitException()

    def after_backward(self, learn: Any) -> None:
        grads = {nm: p.grad for nm, p in learn.model.named_parameters() if p.requires_grad}
        if any(g is not None for g in grads.values()): self.gradients = grads and _about_gradients(grads)

    def cleanup_batch(self, learn: Any) -> None:
        self._undo.close()
        if not all(p.is_cpu for p in learn.model.parameters()): torch.accelerator.synchronize()
        if not self._first: self.seconds[self._phase].append(perf_counter() - self.few.given)
        elif self._phase == 'train':
            params = list(trained_parameters(learn))
            self.memory = dict(parameters=bytes_of(params), gradients=bytes_of(p for p in params if p.requires_grad),
                               optimizer=state_bytes(learn.opt), activations=self._kept[0])


def _parts(learn: Any) -> tuple[Any, Any]:
    "Inputs and targets of a batch that is a tuple."
    return learn.batch[:n_inputs(learn)], learn.batch[target_slice(learn)]


def _about_gradients(grads: dict[str, Tensor | None]) -> dict[str, Any]:
    "Names of parameters whose gradient is missing, not finite, or zero everywhere; of a DTensor this is not known."
    there = {nm: g.coalesce().values() if g.is_sparse else g for nm, g in grads.items()
             if g is not None and not is_dtensor(g)}
    return dict(n=len(grads), missing=[nm for nm, g in grads.items() if g is None],
                not_finite=[nm for nm, g in there.items() if not bool(g.isfinite().all())],
                zero=[nm for nm, g in there.items() if g.numel() and not bool(g.any())])


class OverfitCB(Callback):
    """Gives the model its first batch, as the other callbacks leave it, again and again, with `zeros` instead of its
    inputs. `losses` has the loss of each; the fit stops at one that is not finite."""
    order, only_shows = math.inf, True
    def __init__(self, zeros: bool) -> None: self.zeros, self.losses, self._batch = zeros, [], None

    def before_batch(self, learn: Any) -> None:
        if self._batch is None: self._batch = _copied(_without_inputs(learn) if self.zeros else learn.batch)
        learn.batch = _copied(self._batch)

    def after_loss(self, learn: Any) -> None:
        if is_number(learn.loss): self.losses.append(float(to_scalar(learn.loss)))
        if self.losses and not math.isfinite(self.losses[-1]): raise CancelFitException()


def _copied(batch: Any) -> Any: return map_tensors(lambda t: t.clone(), batch)


def _without_inputs(learn: Any) -> tuple:
    targets = {nm for cb in learn.cbs for nm in as_tuple(getattr(cb, 'targets', None)) if isinstance(nm, str)}
    n = n_inputs(learn)
    return (*(_zeros(x, targets) for x in learn.batch[:n]), *learn.batch[n:])


def _zeros(x: Any, targets: set[str]) -> Any:
    "Zeros for the inputs. Masks stay, and targets in a dict of inputs, as models of Hugging Face take them."
    if isinstance(x, Mapping):
        return type(x)({k: v if k in targets or 'mask' in str(k) else _zeros(v, targets) for k, v in x.items()})
    return map_tensors(lambda t: t if t.dtype == torch.bool else torch.zeros_like(t), x)
