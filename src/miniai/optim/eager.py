"""The eager path: a program's trace run on tensors, one parameter at a time; one without a trace is run as it is. Right
on every device and dtype. Knows programs, no particular rule."""
import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .math import sqrt, where
from .rounding import dithered
from .stages import Program
from .trace import Trace

__all__ = ['eager_step', 'host_function', 'wide']


def wide(x: Tensor) -> Tensor:
    "`x` in the precision that rules are computed in: float32 for half types, its own otherwise."
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def eager_step(program: Program, tensors: list[Tensor], g: Tensor, hypers: dict[str, float],
               dither: list[bool], key: int = 0) -> None:
    """One step in place on `tensors`, the parameter and its states. Half precision is computed in float32; the gradient
    is left alone. Results marked in `dither` are rounded to bfloat16 at random, by `key`."""
    news = (_run_trace if program.trace else _run_rule)(program, [wide(x) for x in tensors], wide(g), hypers)
    for k, (old, new) in enumerate(zip(tensors, news, strict=True)):
        old.copy_(dithered(new, key, sum(dither[:k])) if dither[k] else new)


def _run_trace(program: Program, olds: list[Tensor], g: Tensor, hypers: dict[str, float]) -> list[Tensor]:
    hosts = host_function(program.trace)(**hypers)
    news = element_function(program.trace)(olds[0], g, *olds[1:], *hosts)
    moved = [any(new is o for o in olds) and new is not old for old, new in zip(olds, news, strict=True)]
    return [new.clone() if m else new for new, m in zip(news, moved, strict=True)]


def _run_rule(program: Program, olds: list[Tensor], g: Tensor, hypers: dict[str, float]) -> list[Tensor]:
    "The rule itself, on copies: it may change what it is given."
    return list(program.run(olds[0].clone(), g.clone(), *(s.clone() for s in olds[1:]), **hypers))


def _compiled(name: str, args: tuple[str, ...], body: list[str], results: tuple[str, ...]) -> Callable:
    space = dict(sqrt=sqrt, where=where, inf=math.inf, nan=math.nan)
    exec(f"def {name}({', '.join(args)}):\n " + '\n '.join([*body, f"return ({', '.join(results)},)"]), space)
    return space[name]


@lru_cache(maxsize=512)
def element_function(trace: Trace) -> Callable:
    "The lines of a trace as a function of the elements and h0, h1, …, which gives the results."
    body = [f'{name} = {code}' for code, name in trace.lines.items()]
    return _compiled('lines', (*trace.arguments, *trace.hosts.values()), body, trace.results)


@lru_cache(maxsize=512)
def host_function(trace: Trace) -> Callable:
    "The hosts of a trace as a function of the hyperparameters, which gives (h0, h1, …) as Python floats."
    return _compiled('hosts', trace.hypers, [], tuple(trace.hosts))
