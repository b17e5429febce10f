"A trace that needs sums over parameters, cut into passes: some that only read and sum, and the last, which steps."
import re
from collections.abc import Iterable

from miniai.kernels.trace import Trace

__all__ = ['cut']

_ELEMENTWISE, _ONCE = re.compile(r'\b[xh]\d+\b'), re.compile(r'\b__\w+\b')  # names in lines; in hosts and steps


def cut(trace: Trace) -> list[Trace]:
    """The passes of a trace, in order. The results of each but the last are to be summed over all elements of a
    parameter; its `sums` have the names by which later passes take these sums among their hypers."""
    if not trace.sums: return [trace]
    passes, known = [], trace.hypers
    while missing := {line: nm for line, nm in trace.sums.items() if nm not in known}:
        ready = {line: nm for line, nm in missing.items() if not _needed(trace, [line]) & set(missing.values())}
        passes.append(_part(trace, known, tuple(ready), (), ready))
        known += tuple(ready.values())
    return [*passes, _part(trace, known, trace.results, trace.scalars, {})]


def _part(trace: Trace, hypers: tuple[str, ...], results: tuple[str, ...], scalars: tuple[str, ...],
          sums: dict[str, str]) -> Trace:
    "What a trace computes some of its names from, under the same names."
    needed = _needed(trace, (*results, *scalars))
    steps, hosts, lines = ({code: nm for code, nm in table.items() if nm in needed}
                           for table in (trace.steps, trace.hosts, trace.lines))
    return Trace(trace.elements, hypers, steps, hosts, lines, results, scalars, sums)


def _needed(trace: Trace, names: Iterable[str]) -> set[str]:
    "These names, and all that they are computed from."
    lines = {nm: code for code, nm in trace.lines.items()}
    numbers = {nm: code for table in (trace.steps, trace.hosts) for code, nm in table.items()}
    found, rest = set(), [*names]
    while rest:
        nm = rest.pop()
        if nm in found: continue
        found.add(nm)  # numbers may use a hyperparameter of the user's named x1 or h1: it is no line and no host
        rest += _ELEMENTWISE.findall(lines[nm]) if nm in lines else _ONCE.findall(numbers.get(nm, ''))
    return found
