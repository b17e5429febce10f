"A look at the first batch of a fit, for what will go wrong later or silently."
import math
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from miniai.callbacks.accumulate import AccumulateCB
from miniai.callbacks.trained import check_trained
from miniai.callbacks.wrapped import WrappedLoader
from miniai.data.loaders import last_batch_size, length_of
from miniai.data.parts import is_divided
from miniai.distributed.ranks import part, world
from miniai.events import Callback
from miniai.metrics.batch import batch_size
from miniai.metrics.metrics import MetricsCB
from miniai.metrics.weight import hides_sum, hides_weights

__all__ = ['FirstBatchCB']


class FirstBatchCB(Callback):
    """Checks, before and in the first batch of a fit, what training will do, then removes itself. Every fit adds it.
    ValueError if nothing can train, or if a batch norm will refuse a last batch of one sample. Warnings for parameters
    of a loss that the optimizer lacks, for items of a batch that nothing uses, and for losses of unknown weight."""
    order, only_shows = math.inf, True
    def __init__(self) -> None: self._hooks = []

    def before_epoch(self, learn: Any) -> None:
        if learn.model.training: check_trained(learn)

    def before_batch(self, learn: Any) -> None:
        _warn_of_unused_items(learn)
        if learn.model.training and not learn.dry_run: self._hooks = _watch_batch_norms(learn)

    def after_loss(self, learn: Any) -> None:
        names = {type(cb).__name__: cb for cb in (*learn.cbs, learn.metrics)  # ProgressCB may have its own
                 if isinstance(cb, MetricsCB | AccumulateCB) and cb.weight is None}
        if names and learn.model.training and not learn.dry_run: _warn_of_weights(learn, ' and '.join(names))

    def cleanup_batch(self, learn: Any) -> None:
        for hook in self._hooks: hook.remove()
        del learn.cbs[next(i for i, cb in enumerate(learn.cbs) if cb is self)]


def _warn_of_weights(learn: Any, names: str) -> None:
    if hides_weights(learn): warnings.warn(
        f"the loss weighs classes or ignores some targets, but {names} will weigh each batch by its samples, so that "
        f"means over batches differ from those over all targets. Say what a batch weighs, such as "
        f"weight=lambda learn: (learn.batch[1] != -100).sum()", stacklevel=3)
    if hides_sum(learn) and length_of(learn.dl) != 1: warnings.warn(
        f"the loss is a sum over the batch, or a part of it is, but {names} will average it over batches by their "
        f"samples. If all of it is a sum, pass weight='sum'; otherwise use a mean", stacklevel=3)


def _warn_of_unused_items(learn: Any) -> None:
    phases = {getattr(getattr(learn, p), '__qualname__', '') for p in ('predict', 'get_loss')}
    if phases != {'TrainLearner.predict', 'TrainLearner.get_loss'} or not isinstance(learn.batch, tuple | list): return
    if len(learn.batch) > 2: warnings.warn(
        f"the batch has {len(learn.batch)} items and TrainLearner uses 2, as input and target. To use all of them, "
        f"take Learner with TrainCB(n_inp=…): the first n_inp go to the model, the rest to the loss", stacklevel=2)


def _watch_batch_norms(learn: Any) -> list:
    "If some batch has one sample, hooks that refuse batch norms that get only as many values per channel as samples."
    size, dl = batch_size(learn.batch), learn.dl
    while isinstance(dl, WrappedLoader) and dl.reaches_end(): dl = dl.dl
    last = _smallest_part(dl)
    if size != 1 and last != 1: return []
    which = 'a training batch' if size == 1 else f'the last of the {len(dl)} training batches'
    what = f'{which} has 1 sample{" in a process"*(world() > 1)}, but'
    return [m.register_forward_pre_hook(_refusal(f'{what} layer {nm!r}' if nm else f'{what} the model', size))
            for nm, m in learn.model.named_modules()
            if isinstance(m, _BatchNorm) and m.training and not isinstance(m, nn.SyncBatchNorm)]


def _smallest_part(dl: Any) -> int | None:
    "The fewest samples of the last batch that a process gets; None if that is not known."
    n = last_batch_size(dl)
    return n if n is None or is_divided(dl) else max(n//part()[1], 1)


def _refusal(what: str, size: int) -> Callable[[nn.Module, tuple], None]:
    def check(norm: nn.Module, args: tuple) -> None:
        if args and args[0].numel()//args[0].shape[1] == size: raise ValueError(
            f"{what}, a {type(norm).__name__} in training mode, needs more than 1 value per channel: set "
            f"drop_last=True in the training loader, or use another batch size")
    return torch.compiler.disable(check) if 'torch._dynamo' in sys.modules else check
