"DTensors: the part of one that this process has, and sums over all parts. Does not import torch.distributed."
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ['is_dtensor', 'local', 'placement', 'has_sums_in_parts', 'part_number', 'summed']


def is_dtensor(x: Any) -> bool:
    "Whether `x` is a DTensor. If DTensor has never been imported, nothing is."
    module = sys.modules.get('torch.distributed.tensor')
    return module is not None and isinstance(x, module.DTensor)


@torch.no_grad()
def local(x: Tensor) -> Tensor:
    """The part of a DTensor that this process has, sharing its memory; waits for it if it is still being communicated.
    For other tensors `x` itself."""
    if not is_dtensor(x): return x
    part = x.to_local()
    return part.wait() if hasattr(part, 'wait') else part


def placement(x: Tensor) -> tuple | None:
    "Where the parts of a DTensor are, as a value that can be compared; None for other tensors."
    return (x.device_mesh, tuple(x.placements)) if is_dtensor(x) else None


def has_sums_in_parts(where: tuple | None) -> bool:
    "Whether each process has only a partial sum of the values of a DTensor with this placement."
    return where is not None and any(kind.is_partial() for kind in where[1])


def part_number(where: tuple | None) -> int:
    "The number of the part that this process has of a DTensor with this placement; 0 if it is not sharded."
    if where is None: return 0
    mesh, number = where[0], 0
    for i, kind in enumerate(where[1]):
        if kind.is_shard(): number = number*mesh.size(i) + mesh.get_local_rank(i)
    return number


def summed(values: list[float], where: tuple | None) -> list[float]:
    "Each value summed over the parts of a DTensor; `where` is its `placement`."
    if where is None: return values
    mesh, placements = where
    total = torch.tensor(values, dtype=torch.float64, device=mesh.device_type)
    for i, kind in enumerate(placements):
        if kind.is_shard(): torch.distributed.all_reduce(total, group=mesh.get_group(i))
    return total.tolist()
