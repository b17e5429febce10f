"Where tensors live: the default device, and moving nested batches to it and back. Knows torch alone."
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

__all__ = ['def_device', 'map_tensors', 'tensors_in', 'first_tensor', 'to_device', 'detached', 'to_cpu',
           'collate_device', 'DeferredScalars', 'to_scalar', 'is_number']


def _best_device() -> str:
    if torch.cuda.is_available(): return 'cuda'
    return 'mps' if torch.backends.mps.is_available() else 'cpu'


def_device: str = _best_device()


def map_tensors(f: Callable[[Tensor], Any], x: Any) -> Any:
    "`x` with `f` applied to every tensor inside its tuples, lists and mappings; all else stays as it is."
    if isinstance(x, Tensor): return f(x)
    if isinstance(x, tuple) and hasattr(x, '_fields'): return type(x)(*(map_tensors(f, o) for o in x))
    if isinstance(x, (tuple, list)): return type(x)([map_tensors(f, o) for o in x])
    return _rebuilt_mapping(x, {k: map_tensors(f, v) for k, v in x.items()}) if isinstance(x, Mapping) else x


def _rebuilt_mapping(old: Mapping, new: dict) -> Mapping:
    if type(old) is dict: return new
    try: return type(old)(new)
    except TypeError: return new


def tensors_in(x: Any) -> Iterator[Tensor]:
    "Every tensor inside `x`, depth first, in order."
    if isinstance(x, Tensor): yield x
    elif isinstance(x, Mapping): yield from tensors_in(tuple(x.values()))
    elif isinstance(x, tuple | list):
        for o in x: yield from tensors_in(o)


def first_tensor(x: Any) -> Tensor | None:
    "The first tensor inside `x`, however deep; None where there is none."
    if isinstance(x, Tensor): return x
    if isinstance(x, tuple | list) and x and isinstance(x[0], Tensor): return x[0]
    return next(tensors_in(x), None)


def to_device(x: Any, device: str | torch.device = def_device) -> Any:
    "`x` with every tensor inside tuples, lists and mappings moved to `device`."
    return map_tensors(lambda t: t.to(device), x)


def detached(x: Any) -> Any:
    "`x` with every tensor inside cut from its graph, where it is; float16 and bfloat16 become float32."
    return map_tensors(_detached, x)


def _detached(t: Tensor) -> Tensor:
    t = t.detach() if t.requires_grad else t
    return t.float() if t.dtype in (torch.float16, torch.bfloat16) else t


def to_cpu(x: Any) -> Any:
    "`x` with every tensor inside detached and on the CPU; float16 and bfloat16 become float32."
    return map_tensors(lambda t: _detached(t).cpu(), x)


def collate_device(b: list) -> Any:
    "PyTorch's default collate, then to `def_device`: a `collate_fn` for loaders without workers."
    return to_device(default_collate(b), def_device)


def to_scalar(x: float | Tensor) -> float | Tensor:
    "A scalar that can be summed without waiting: a Python float from the CPU, a detached tensor from elsewhere."
    if not isinstance(x, Tensor): return x
    return x.item() if x.is_cpu else x.detach()


def is_number(x: object) -> bool:
    "Is `x` a Python number or a tensor of one element?"
    return x.numel() == 1 if isinstance(x, Tensor) else isinstance(x, int | float)


class DeferredScalars:
    "A growing list of scalars. Those on an accelerator are kept there, and read all at once by `values`."
    def __init__(self, values: Iterable = ()) -> None: self._values, self._pending = list(values), []
    def __len__(self) -> int: return len(self._values) + len(self._pending)

    def append(self, x: float | Tensor) -> None:
        "Add a number or a tensor of one element; a larger tensor is kept as it is, cut from its graph."
        if isinstance(x, Tensor) and x.numel() != 1: return self.values.append(x.detach())
        x = to_scalar(x)
        if isinstance(x, Tensor): self._pending.append(x.reshape(()))
        elif self._pending:       self._pending.append(torch.tensor(x))
        else:                     self._values.append(x)

    @property
    def values(self) -> list[float]:
        "All of them as Python floats. This is where the device is waited for."
        if self._pending:
            self._values += _read(self._pending)
            self._pending.clear()
        return self._values


def _read(xs: list[Tensor]) -> list[float]:
    if len({(x.device, x.dtype) for x in xs}) == 1: return torch.stack(xs).tolist()
    return [x.item() for x in xs]
