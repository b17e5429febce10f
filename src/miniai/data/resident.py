"Arrays in memory of which a GPU keeps a copy, so that batches are gathered there and nothing has to be sent."
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor

__all__ = ['near']

DEVICES, PART = ('cuda',), 4  # a copy takes at most this part of the memory that is free
_KEPT: WeakKeyDictionary = WeakKeyDictionary()  # the copies that a loader uses, not in the loader: a run saves what is
_COPIES: WeakValueDictionary = WeakValueDictionary()  # by place: training and validation often are rows of one array


def near(loader: Any) -> list:
    """The arrays of a MemoryLoader, as copies on its device if that is a GPU with room for them. Torch notes changes of
    a tensor, and the next pass makes a new copy; changes of a numpy array are not seen."""
    device = torch.device('cpu' if loader.device is None else loader.device)
    if device.type not in DEVICES: return loader.tensors
    pairs = zip(loader.tensors, loader.dtypes, strict=True)  # an array of another dtype is converted before it moves
    _KEPT[loader] = found = [_copy(t, device) if t.dtype == dtype else t for t, dtype in pairs]
    return found


def _copy(t: Any, device: torch.device) -> Any:
    "The copy of `t` on the device, if it has room; of a tensor on the CPU alone."
    if type(t) is not Tensor or not t.is_cpu: return t
    version = 0 if t.is_inference() else t._version
    place = t.data_ptr(), t.shape, t.stride(), t.dtype, version, device
    copy = _COPIES.get(place)
    if copy is None:
        if t.nbytes*PART > _free(device): return t
        _COPIES[place] = copy = t.to(device, copy=True)
    return copy


def _free(device: torch.device) -> int: return torch.cuda.mem_get_info(device)[0]
