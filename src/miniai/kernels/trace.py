"""A rule, run once with symbols: expressions without an element are left to Python in double precision, the rest
becomes straight-line code."""
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ['RuleError', 'Symbol', 'Trace', 'trace_rule', 'symbolic_count', 'symbolic_double', 'symbolic_total',
           'symbolic_where']


class RuleError(TypeError):
    "A rule does something that no rule may do: branch on an element, or compute with a comparison."


@dataclass(eq=False)
class Trace:
    """A rule as code, from `elements` and `hypers` to `results`, the names of the new parameter and states, and
    `scalars`, the names of new numbers among the hosts. `sums` maps lines whose sum over all elements of a parameter is
    needed to its name, a hyper; `miniai.kernels.cut` says how they are found.

    `steps` maps expressions over hypers to names; Python computes them once per step. `hosts` maps those that elements
    need to h0, h1, …. `lines` maps expressions over elements, h's and earlier lines to x0, x1, …. Expressions use
    operators, sqrt, abs and where."""
    elements: tuple[str, ...]
    hypers: tuple[str, ...]
    steps: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    results: tuple[str, ...] = ()
    scalars: tuple[str, ...] = ()
    sums: dict[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> tuple[str, ...]:
        "The names of the elements in code, with an underscore: no other name in code ends in one."
        return tuple(f'{nm}_' for nm in self.elements)

    def step(self, code: str) -> str:
        "The name of a value that Python computes once per step; equal code is computed once."
        return self.steps.setdefault(code, f'__{len(self.steps)}')

    def host(self, code: str) -> str:
        "The name of such a value in code that runs per element."
        return self.hosts.setdefault(code, f'h{len(self.hosts)}')

    def line(self, code: str) -> str:
        "The name of a value computed per element; equal code is computed once."
        return self.lines.setdefault(code, f'x{len(self.lines)}')


class Symbol:
    """A number while a rule is traced: the `code` of its value, `elem` if it differs by element, `truth` if it is a
    comparison. Operations on it are written to `trace`."""
    def __init__(self, trace: Trace, code: str, elem: bool, truth: bool = False) -> None:
        self.trace, self.code, self.elem, self.truth = trace, code, elem, truth

    def __bool__(self) -> bool:
        if self.elem:
            raise RuleError("a rule may not branch on an element: write where(condition, a, b) instead of if")
        raise TypeError("it branches on a hyperparameter, which may change at any step")

    def __add__(self, o: Any) -> 'Symbol': return _node('{} + {}', self, o)
    def __radd__(self, o: Any) -> 'Symbol': return _node('{} + {}', o, self)
    def __sub__(self, o: Any) -> 'Symbol': return _node('{} - {}', self, o)
    def __rsub__(self, o: Any) -> 'Symbol': return _node('{} - {}', o, self)
    def __mul__(self, o: Any) -> 'Symbol': return _node('{} * {}', self, o)
    def __rmul__(self, o: Any) -> 'Symbol': return _node('{} * {}', o, self)
    def __truediv__(self, o: Any) -> 'Symbol': return _node('{} / {}', self, o)
    def __rtruediv__(self, o: Any) -> 'Symbol': return _node('{} / {}', o, self)
    def __lt__(self, o: Any) -> 'Symbol': return _truth('{} < {}', self, o)
    def __le__(self, o: Any) -> 'Symbol': return _truth('{} <= {}', self, o)
    def __gt__(self, o: Any) -> 'Symbol': return _truth('{} > {}', self, o)
    def __ge__(self, o: Any) -> 'Symbol': return _truth('{} >= {}', self, o)
    def __eq__(self, o: Any) -> 'Symbol': return _truth('{} == {}', self, o)
    def __ne__(self, o: Any) -> 'Symbol': return _truth('{} != {}', self, o)
    __hash__ = object.__hash__
    def __neg__(self) -> 'Symbol': return _node('-{}', self)
    def __abs__(self) -> 'Symbol': return _node('abs({})', self)
    def __pow__(self, o: Any) -> 'Symbol': return _power(self, o)
    def __rpow__(self, o: Any) -> 'Symbol': return _power(_symbol(self.trace, o), self)
    def sqrt(self) -> 'Symbol': return _node('sqrt({})', self)

    @property
    def shape(self) -> tuple[int, ...]: raise TypeError("it asks for the shape or dtype of a parameter")
    ndim = dtype = device = shape


def _symbol(trace: Trace, x: Any) -> Symbol:
    if isinstance(x, Symbol): return x
    if isinstance(x, int | float): return Symbol(trace, f'({int(x) if isinstance(x, int) else float(x)!r})', False)
    raise TypeError(f"it computes with {x!r}, a {type(x).__name__}")


def _node(template: str, *xs: Any) -> Symbol:
    if not any(getattr(x, 'truth', False) for x in xs): return _written(template, *xs)
    raise RuleError("a rule may not compute with a comparison: write where(condition, 1., 0.) for its number")


def _truth(template: str, *xs: Any) -> Symbol:
    found = _node(template, *xs)
    return Symbol(found.trace, found.code, found.elem, truth=True)


def _written(template: str, *xs: Any) -> Symbol:
    trace = next(x.trace for x in xs if isinstance(x, Symbol))
    xs = [_symbol(trace, x) for x in xs]
    if any(x.elem for x in xs): return Symbol(trace, trace.line(template.format(*map(_name, xs))), True)
    return Symbol(trace, trace.step(template.format(*(x.code for x in xs))), False)


def _name(x: Symbol) -> str: return x.code if x.elem else x.trace.host(x.code)


def _power(base: Symbol, exponent: Any) -> Symbol:
    if not base.elem and not getattr(exponent, 'elem', False): return _node('{} ** {}', base, exponent)
    if isinstance(exponent, int | float) and exponent in _POWERS: return _POWERS[exponent](base)
    raise TypeError(f"it raises an element to a power other than {', '.join(map(str, _POWERS))}")


_POWERS = {2: lambda x: x*x, 3: lambda x: x*x*x, 0.5: Symbol.sqrt}


def symbolic_where(cond: Any, a: Any, b: Any) -> Symbol:
    "`a` where `cond` holds, else `b`; at least one of them a symbol."
    return _written('where({}, {}, {})', cond, a, b)


def symbolic_double(x: Symbol) -> Symbol:
    "`x` in double precision, a truth as 1 or 0."
    return _written('double({})', symbolic_where(x, 1., 0.) if x.truth else x)


def symbolic_total(x: Symbol) -> Symbol:
    "The sum of a value over all elements of a parameter."
    if not x.elem: raise TypeError("it sums a number that is the same for all elements")
    return _sum_of(x.trace, symbolic_double(x).code)


def symbolic_count(x: Symbol) -> Symbol:
    "The number of elements of a parameter."
    return _sum_of(x.trace, x.trace.line('1.0'))


def _sum_of(trace: Trace, line: str) -> Symbol:
    return Symbol(trace, trace.sums.setdefault(line, f'__s{len(trace.sums)}'), False)


def trace_rule(rule: Callable, elements: tuple[str, ...] = (), hypers: tuple[str, ...] = (),
               scalars: tuple[str, ...] = ()) -> Trace:
    """Run `rule` once with symbols for its `elements` and `hypers`, by default those of its signature. The last
    elements and results may be `scalars`, numbers that are the same for all elements. RuleError if it branches on an
    element; TypeError, or whatever the rule raises, if it cannot be traced otherwise."""
    elements, hypers = (elements, hypers) if elements else _signature(rule)
    trace = Trace(tuple(nm for nm in elements if nm not in scalars), (*hypers, *scalars))
    given = {nm: Symbol(trace, nm, False) for nm in trace.hypers}
    given |= {nm: Symbol(trace, code, True) for nm, code in zip(trace.elements, trace.arguments, strict=True)}
    out = rule(*(given[nm] for nm in elements), **{nm: given[nm] for nm in hypers})
    out = [_symbol(trace, o) for o in (out if isinstance(out, tuple) else (out,))]
    tensors = len(out) - len(scalars)
    trace.results = tuple(map(_name, out[:tensors]))
    trace.scalars = tuple(_scalar_name(*found) for found in zip(scalars, out[tensors:], strict=True))
    return trace


def _scalar_name(state: str, x: Symbol) -> str:
    if not x.elem: return _name(x)
    raise RuleError(f"its state {state}, named by scalars(), must be one number per parameter, but depends on an "
                    f"element")


def _signature(rule: Callable) -> list[tuple[str, ...]]:
    return [tuple(p.name for p in inspect.signature(rule).parameters.values() if p.kind is kind)
            for kind in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)]
