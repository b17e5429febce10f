"DistributedCB: trains a model on all the processes that torchrun started, by DDP or FSDP2."
from typing import Any

import torch

from miniai.device import to_device
from miniai.distributed.ranks import rank, split_data_over, start, world
from miniai.distributed.wrap import (
    check_gradients,
    is_wrapped,
    replace_parameters,
    shard,
    sync_batchnorms,
    what_trains,
    wrap_ddp,
)
from miniai.events import Callback
from miniai.randomness import set_seed

__all__ = ['DistributedCB', 'draw_apart']


class DistributedCB(Callback):
    """Trains on the processes that `torchrun` started, with the results of one process: batches, whose size is that of
    all processes together, are divided among them, and so are figures and decisions. `how` is 'ddp', which keeps the
    whole model in each process, or 'fsdp', which divides weights, gradients and optimizer state. None means that the
    model is prepared already. `options` go to DistributedDataParallel, or are those of `shard`: blocks, mesh,
    mixed_precision, reshard, offload. `data` is the mesh to divide batches over, for a model that is tensor parallel.
    `sync_batchnorm` lets BatchNorm see the batches of all processes, by nn.SyncBatchNorm, on GPUs. The group starts
    here, and ends with the process. Without torchrun it does nothing but choose a device."""
    order, only_shows = 10, True  # a run may resume on any number of processes
    def __init__(self, how: str | None = 'ddp', device: str | None = None, data: Any = None,
                 sync_batchnorm: bool = False, **options: Any) -> None:
        if how not in ('ddp', 'fsdp', None):
            raise ValueError(f"DistributedCB: how must be 'ddp' or 'fsdp', got {how!r}")
        self._how, self._options, self._own, self._seeded = how, options, None, False
        self._sync, self._unsync, self._seen = sync_batchnorm, None, False
        self._device = start(device)
        if sync_batchnorm and world() > 1 and self._device.type == 'cpu': raise ValueError(
            "sync_batchnorm=True needs GPUs, as torch's SyncBatchNorm does: leave it out, or use another norm, such as "
            "nn.GroupNorm")
        if data is not None: split_data_over(data)

    def before_fit(self, learn: Any) -> None:
        learn.model.to(self._device)
        if self._sync and world() > 1: self._unsync = sync_batchnorms(learn.model)
        if world() == 1 or self._how is None or is_wrapped(learn.model): return
        self._own, self._seen = learn.model, False
        if self._how == 'fsdp': self._shard(learn)
        self._wrap(learn)
        if not self._seeded: draw_apart()
        self._seeded = True

    def _shard(self, learn: Any) -> None:
        before = dict(learn.model.named_parameters())
        shard(learn.model, **self._options)
        if learn.opt is not None: replace_parameters(learn.opt, before, dict(learn.model.named_parameters()))

    def _wrap(self, learn: Any) -> None:
        self._trained = what_trains(self._own)
        if self._how == 'ddp': learn.model = wrap_ddp(self._own, self._device, **self._options)

    def before_epoch(self, learn: Any) -> None:
        if self._own is not None and what_trains(self._own) != self._trained: self._wrap(learn)

    def before_batch(self, learn: Any) -> None: learn.batch = to_device(learn.batch, self._device)

    def after_backward(self, learn: Any) -> None:
        if self._how == 'fsdp' and self._own is not None and not self._seen: check_gradients(learn.model)
        self._seen = True

    def cleanup_fit(self, learn: Any) -> None:
        if self._unsync: self._unsync = self._unsync()
        if self._own is not None: learn.model, self._own = self._own, None


def draw_apart() -> None:
    "Let each process draw random numbers of its own, such as for dropout; the first one goes on as it was."
    if rank(): set_seed((torch.initial_seed() + rank()) % 2**63, torch.are_deterministic_algorithms_enabled())
