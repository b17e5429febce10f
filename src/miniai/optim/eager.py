"""The eager path: a program's trace run on tensors, one parameter at a time; one without a trace is run as it is. Right
on every device and dtype. Knows programs, no particular rule."""
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
               dither: list[bool], key: int = 0) -> list[float]:
    """One step in place on `tensors`, the parameter and its states; returns the new scalars, whose old ones are among
    `hypers`. Half precision is computed in float32; the gradient is left alone. Results marked in `dither` are rounded
    to bfloat16 at random, by `key`."""
    news, scalars = _results(program, program.trace, program.run, tensors, g, hypers)
    for k, (old, new) in enumerate(zip(tensors, news, strict=True)):
        if dither[k]: local(old).copy_(dithered(local(new), key, sum(dither[:k])))
        else: old.copy_(new)
    return scalars


def eager_share(program: Program, tensors: list[Tensor], g: Tensor, hypers: dict[str, float]) -> float:
    "The share of the elements of a parameter whose step agrees with the gradient; 1 where there are none."
    mask = _results(program, program.mask_trace, program.mask, tensors, g, hypers)[0][0]
    return float(mask.double().mean()) if mask.numel() else 1.


@torch.no_grad()
def eager_sum_of_squares(g: Tensor) -> float:
    "Of a gradient, in double precision, row by row: for any number of threads the same to the bit."
    if has_sums_in_parts(placement(g)): g = g.full_tensor()
    sums = [F.pad(part.double().square(), (0, -len(part) % _BLOCK)).view(-1, _BLOCK).sum(1)
            for part in local(g).reshape(-1).split(_BLOCK*_BLOCKS)]
    return summed([sum(torch.cat(sums).tolist())], placement(g))[0]


def _results(program: Program, trace: Trace | None, f: Callable, tensors: list[Tensor], g: Tensor,
             hypers: dict[str, float]) -> tuple[list[Tensor], list[float]]:
    "The tensors and the scalars that `f`, or its trace, gives; none of them is one of `tensors`."
    olds = [wide(x) for x in tensors]
    if trace is None: return _split(_call(program, f, olds, wide(g), hypers), len(program.scalars))
    hosts = host_function(trace)(**hypers)
    news = element_function(trace)(olds[0], wide(g), *olds[1:], *hosts)
    moved = [any(new is o for o in olds) and new is not old for old, new in zip(olds, news, strict=False)]
    return ([new.clone() if m else new for new, m in zip(news, moved, strict=True)],
            [hosts[i] for i in scalar_places(trace)])


def _call(program: Program, f: Callable, olds: list[Tensor], g: Tensor, hypers: dict[str, float]) -> list:
    "A program's function itself, on copies: a rule may change what it is given."
    rest = {nm: x for nm, x in hypers.items() if nm not in program.scalars}
    return list(f(olds[0].clone(), g.clone(), *(s.clone() for s in olds[1:]),
                  *(hypers[nm] for nm in program.scalars), **rest))


def _split(out: list, scalars: int) -> tuple[list[Tensor], list[float]]:
    n = len(out) - scalars
    return out[:n], [float(x) for x in out[n:]]
