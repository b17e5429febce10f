"What lies in the arrays of a loader, as a digest of samples of it: data in another order do not go unnoticed."
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

_ROWS, _NUMBERS = 64, 1024  # looked at, of each array and of each row


def describe_content(dl: Any) -> dict[str, str | None]:
    """What of the data in memory must be the same for a run to go on: 16 hex digits over dtypes, shapes and some 64
    rows of each array, of up to 1,024 numbers each. None where samples would have to be made to be looked at. Takes a
    few milliseconds."""
    arrays = _of_loader(dl)
    return dict(content=_digest(arrays) if arrays else None)


def _of_loader(dl: Any) -> list[Tensor]:
    if not isinstance(dl, MemoryLoader): return _of_dataset(getattr(dl, 'dataset', None))
    rows = [] if dl.rows is None else [dl.rows]
    return [*dl.tensors, *rows, dl.scaling.mean, dl.scaling.std]


def _of_dataset(ds: Any) -> list[Tensor]:
    "The arrays that samples are taken from as they are; none where one is no array."
    if isinstance(ds, SeededSamples): return _of_dataset(ds.dataset)
    if type(ds) is Subset: return [*inner, torch.as_tensor(ds.indices)] if (inner := _of_dataset(ds.dataset)) else []
    arrays = ds.tensors if type(ds) is TensorDataset else (ds.x, ds.y) if type(ds) is Dataset else ()
    return as_tensors(*arrays) if arrays and all(map(_of_numbers, arrays)) else []


def _of_numbers(a: Any) -> bool:
    return isinstance(a, Tensor) or (isinstance(a, np.ndarray) and a.dtype.kind in 'biufc')


def _digest(arrays: list[Tensor]) -> str:
    h = hashlib.sha256()
    for t in arrays:
        h.update(f'{t.dtype} {tuple(t.shape)};'.encode())
        if t.numel(): h.update(_sample(t).view(torch.uint8).numpy().tobytes())
    return h.hexdigest()[:16]


def _sample(t: Tensor) -> Tensor:
    "Evenly spread numbers of evenly spread rows, the first and the last among them; on the CPU."
    rows = [t[i].reshape(-1) for i in _spread(len(t), _ROWS)] if t.ndim else [t.reshape(1)]
    numbers = torch.tensor(_spread(len(rows[0]), _NUMBERS), device=t.device)
    return torch.stack([row[numbers] for row in rows]).cpu()


def _spread(n: int, most: int) -> list[int]:
    k = min(n, most)
    return [i*(n - 1)//max(k - 1, 1) for i in range(k)]
