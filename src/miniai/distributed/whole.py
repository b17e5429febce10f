"A whole copy of a model that several processes train together: in plain modules, with plain tensors."
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from miniai.distributed.dtensor import is_dtensor, reshard
from miniai.distributed.wrap import class_of, is_own, is_sharded, unwrapped

__all__ = ['whole_copy']


def whole_copy(model: nn.Module, meta: bool = False) -> nn.Module:
    """A copy of `model` as one process would have it. The weights of a model that is sharded, or tensor parallel, are
    gathered on the CPU one by one: every process must call this, and each gets the copy. With `meta` they are tensors
    without values instead."""
    model = unwrapped(model)
    if not is_sharded(model): return deepcopy(model)
    reshard(model)
    return _copied(model, {}, _empty if meta else _whole)


def _copied(m: nn.Module, done: dict[int, Any], tensor: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of `m` in the class that it had before `fully_shard`, without torch's hooks, with `tensor` of each
    parameter and buffer. `done`, deepcopy's memo, holds what is copied already, so that what two modules share stays
    shared."""
    if id(m) in done: return done[id(m)]
    for child in m.children(): _copied(child, done, tensor)
    for x in (*m.parameters(recurse=False), *m.buffers(recurse=False)): done.setdefault(id(x), tensor(x))
    done[id(m)] = new = class_of(m).__new__(class_of(m))
    vars(new).update({nm: deepcopy(_without_hooks(nm, x), done) for nm, x in vars(m).items() if is_own(nm)})
    return new


@torch.no_grad()
def _whole(x: Tensor) -> Tensor:
    whole = (x.full_tensor() if is_dtensor(x) else x).detach().cpu().clone()
    return nn.Parameter(whole, x.requires_grad) if isinstance(x, nn.Parameter) else whole


def _empty(x: Tensor) -> Tensor:
    empty = torch.empty(x.shape, dtype=x.dtype, device='meta')
    return nn.Parameter(empty, x.requires_grad) if isinstance(x, nn.Parameter) else empty


def _without_hooks(name: str, x: Any) -> Any:
    if not (name.endswith('_hooks') and isinstance(x, dict)): return x
    return type(x)((i, f) for i, f in x.items() if not (f.__module__ or '').startswith('torch.distributed'))
