"""DTensors: the part of one that lies in this process, and sums over all of its parts. Knows torch alone, whose
distributed half it does not import."""
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ['is_dtensor', 'local', 'placement', 'summed']


def is_dtensor(x: Any) -> bool:
    "Is `x` a DTensor? Where nobody has imported DTensor, nothing is."
    module = sys.modules.get('torch.distributed.tensor')
    return module is not None and isinstance(x, module.DTensor)


@torch.no_grad()
def local(x: Tensor) -> Tensor:
    "What of `x` lies in this process: the local part of a DTensor, which shares its memory, else `x` itself."
    return x.to_local() if is_dtensor(x) else x


def placement(x: Tensor) -> tuple | None:
    "Where the parts of a DTensor are, as something that can be compared; None for other tensors."
    return (x.device_mesh, tuple(x.placements)) if is_dtensor(x) else None


def summed(values: list[float], where: tuple | None) -> list[float]:
    "Sums of each process's `values` over the parts of a DTensor; `where` is its `placement`."
    if where is None: return values
    mesh, placements = where
    total = torch.tensor(values, dtype=torch.float64, device=mesh.device_type)
    for i, kind in enumerate(placements):
        if kind.is_shard(): torch.distributed.all_reduce(total, group=mesh.get_group(i))
    return total.tolist()
