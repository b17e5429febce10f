"Predictions of the validation set, and pictures of the first training batch, without training."
import math
from typing import Any

import torch
from torch import Tensor

from miniai.callbacks.dry_run import dry_run
from miniai.callbacks.train import SingleBatchCB, inputs_of, n_inputs
from miniai.device import first_tensor, to_cpu
from miniai.events import PHASES, Callback, CancelFitException, as_list
from miniai.show.plots import show_images

__all__ = ['CapturePreds', 'capture_preds', 'first_train_batch', 'show_image_batch']


class CapturePreds(Callback):
    """Keeps the inputs, predictions and targets of every batch on the CPU. When the fit ends, they are concatenated as
    `all_inps`, `all_preds` and `all_targs`."""
    order = SingleBatchCB.order - 0.5
    def before_fit(self, learn: Any) -> None:
        self.all_inps, self.all_preds, self.all_targs = [], [], []
        self._n_inp = n_inputs(learn)

    def after_batch(self, learn: Any) -> None:
        inps, targs = inputs_of(learn.batch, self._n_inp), learn.batch[self._n_inp:]
        self.all_inps.append(to_cpu(inps[0] if self._n_inp == 1 else tuple(inps)))
        self.all_preds.append(to_cpu(learn.preds))
        self.all_targs.append(to_cpu(targs[0] if len(targs) == 1 else tuple(targs) or None))

    def cleanup_fit(self, learn: Any) -> None:
        if not getattr(self, 'all_preds', None): return
        self.all_preds, self.all_targs, self.all_inps = map(_joined, (self.all_preds, self.all_targs, self.all_inps))


def _joined(xs: list) -> Any:
    "One nest from those of several batches: tensors are concatenated, anything else is kept in a list."
    first = xs[0]
    if isinstance(first, Tensor): return torch.cat(xs) if first.ndim else torch.stack(xs)
    if isinstance(first, tuple | list): return tuple(map(_joined, map(list, zip(*xs, strict=True))))
    if isinstance(first, dict): return {k: _joined([x[k] for x in xs]) for k in first}
    return None if first is None else xs


def capture_preds(self: Any, cbs: Any = None, inps: bool = False) -> tuple:
    """Predictions and targets of the whole validation set, as a pair on the CPU; with `inps` the inputs come third.
    Targets are None if batches have none. Trains nothing and leaves `learn.history` alone."""
    capture = CapturePreds()
    with dry_run(self): self.fit(1, train=False, cbs=[capture, *as_list(cbs)])
    return (capture.all_preds, capture.all_targs, capture.all_inps)[:3 if inps else 2]


class _StopAtCB(Callback):
    "Stops the fit at `event`, after all other callbacks. Provides the phases that come later, so that none is missing."
    order, stands_in = math.inf, True
    def __init__(self, event: str) -> None:
        setattr(self, event, self._stop)
        for phase in PHASES if event == 'before_batch' else PHASES[1:]: setattr(self, phase, self._nothing)

    def _stop(self, learn: Any) -> None: raise CancelFitException()
    def _nothing(self, learn: Any) -> None: "The fit ends before this phase."


def first_train_batch(learn: Any, event: str, cbs: list) -> Any:
    "Run the first training batch up to and including `event`, and return it. The Learner is left as it was."
    with dry_run(learn, trains=True):
        no_optimizer = learn.opt_func is None and learn.opt is None
        if no_optimizer or not any(p.requires_grad for p in learn.model.parameters()):
            # An optimizer that steps nothing, so that the checks before the fit pass.
            learn.opt_func = lambda params, lr: torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
        learn.loss_func = learn.loss_func or (lambda preds, *targets: preds)
        learn.fit(1, valid=False, lr=learn.lr or 0., cbs=[_StopAtCB(event), *cbs])
        return learn.batch


def show_image_batch(self: Any, max_n: int = 9, cbs: Any = None, **kwargs: Any) -> None:
    """Show up to `max_n` inputs of the first training batch as images, after the callbacks have changed them. Trains
    nothing. `kwargs` go to `show_images`."""
    batch = first_train_batch(self, 'before_batch', as_list(cbs))
    show_images(first_tensor(batch)[:max_n], **kwargs)
