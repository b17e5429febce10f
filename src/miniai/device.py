"Devices: the default one, moving nested batches to it and back, and scalars that stay there until they are read."
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import fields, is_dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ['def_device', 'map_tensors', 'tensors_in', 'first_tensor', 'to_device', 'detached',
           'without_graph', 'to_cpu', 'collate_device', 'is_number', 'to_scalar', 'DeferredScalars']

def_device: str = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'


# Nests: tensors inside tuples, lists, mappings and dataclasses

def map_tensors(f: Callable[[Any], Any], x: Any, method: str = '') -> Any:
    """A copy of the nest `x` with `f` applied to every tensor, and to every object that has `method`. Anything else in
    it stays the same object."""
    if isinstance(x, Tensor) or (method and hasattr(x, method)): return f(x)
    if isinstance(x, tuple) and hasattr(x, '_fields'): return type(x)(*(map_tensors(f, o, method) for o in x))
    if isinstance(x, (tuple, list)): return type(x)([map_tensors(f, o, method) for o in x])
    if isinstance(x, Mapping): return _like(x, {k: map_tensors(f, v, method) for k, v in x.items()})
    return _mapped_fields(f, x, method) if _is_dataclass(x) else x


def _mapped_fields(f: Callable[[Any], Any], x: Any, method: str) -> Any:
    new = copy(x)
    for nm in (field.name for field in fields(x)):
        object.__setattr__(new, nm, map_tensors(f, getattr(x, nm), method))  # it may be frozen
    return new


def _is_dataclass(x: Any) -> bool: return is_dataclass(x) and not isinstance(x, type)


def _like(old: Mapping, new: dict) -> Mapping:
    "`new` in the class of `old`, unless that cannot be made from a dict, as defaultdict can't."
    if type(old) is dict: return new
    try: return type(old)(new)
    except TypeError: return new


def tensors_in(x: Any) -> Iterator[Tensor]:
    "Every tensor in the nest `x`, depth first, in order."
    if isinstance(x, Tensor): yield x
    elif isinstance(x, Mapping): yield from tensors_in(tuple(x.values()))
    elif isinstance(x, tuple | list):
        for o in x: yield from tensors_in(o)
    elif _is_dataclass(x): yield from tensors_in([getattr(x, field.name) for field in fields(x)])


def first_tensor(x: Any) -> Tensor | None:
    "The first tensor in the nest `x`; None if there is none."
    if isinstance(x, Tensor): return x
    if isinstance(x, tuple | list) and x and isinstance(x[0], Tensor): return x[0]
    return next(tensors_in(x), None)


# Moving

def to_device(x: Any, device: str | torch.device = def_device) -> Any:
    """Move every tensor in the nest `x` to `device`. Objects with their own `to`, such as graphs, move by that. On CUDA
    neither the program nor the GPU waits: see `_sent`."""
    move = _sent if torch.device(device).type == 'cuda' else _moved
    return map_tensors(partial(move, device=device), x, 'to')


def _moved(t: Any, device: str | torch.device) -> Any: return t.to(device)


def _sent(t: Any, device: str | torch.device) -> Any:
    """A tensor on a GPU, copied from pinned memory by a stream of its own, while the GPU computes with earlier batches.
    So a loader need not read ahead, which would change the order of random numbers and of what is saved."""
    plain = type(t) is Tensor and t.is_cpu and t.layout is torch.strided and not t.requires_grad
    if not plain or 0 in t.stride(): return t.to(device)  # expanded ones cannot be pinned
    now = torch.cuda.current_stream(device)
    copies = _copy_stream(now.device)
    with torch.cuda.stream(copies): there = t.pin_memory().to(now.device, non_blocking=True)
    now.wait_stream(copies)
    there.record_stream(now)  # its memory is free when that stream, too, is done with it
    return there


@cache
def _copy_stream(device: torch.device) -> Any: return torch.cuda.Stream(device)


def detached(x: Any) -> Any:
    "Detach every tensor in the nest `x`, on its device; float16 and bfloat16 become float32."
    return map_tensors(_detached, x)


def without_graph(x: Any) -> Any:
    "The nest `x` with every tensor that was computed with gradients detached from its graph."
    return map_tensors(lambda t: t if t.grad_fn is None else t.detach(), x)


def to_cpu(x: Any) -> Any:
    "Detach every tensor in the nest `x` and move it to the CPU; float16 and bfloat16 become float32."
    return map_tensors(lambda t: _detached(t).cpu(), x)


def _detached(t: Tensor) -> Tensor:
    t = t.detach() if t.requires_grad else t
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def collate_device(b: list) -> Any:
    "PyTorch's default collate, then `to_device`: a `collate_fn` for loaders without workers."
    return to_device(default_collate(b), def_device)


# Scalars. Reading one from a GPU waits for everything queued there, so many are read at once, later.

def is_number(x: object) -> bool:
    "Whether `x` is a Python number or a tensor of one element."
    return x.numel() == 1 if isinstance(x, Tensor) else isinstance(x, int | float)


def to_scalar(x: float | Tensor) -> float | Tensor:
    "A Python number if `x` is one or is on the CPU; otherwise a detached tensor, still on its device."
    return x if not isinstance(x, Tensor) else x.item() if x.is_cpu else x.detach()


class DeferredScalars:
    "A growing list of scalars. Those on a device stay there, and `values` reads them all at once."
    def __init__(self, values: Iterable = ()) -> None: self._values, self._pending = list(values), []
    def __len__(self) -> int: return len(self._values) + len(self._pending)

    def append(self, x: float | Tensor) -> None:
        "Add a number or a tensor of one element. A larger tensor is detached and kept as it is."
        if isinstance(x, Tensor): x = x.item() if x.is_cpu and x.numel() == 1 else x.detach()
        (self._pending if self._pending or isinstance(x, Tensor) else self._values).append(x)

    @property
    def values(self) -> list[float]:
        "All scalars as Python floats. Waits for the device."
        if self._pending:
            kinds = {(x.device, x.dtype, x.numel()) if isinstance(x, Tensor) else () for x in self._pending}
            if len(kinds) == 1 and 1 in kinds.pop(): self._values += torch.stack(self._pending).flatten().tolist()
            else: self._values += [x.item() if isinstance(x, Tensor) and x.numel() == 1 else x for x in self._pending]
            self._pending.clear()
        return self._values
