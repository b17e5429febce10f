"A trace as two Python functions: the numbers computed once per step, and the lines on tensors."
import math
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.kernels.math import double, sqrt, where
from miniai.kernels.trace import Trace

__all__ = ['element_function', 'host_function', 'host_values', 'results_on', 'scalar_places', 'values_on']


def scalar_places(trace: Trace) -> list[int]:
    "The index of each new scalar among the values of a trace's host function."
    names = list(trace.hosts.values())
    return [names.index(nm) for nm in trace.scalars]


def _compiled(name: str, args: tuple[str, ...], body: list[str], results: tuple[str, ...]) -> Callable:
    space = dict(sqrt=_sqrt, where=_where, double=double, inf=math.inf, nan=math.nan)
    body = [*body, f"return ({''.join(f'{x}, ' for x in results)})"]
    exec(f"def {name}({', '.join(args)}):\n " + '\n '.join(body), space)
    return space[name]


def _sqrt(x: Any) -> Any: return np.sqrt(x) if isinstance(x, np.ndarray | np.generic) else sqrt(x)


def _where(cond: Any, a: Any, b: Any) -> Any:
    return np.where(cond, a, b) if isinstance(cond, np.ndarray) else where(cond, a, b)


@lru_cache(maxsize=512)
def element_function(trace: Trace) -> Callable:
    """The lines of a trace as a function of the elements and h0, h1, …; it returns the results. A line's value is
    forgotten after the last line that uses it, so that its memory serves the next one."""
    body, last = [f'{name} = {code}' for code, name in trace.lines.items()], {}
    for i, code in enumerate(body):
        for name in re.findall(r'\bx\d+\b', code): last[name] = i
    for name, i in last.items(): body[i] += '' if name in trace.results else f'; del {name}'
    return _compiled('lines', (*trace.arguments, *trace.hosts.values()), body, trace.results)


@lru_cache(maxsize=512)
def host_function(trace: Trace) -> Callable:
    """The hosts of a trace as a function of the hyperparameters; it returns (h0, h1, …) as Python floats, or for
    numbers by numpy, which divide by zero as elements do, as such numbers or arrays."""
    body = [f'{name} = {code}' for code, name in trace.steps.items()]
    return _compiled('hosts', trace.hypers, body, tuple(trace.hosts))


def host_values(trace: Trace, hypers: dict[str, float]) -> list[float]:
    "The hosts of a trace as Python floats."
    with np.errstate(all='ignore'): return list(map(float, host_function(trace)(**hypers)))


def results_on(trace: Trace, tensors: list[Tensor], hosts: list[Any]) -> list[Tensor]:
    "The results of a trace's lines, as new tensors: a rule may return an argument, or a number."
    return [x.clone() if any(x is o for o in tensors) else x for x in values_on(trace, tensors, hosts)]


def values_on(trace: Trace, tensors: list[Tensor], hosts: list[Any]) -> list[Tensor]:
    "The same, but some may be arguments."
    out = element_function(trace)(*tensors, *hosts)
    return [x if isinstance(x, Tensor) else torch.full_like(tensors[0], x) for x in out]
