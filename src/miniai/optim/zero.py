"torch's ZeroRedundancyOptimizer, in which each rank has an optimizer for its share of the parameters."
import inspect
import sys
from typing import Any

import torch
from torch import Tensor

__all__ = ['is_zero', 'zero_around', 'zero_groups', 'from_all_ranks', 'show_momentum']


def is_zero(opt: Any) -> bool:
    "Is this torch's ZeroRedundancyOptimizer?"
    module = sys.modules.get('torch.distributed.optim.zero_redundancy_optimizer')
    return module is not None and isinstance(opt, module.ZeroRedundancyOptimizer)


def zero_around() -> Any:
    """The ZeroRedundancyOptimizer that is making an optimizer now; None without one. It does not tell the
    optimizer that there are others, so it is looked for among the callers."""
    module = sys.modules.get('torch.distributed.optim.zero_redundancy_optimizer')
    frame = inspect.currentframe() if module else None
    while frame:
        caller = frame.f_locals.get('self')
        if isinstance(caller, module.ZeroRedundancyOptimizer): return caller
        frame = frame.f_back
    return None


def zero_groups(zero: Any) -> tuple:
    "The process group whose ranks share the parameters, as `groups_of` returns it; empty without `zero`."
    return () if zero is None else ((zero.process_group, zero.param_groups[0]['params'][0].device.type),)


def show_momentum(zero: Any, defaults: dict[str, Any]) -> None:
    "Put betas or momentum into the defaults of `zero`, where torch's schedulers look for what they may cycle."
    zero.defaults = zero.defaults | {k: x for k, x in defaults.items() if k in ('betas', 'momentum')}


@torch.no_grad()
def from_all_ranks(zero: Any, own: dict[Tensor, Tensor]) -> dict[Tensor, Tensor]:
    "New values for all parameters: `own` here, those of other ranks for their shares, and the parameters themselves."
    here = {p for g in zero.optim.param_groups for p in g['params']}
    params = [p for g in zero.param_groups for p in g['params']]
    new = {p: own.get(p, p).to(p.dtype, copy=True) if p in here else torch.zeros_like(p) for p in params}
    for x in new.values(): torch.distributed.all_reduce(x, group=zero.process_group)
    return new
