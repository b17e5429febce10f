"A trace as two Python functions: the numbers computed once per step, and the lines on tensors."
import math
from collections.abc import Callable
from functools import lru_cache

from miniai.kernels.math import sqrt, where
from miniai.kernels.trace import Trace

__all__ = ['element_function', 'host_function', 'scalar_places']


def scalar_places(trace: Trace) -> list[int]:
    "The index of each new scalar among the values of a trace's host function."
    names = list(trace.hosts.values())
    return [names.index(nm) for nm in trace.scalars]


def _compiled(name: str, args: tuple[str, ...], body: list[str], results: tuple[str, ...]) -> Callable:
    space = dict(sqrt=sqrt, where=where, inf=math.inf, nan=math.nan)
    exec(f"def {name}({', '.join(args)}):\n " + '\n '.join([*body, f"return ({', '.join(results)},)"]), space)
    return space[name]


@lru_cache(maxsize=512)
def element_function(trace: Trace) -> Callable:
    "The lines of a trace as a function of the elements and h0, h1, …; it returns the results."
    body = [f'{name} = {code}' for code, name in trace.lines.items()]
    return _compiled('lines', (*trace.arguments, *trace.hosts.values()), body, trace.results)


@lru_cache(maxsize=512)
def host_function(trace: Trace) -> Callable:
    "The hosts of a trace as a function of the hyperparameters; it returns (h0, h1, …) as Python floats."
    body = [f'{name} = {code}' for code, name in trace.steps.items()]
    return _compiled('hosts', trace.hypers, body, tuple(trace.hosts))
