"""The eager path: a rule's trace run on tensors, one parameter at a time; a rule without one is run as it is. Right
on every device and dtype. Knows specs, no particular rule."""
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .math import sqrt, where
from .spec import RuleSpec, rule_name
from .trace import Trace

__all__ = ['eager_step', 'start_state', 'wide', 'host_function']


def wide(x: Tensor) -> Tensor:
    "`x` in the precision that rules are computed in: float32 for half types, its own otherwise."
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def start_state(spec: RuleSpec, p: Tensor, g: Tensor) -> dict[str, Tensor]:
    "The rule's state before its first step: zeros like `p`, or what the rule says; float32 for half types."
    p, g = wide(p.detach()), wide(g)
    return {s: _filled(p, spec.starts[s](p, g) if s in spec.starts else 0.) for s in spec.states}


def _filled(p: Tensor, value: float | Tensor) -> Tensor:
    state = torch.empty_like(p, memory_format=torch.preserve_format)
    return state.copy_(value) if isinstance(value, Tensor) else state.fill_(value)


def eager_step(spec: RuleSpec, p: Tensor, g: Tensor, states: list[Tensor], step: int, hypers: dict[str, float],
               wd: float) -> None:
    """One step in place: decoupled decay, then the rule. Half precision is computed in float32; the gradient is left
    alone."""
    start = wide(p)*(1 - hypers['lr']*wd) if wd else wide(p)
    hypers = hypers | dict(t=step) if spec.uses_t else hypers
    run = _run_trace if spec.trace else _run_rule
    news = run(spec, start, wide(g), [wide(s) for s in states], hypers)
    for old, new in zip((p, *states), news, strict=True): old.copy_(new)


def _run_trace(spec: RuleSpec, p: Tensor, g: Tensor, states: list[Tensor], hypers: dict[str, float]) -> list[Tensor]:
    lines, hosts = element_function(spec.trace), host_function(spec.trace)
    olds, news = (p, *states), lines(p, g, *states, *hosts(**hypers))
    _check_count(spec, news)
    moved = [any(new is o for o in olds) and new is not old for old, new in zip(olds, news, strict=True)]
    return [new.clone() if m else new for new, m in zip(news, moved, strict=True)]


def _run_rule(spec: RuleSpec, p: Tensor, g: Tensor, states: list[Tensor], hypers: dict[str, float]) -> list[Tensor]:
    "The rule itself, on copies: it may change what it is given."
    out = spec.rule(p.clone(), g.clone(), *(s.clone() for s in states), **hypers)
    out = out if isinstance(out, tuple) else (out,)
    _check_count(spec, out)
    return list(out)


def _check_count(spec: RuleSpec, out: tuple) -> None:
    if len(out) == 1 + len(spec.states): return
    raise TypeError(f"rule {rule_name(spec.rule)} must return the new parameter and its {len(spec.states)} state(s) "
                    f"{list(spec.states)}, got {len(out)} value(s)")


def _compiled(name: str, args: tuple[str, ...], body: list[str], results: tuple[str, ...]) -> Callable:
    space = dict(sqrt=sqrt, where=where)
    exec(f"def {name}({', '.join(args)}):\n " + '\n '.join([*body, f"return ({', '.join(results)},)"]), space)
    return space[name]


@lru_cache(maxsize=256)
def element_function(trace: Trace) -> Callable:
    "The lines of a trace as a function of the elements and h0, h1, …, which gives the results."
    body = [f'{name} = {code}' for code, name in trace.lines.items()]
    return _compiled('lines', (*trace.elements, *trace.hosts.values()), body, trace.results)


@lru_cache(maxsize=256)
def host_function(trace: Trace) -> Callable:
    "The hosts of a trace as a function of the hyperparameters by name, which gives (h0, h1, …) as Python floats."
    return _compiled('hosts', trace.hypers, [], tuple(trace.hosts)) if trace.hosts else lambda **hypers: ()
