"A digest of the arrays behind a loader, to notice data that has changed or moved."
import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from miniai.data.loaders import Dataset
from miniai.data.memory import MemoryLoader, as_tensors
from miniai.data.seeded import SeededSamples

__all__ = ['describe_content']

_ROWS, _NUMBERS = 64, 1024  # sampled from each array, and from each row


def describe_content(dl: Any) -> dict[str, str | None]:
    """What must be the same about data in memory for a run to resume: 16 hex digits over the dtypes, the shapes and up
    to 64 rows of each array, up to 1,024 numbers each. None if the data cannot be read without making samples. Takes a
    few milliseconds."""
    if isinstance(dl, MemoryLoader):
        arrays = [*dl.tensors, *([] if dl.rows is None else [dl.rows]), dl.scaling.mean, dl.scaling.std]
    else: arrays = _arrays_of(getattr(dl, 'dataset', None))
    if not arrays: return dict(content=None)
    digest = hashlib.sha256()
    for t in arrays:
        digest.update(f'{t.dtype} {tuple(t.shape)};'.encode())
        if t.numel(): digest.update(_sample(t).view(torch.uint8).numpy().tobytes())
    return dict(content=digest.hexdigest()[:16])


def _arrays_of(ds: Any) -> list[Tensor]:
    "The arrays that a dataset takes its samples from, unchanged; none if one of them is not an array of numbers."
    if isinstance(ds, SeededSamples): return _arrays_of(ds.dataset)
    if type(ds) is Subset:
        inner = _arrays_of(ds.dataset)
        return [*inner, torch.as_tensor(ds.indices)] if inner else []
    arrays = ds.tensors if type(ds) is TensorDataset else (ds.x, ds.y) if type(ds) is Dataset else ()
    return as_tensors(*arrays) if arrays and all(map(_is_numeric, arrays)) else []


def _is_numeric(a: Any) -> bool:
    return isinstance(a, Tensor) or (isinstance(a, np.ndarray) and a.dtype.kind in 'biufc')


def _sample(t: Tensor) -> Tensor:
    "Evenly spread numbers of evenly spread rows, including the first and the last; on the CPU."
    rows = [t[i].reshape(-1) for i in _spread(len(t), _ROWS)] if t.ndim else [t.reshape(1)]
    numbers = torch.tensor(_spread(len(rows[0]), _NUMBERS), device=t.device)
    return torch.stack([row[numbers] for row in rows]).cpu()


def _spread(n: int, most: int) -> list[int]:
    k = min(n, most)
    return [i*(n - 1)//max(k - 1, 1) for i in range(k)]
