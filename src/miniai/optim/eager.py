"""The eager path: one parameter at a time, by a trace run on tensors, or by the rule itself if it has no trace. Works
on every device, dtype and layout."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.distributed.dtensor import is_dtensor, local, placed_as, placed_like, placement, runs, whole
from miniai.kernels.batched import wide
from miniai.kernels.math import double
from miniai.kernels.memory import BLOCK
from miniai.kernels.packed import is_packed, packed, unpacked
from miniai.kernels.python import host_values, results_on, scalar_places, values_on
from miniai.kernels.rounding import dithered
from miniai.kernels.trace import Trace
from miniai.optim.stages import Program

__all__ = ['eager_step', 'eager_sums', 'eager_sum_of_squares', 'numbers', 'as_matrix']

_MOST = 1 << 20  # elements that are summed at a time


def eager_step(program: Program, tensors: list[Tensor], g: Tensor, hypers: dict[str, float],
               dither: tuple[bool, ...], key: int = 0) -> list[float]:
    """One step in place on `tensors`, the parameter and its states. `hypers` include the program's scalars; their new
    values are returned. Half precision is computed in float32. Tensors marked in `dither` are rounded at random, by
    `key`."""
    new, scalars = _results(program, tensors, g, hypers)
    places = _places(tensors[0]) if any(dither) and is_dtensor(tensors[0]) else None
    for k, (old, x) in enumerate(zip(tensors, new, strict=True)):
        turn = sum(dither[:k])
        if is_packed(old): x = packed(x, tensors[0], key, turn)
        elif dither[k]: x = dithered(x, key, turn, places)
        local(old).copy_(x)
    return scalars


def numbers(x: Tensor, p: Tensor) -> Tensor:
    "A parameter, or a state of `p`, as rules compute with it: in float32 if it is kept in fewer bits."
    return unpacked(x, p) if is_packed(x) else wide(x)


def _places(x: Tensor) -> Tensor:
    "The place in the memory of the whole tensor of each element that this process has."
    starts, n = runs(x)
    return (torch.from_numpy(starts)[:, None] + torch.arange(n)).view(-1).to(local(x).device)


def eager_sums(trace: Trace, tensors: list[Tensor], g: Tensor, hypers: dict[str, float]) -> list[float]:
    "The sum of each of a trace's results over a parameter's elements here, in double precision."
    return list(map(_total, values_on(trace, _here(tensors, g), host_values(trace, hypers))))


@torch.no_grad()
def eager_sum_of_squares(p: Tensor) -> float:
    "The sum of squares of a parameter's gradient here, in double precision."
    return _total(local(placed_as(p.grad, placement(p))), torch.square)


def _total(x: Tensor, f: Callable = torch.clone) -> float:
    "The sum of a function of `x`; the same bits for any number of threads."
    parts = (f(double(part)) for part in x.reshape(-1).split(_MOST))
    return sum(torch.cat([F.pad(x, (0, -len(x) % BLOCK)).view(-1, BLOCK).sum(1) for x in parts]).tolist())


def _here(tensors: list[Tensor], g: Tensor) -> list[Tensor]:
    "The parts here of a parameter, its gradient and its states, as traces take them."
    p, *states = (local(numbers(x, tensors[0])) for x in tensors)
    return [p, local(placed_as(wide(g), placement(tensors[0]))), *states]


def _results(program: Program, tensors: list[Tensor], g: Tensor,
             hypers: dict[str, float]) -> tuple[list[Tensor], list[float]]:
    """The tensors and scalars that a program, or its trace, returns, as new tensors: of a DTensor the part here. A
    trace runs on that part."""
    if program.trace is None: return _from_rule(program, tensors, g, hypers)
    hosts = host_values(program.trace, hypers)
    return results_on(program.trace, _here(tensors, g), hosts), [hosts[i] for i in scalar_places(program.trace)]


def _from_rule(program: Program, tensors: list[Tensor], g: Tensor,
               hypers: dict[str, float]) -> tuple[list[Tensor], list[float]]:
    """What a rule without a trace returns. It is given the DTensor, so that its sums are over all parts; or, if it is
    for matrices, the whole parameter."""
    where = placement(tensors[0])
    states = [numbers(x, tensors[0]) for x in tensors[1:]]
    given = [wide(tensors[0]), placed_as(wide(g), where), *states]
    if program.spec.others: given = [as_matrix(whole(x), program.spec.flat) for x in given]
    rest = {nm: x for nm, x in hypers.items() if nm not in program.scalars}
    p, g, *states = given  # stages make a new gradient, and mostly a new parameter, from what they are given
    if program.keeps_parameter: p = p.clone()
    states = [x.clone() for x in states]  # a rule may change its arguments in place, or return one for another
    out = program.run(p, g, *states, *map(hypers.get, program.scalars), **rest)
    n = len(out) - len(program.scalars)
    likes = [tensors[0] if is_packed(old) else old for old in tensors]
    new = [local(placed_like(x, like)) for x, like in zip(out[:n], likes, strict=False)]
    return new, list(map(float, out[n:]))


def as_matrix(x: Tensor, flat: bool) -> Tensor:
    "A parameter as a rule for matrices takes it: if `flat`, a convolution with one row for each output channel."
    return x.flatten(1) if flat and x.ndim > 2 else x
