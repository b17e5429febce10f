"Memory of a training step: parameters, gradients, optimizer state, and what the forward pass keeps for the backward."
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from miniai.distributed.dtensor import local

__all__ = ['kept_for_backward', 'measured', 'bytes_of', 'state_bytes', 'in_bytes']


@contextmanager
def kept_for_backward() -> Iterator[list[int]]:
    """Within it, sum the bytes that autograd keeps for the backward pass, each memory once, without parameters and
    sparse tensors. The sum is the only item of the list that it gives."""
    total, seen = [0], set()
    def pack(x: Tensor) -> Tensor:
        memory = local(x).untyped_storage() if x.layout is torch.strided else None
        try: place = None if memory is None else memory.data_ptr()
        except RuntimeError: place = None
        if place is None: return x.detach()  # sparse, nested, or within a transform of torch.func
        is_parameter = isinstance(x if x._base is None else x._base, nn.Parameter)
        if not is_parameter and place not in seen: total[0] += memory.nbytes()
        seen.add(place)
        return x.detach()  # itself would be kept by what it is kept for
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x): yield total


def measured(look: Callable[[bool], Any]) -> Any:
    """The result of `look(True)`, which should measure what forward computes and keeps; or, where torch refuses that,
    as with torch.func.grad and nested tensors, of `look(False)`, which should leave it out."""
    try: return look(True)
    except (RuntimeError, TypeError) as e:
        if not any(nm in str(e) for nm in ('saved tensor hooks', 'FlopCounterMode')): raise
    return look(False)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    "Bytes of tensors; of DTensors those of this process."
    return sum(local(x.detach()).nbytes for x in tensors)


def state_bytes(opt: Any) -> int | None:
    "Bytes of an optimizer's state; None if it does not show one."
    state = getattr(opt, 'state', None)
    if not isinstance(state, Mapping): return None
    return bytes_of(x for entries in state.values() if isinstance(entries, Mapping)
                    for x in entries.values() if isinstance(x, Tensor))


def in_bytes(n: float) -> str:
    "A number of bytes as text, such as 3.1 MB."
    for unit in ('bytes', 'kB', 'MB', 'GB', 'TB'):
        if n < 1000 or unit == 'TB': break
        n /= 1000
    return f'{n:.0f} {unit}' if n >= 100 or unit == 'bytes' else f'{n:.2g} {unit}'
