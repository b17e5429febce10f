"What a rule's signature says: its state, its hyperparameters and their defaults, and where parameter groups keep them."
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ['RuleSpec', 'read_rule']

_P, _K = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class RuleSpec:
    """A rule and its signature: `states`, names after `p, g`; `hypers`, keyword-only names but `t`,
    with their defaults; `uses_t`. `starts` gives a state's value before the first step, as a
    function of (p, g), where it is not zero."""
    rule: Callable
    states: tuple[str, ...]
    hypers: dict[str, Any]
    uses_t: bool
    starts: dict[str, Callable]

    @property
    def betas(self) -> tuple[str, ...]:
        "The hyperparameters that a group keeps together as `betas`: beta1, beta2, …"
        return tuple(h for h in self.hypers if re.fullmatch(r'beta\d', h))

    def group_key(self, hyper: str) -> str:
        "Under which key a parameter group keeps a hyperparameter: torch's name where torch has one."
        return 'betas' if hyper in self.betas else dict(mom='momentum', wd='weight_decay').get(hyper, hyper)

    def hypers_of(self, group: dict[str, Any]) -> dict[str, float]:
        "The rule's hyperparameters, as Python floats, out of a parameter group."
        found = dict(zip(self.betas, group['betas'], strict=False)) if self.betas else {}
        return {h: float(found[h] if h in found else group[self.group_key(h)]) for h in self.hypers}


def read_rule(rule: Callable) -> RuleSpec:
    "The spec of `rule(p, g, *states, *, lr, …)`. TypeError, naming what is wrong, where it is no rule."
    if not callable(rule): raise TypeError(f"a rule must be a function rule(p, g, …, *, lr, …), got {rule!r}")
    params = list(inspect.signature(rule).parameters.values())
    where = f"rule {getattr(rule, '__name__', rule)}{inspect.signature(rule)}"
    odd = [p.name for p in params if p.kind not in (_P, _K)]
    if odd:
        raise TypeError(f"{where}: {', '.join(odd)} is positional-only or variadic; "
                        f"state comes as positional names, hyperparameters as keyword-only ones")
    positional, hypers = [p for p in params if p.kind is _P], {p.name: p.default for p in params if p.kind is _K}
    if [p.name for p in positional[:2]] != ['p', 'g']:
        raise TypeError(f"{where}: the first two arguments must be p and g, the parameter and its gradient")
    with_default = [p.name for p in positional if p.default is not REQUIRED]
    if with_default:
        raise TypeError(f"{where}: {', '.join(with_default)} has a default, as hyperparameters do: "
                        f"write them after a lone *")
    if 'lr' not in hypers: raise TypeError(f"{where}: it needs a keyword-only lr, the learning rate: rule(p, g, *, lr)")
    uses_t = hypers.pop('t', None) is not None
    states, starts = tuple(p.name for p in positional[2:]), getattr(rule, 'starts', {})
    unknown = sorted(set(starts) - set(states))
    if unknown:
        raise TypeError(f"{where}: starts() names {', '.join(unknown)}, which is none of its states {list(states)}")
    if 'wd' in hypers or 'step' in states:
        raise TypeError(f"{where}: decay and the step count are the optimizer's: "
                        f"leave out wd, and take the count as a keyword-only t")
    return RuleSpec(rule, states, hypers, uses_t, starts)
