"Predictions of the validation set, and pictures of the first training batch, without training."
import math
from contextlib import ExitStack
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from miniai.callbacks.dry_run import dry_run
from miniai.callbacks.train import SingleBatchCB
from miniai.data.loaders import DataLoaders
from miniai.device import first_tensor, to_cpu
from miniai.distributed.ranks import gathered_parts, world
from miniai.events import PHASES, Callback, CancelFitException, as_list, is_cancel
from miniai.metrics.batch import batch_size, inputs_of, n_inputs
from miniai.metrics.whole import joined
from miniai.show.plots import show_images

__all__ = ['CapturePreds', 'capture_preds', 'first_train_batch', 'show_image_batch']

_NONE = object()


class CapturePreds(Callback):
    """Keeps the predictions and targets of every batch on the CPU, and with `inps` the inputs. When the fit ends, they
    are joined as `all_preds`, `all_targs` and `all_inps`: concatenated, or, if their shapes differ from batch to
    batch, a list with an item per sample."""
    order = SingleBatchCB.order - 0.5
    def __init__(self, inps: bool = True) -> None: self.inps = inps

    def before_fit(self, learn: Any) -> None:
        self.all_inps, self.all_preds, self.all_targs, self._sizes = [], [], [], []
        self._n_inp = n_inputs(learn)

    def after_batch(self, learn: Any) -> None:
        if not getattr(learn, 'counts', True): return
        inps, targs = inputs_of(learn.batch, self._n_inp), learn.batch[self._n_inp:]
        if self.inps: self.all_inps.append(to_cpu(inps[0] if self._n_inp == 1 else tuple(inps)))
        self.all_preds.append(to_cpu(learn.preds))
        self.all_targs.append(to_cpu(targs[0] if len(targs) == 1 else tuple(targs) or None))
        self._sizes.append(batch_size(inps))

    def cleanup_fit(self, learn: Any) -> None:
        if not hasattr(self, '_sizes'): return  # the fit ended before it began
        ended_by = getattr(learn, 'ended_by', None)
        if world() > 1 and (ended_by is None or is_cancel(ended_by)): self._join_processes()
        if not self._sizes: return
        self.all_preds, self.all_targs = (joined(xs, self._sizes) for xs in (self.all_preds, self.all_targs))
        self.all_inps = joined(self.all_inps, self._sizes) if self.inps else None

    def _join_processes(self) -> None:
        "Add the parts of each batch that other processes have."
        lists = self.all_inps, self.all_preds, self.all_targs, self._sizes
        for own, everyones in zip(lists, zip(*gathered_parts(lists), strict=True), strict=True):
            own[:] = [part for batch in zip_longest(*everyones, fillvalue=_NONE) for part in batch if part is not _NONE]


def capture_preds(self: Any, cbs: Any = None, inps: bool = False, dl: Any = None) -> tuple:
    """Predictions and targets of the whole validation set, or of `dl`, any loader, as a pair on the CPU; with `inps`
    the inputs come third. Targets are None if batches have none; a batch may then be a bare tensor. What cannot be
    concatenated, such as batches padded to different lengths, comes as a list with an item per sample. Trains nothing
    and leaves `learn.history` alone."""
    capture = CapturePreds(inps)
    with dry_run(self), ExitStack() as undo:
        if hasattr(dl, 'snapshot'): undo.callback(dl.snapshot())
        if dl is not None: self.dls = DataLoaders(getattr(self.dls, 'train', ()), dl)
        self.fit(1, train=False, cbs=[_BareInputCB(), capture, *as_list(cbs)])
    return (capture.all_preds, capture.all_targs, capture.all_inps)[:3 if inps else 2]


class _BareInputCB(Callback):
    "A batch that is a single tensor has inputs only."
    order = -math.inf
    def before_batch(self, learn: Any) -> None:
        if isinstance(learn.batch, Tensor): learn.batch = (learn.batch,)


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
