"DTensors: the part of one that this process has, where it is in the whole, and sums over all parts."
import sys
from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ['is_dtensor', 'local', 'placement', 'placed_as', 'whole', 'placed_like', 'has_sums_in_parts', 'groups_of',
           'runs', 'summed', 'total', 'fsdp_modules', 'reshard']


def is_dtensor(x: Any) -> bool:
    "Whether `x` is a DTensor. If DTensor has never been imported, nothing is."
    module = sys.modules.get('torch.distributed.tensor')
    return module is not None and isinstance(x, module.DTensor)


def local(x: Tensor) -> Tensor:
    """The part of a DTensor that this process has, sharing its memory; waits for it if it is still being communicated.
    For other tensors `x` itself."""
    if not is_dtensor(x): return x
    with torch.no_grad(): part = x.to_local()
    return part.wait() if hasattr(part, 'wait') else part


def placement(x: Tensor) -> tuple | None:
    "Where the parts of a DTensor are, as a value that can be compared; None for other tensors."
    return (x.device_mesh, tuple(x.placements)) if is_dtensor(x) else None


def placed_as(x: Tensor, where: tuple | None) -> Tensor:
    "`x` with the parts where `where`, a `placement`, says."
    if where is None or placement(x) == where: return x
    with torch.no_grad(): return x.redistribute(*where)


def whole(x: Tensor) -> Tensor:
    "All of a DTensor, gathered from its parts; other tensors as they are."
    if not is_dtensor(x): return x
    with torch.no_grad(): return x.full_tensor()


@torch.no_grad()
def placed_like(x: Tensor, like: Tensor) -> Tensor:
    "`x`, a DTensor or a tensor that every process has, in the shape of `like` and with parts in the same places."
    if not is_dtensor(like): return x.reshape(like.shape)
    if not is_dtensor(x):
        from torch.distributed.tensor import DTensor, Replicate
        everywhere = [Replicate()]*like.device_mesh.ndim
        x = DTensor.from_local(x.reshape(like.shape), like.device_mesh, everywhere, run_check=False)
    return placed_as(x, placement(like))


def has_sums_in_parts(where: tuple | None) -> bool:
    "Whether each process has only a partial sum of the values of a DTensor with this placement."
    return where is not None and any(kind.is_partial() for kind in where[1])


def groups_of(where: tuple | None) -> tuple:
    "The process groups over which a DTensor with this placement is cut into parts, each with its type of device."
    if where is None: return ()
    mesh, kinds = where
    return tuple((mesh.get_group(i), mesh.device_type) for i, kind in enumerate(kinds)
                 if not (kind.is_replicate() or kind.is_partial()))  # torch's strided shards are no is_shard()


def runs(x: Tensor) -> tuple[np.ndarray, int]:
    """Where the elements that this process has are in the memory of the whole tensor: the places at which runs of
    neighbors start, in the order of memory here, and the length of all runs."""
    if not is_dtensor(x): return np.zeros(1, np.int64), x.numel()
    part, = x.__create_chunk_list__()
    dims, n = sorted(range(x.ndim), key=lambda d: (-x.stride(d), d)), 1
    while dims and part.sizes[dims[-1]] == x.shape[dims[-1]]: n *= x.shape[dims.pop()]
    starts = np.array([sum(o*s for o, s in zip(part.offsets, x.stride(), strict=True))])
    if dims: n *= part.sizes[dims.pop()]
    for d in dims: starts = (starts[:, None] + np.arange(part.sizes[d])*x.stride(d)).ravel()
    return starts, n


def summed(values: list[float], groups: tuple) -> list[float]:
    "Each value summed over the processes of all `groups`, which `groups_of` returned."
    if not groups: return values
    sums = torch.tensor(values, dtype=torch.float64, device=groups[0][1])
    for group, _ in groups: torch.distributed.all_reduce(sums, group=group)
    return sums.tolist()


def total(sums: Iterable[tuple[float, tuple]]) -> float:
    """The sum of values, each summed over the processes of its groups first: one communication for each group. The
    groups must come in the same order on all processes."""
    by_groups = defaultdict(float)
    for x, groups in sums: by_groups[groups] += x
    for group in dict.fromkeys(chain.from_iterable(by_groups)):
        concerned = [groups for groups in by_groups if group in groups]
        by_groups |= zip(concerned, summed([by_groups[k] for k in concerned], (group,)), strict=True)
    return sum(by_groups.values())


def reshard(model: nn.Module) -> None:
    """Let the FSDP2 modules of a model keep only their parts of parameters. The root keeps all it has gathered in a
    forward pass: its `parameters()` are not those the optimizer has, and new values of those do not reach it."""
    for m in fsdp_modules(model): m.reshard()


def fsdp_modules(model: nn.Module) -> list[nn.Module]:
    "The modules in `model` that FSDP2 shards. If FSDP2 has never been imported, there are none."
    module = sys.modules.get('torch.distributed.fsdp')
    return [m for m in model.modules() if isinstance(m, module.FSDPModule)] if module else []
