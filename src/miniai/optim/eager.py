"""The eager path: one parameter at a time, by a trace run on tensors, or by the rule itself if it has no trace. Works
on every device and dtype."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.distributed.dtensor import has_sums_in_parts, local, placement, summed
from miniai.kernels.python import element_function, host_function, scalar_places
from miniai.kernels.trace import Trace
from miniai.optim.rounding import dithered
from miniai.optim.stages import Program

__all__ = ['eager_step', 'eager_share', 'eager_sum_of_squares', 'wide']

_BLOCK, _BLOCKS = 1 << 12, 1 << 8  # elements summed in one row, and rows at a time


def wide(x: Tensor) -> Tensor:
    "`x` in the precision that rules are computed in: float32 for half types, its own otherwise."
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def eager_step(program: Program, tensors: list[Tensor], g: Tensor, hypers: dict[str, float],
               dither: tuple[bool, ...], key: int = 0) -> list[float]:
    """One step in place on `tensors`, the parameter and its states. `hypers` include the program's scalars; their new
    values are returned. Half precision is computed in float32. Tensors marked in `dither` are rounded to bfloat16 at
    random, by `key`."""
    new, scalars = _results(program, program.trace, program.run, tensors, g, hypers)
    for k, (old, x) in enumerate(zip(tensors, new, strict=True)):
        if dither[k]: local(old).copy_(dithered(local(x), key, sum(dither[:k])))
        else: old.copy_(x)
    return scalars


def eager_share(program: Program, tensors: list[Tensor], g: Tensor, hypers: dict[str, float]) -> float:
    "The share of a parameter's elements whose step agrees with the gradient; 1 for a parameter without elements."
    mask = _results(program, program.mask_trace, program.mask, tensors, g, hypers)[0][0]
    return float(mask.double().mean()) if mask.numel() else 1.


@torch.no_grad()
def eager_sum_of_squares(g: Tensor) -> float:
    "The sum of squares of a gradient, in double precision; the same bits for any number of threads."
    if has_sums_in_parts(placement(g)): g = g.full_tensor()
    sums = [F.pad(part.double().square(), (0, -len(part) % _BLOCK)).view(-1, _BLOCK).sum(1)
            for part in local(g).reshape(-1).split(_BLOCK*_BLOCKS)]
    return summed([sum(torch.cat(sums).tolist())], placement(g))[0]


def _results(program: Program, trace: Trace | None, f: Callable, tensors: list[Tensor], g: Tensor,
             hypers: dict[str, float]) -> tuple[list[Tensor], list[float]]:
    "The tensors and scalars that `f`, or its trace, returns, as new tensors."
    old, g = [wide(x) for x in tensors], wide(g)
    if trace is None:  # a rule may change its arguments in place: give it copies
        rest = {nm: x for nm, x in hypers.items() if nm not in program.scalars}
        out = f(old[0].clone(), g.clone(), *(s.clone() for s in old[1:]), *map(hypers.get, program.scalars), **rest)
        n = len(out) - len(program.scalars)
        return list(out[:n]), list(map(float, out[n:]))
    hosts = host_function(trace)(**hypers)
    new = element_function(trace)(old[0], g, *old[1:], *hosts)
    # A rule may return an argument as another state: copying in place must not overwrite it before it is read.
    new = [x.clone() if any(x is o for o in old) else x for x in new]
    return new, [hosts[i] for i in scalar_places(trace)]
