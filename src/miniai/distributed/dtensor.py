"""DTensors: the part of one that lies in this process, and sums over all of its parts. Knows torch alone, whose
distributed half it does not import."""
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ['is_dtensor', 'local', 'placement', 'has_sums_in_parts', 'part_number', 'summed']


def is_dtensor(x: Any) -> bool:
    "Is `x` a DTensor? Where nobody has imported DTensor, nothing is."
    module = sys.modules.get('torch.distributed.tensor')
    return module is not None and isinstance(x, module.DTensor)


@torch.no_grad()
def local(x: Tensor) -> Tensor:
    """What of `x` lies in this process: the local part of a DTensor, which shares its memory and is waited for where it
    is still on its way, else `x` itself."""
    if not is_dtensor(x): return x
    part = x.to_local()
    return part.wait() if hasattr(part, 'wait') else part


def placement(x: Tensor) -> tuple | None:
    "Where the parts of a DTensor are, as something that can be compared; None for other tensors."
    return (x.device_mesh, tuple(x.placements)) if is_dtensor(x) else None


def has_sums_in_parts(where: tuple | None) -> bool:
    "Does a DTensor of this placement hold, in each process, a summand of its values?"
    return where is not None and any(kind.is_partial() for kind in where[1])


def part_number(where: tuple | None) -> int:
    "Which part of a DTensor of this placement this process has: 0 for all of one that is not cut up."
    if where is None: return 0
    mesh, number = where[0], 0
    for i, kind in enumerate(where[1]):
        if kind.is_shard(): number = number*mesh.size(i) + mesh.get_local_rank(i)
    return number


def summed(values: list[float], where: tuple | None) -> list[float]:
    "Sums of each process's `values` over the parts of a DTensor; `where` is its `placement`."
    if where is None: return values
    mesh, placements = where
    total = torch.tensor(values, dtype=torch.float64, device=mesh.device_type)
    for i, kind in enumerate(placements):
        if kind.is_shard(): torch.distributed.all_reduce(total, group=mesh.get_group(i))
    return total.tolist()
