"What a rule's signature says: its state, its hyperparameters and their defaults, and where parameter groups keep them."
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from miniai.kernels.trace import RuleError, trace_rule

__all__ = ['RuleSpec', 'read_rule', 'rule_name', 'REQUIRED']

_P, _K = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
_OURS = {'wd', 'weight_decay', 'step', 'params', 'betas', 'g_scale', 'share', 'ema_decay', 'decoupled',
         'clip_norm', 'clip_value', 'skip_nonfinite', 'cautious', 'ema', 'state', 'rounding', 'seed'}
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True, eq=False)
class RuleSpec:
    """A rule and its signature: after `p, g` come `states`, tensors, then `scalars`, one number each, with what they
    start at; `hypers`, the keyword-only names but `t`, with their defaults; `uses_t`. `starts` gives a state's value
    before the first step, as a function of (p, g), where it is not zero. Where the rule cannot be traced, `untraced`
    says why."""
    rule: Callable
    states: tuple[str, ...]
    scalars: dict[str, float]
    hypers: dict[str, Any]
    uses_t: bool
    starts: dict[str, Callable]
    untraced: str

    @property
    def betas(self) -> tuple[str, ...]:
        "The hyperparameters that a group keeps together as `betas`: beta1, beta2, …"
        return tuple(h for h in self.hypers if re.fullmatch(r'beta\d', h))

    def group_key(self, hyper: str) -> str:
        "Under which key a parameter group keeps a hyperparameter: torch's name where torch has one."
        return 'betas' if hyper in self.betas else dict(mom='momentum', wd='weight_decay').get(hyper, hyper)

    def hypers_of(self, group: dict[str, Any]) -> dict[str, float]:
        "The rule's hyperparameters, as Python floats, out of a parameter group."
        return {h: float(group[key] if i is None else group[key][i]) for h, key, i in self._places}

    @cached_property
    def _places(self) -> list[tuple[str, str, int | None]]:
        betas = self.betas
        return [(h, self.group_key(h), betas.index(h) if h in betas else None) for h in self.hypers]


def rule_name(rule: Callable) -> str:
    "The name of a rule, of what it wraps, or of its class."
    return getattr(rule, '__name__', None) or (rule_name(rule.func) if hasattr(rule, 'func') else type(rule).__name__)


def read_rule(rule: Callable) -> RuleSpec:
    "The spec of `rule(p, g, *states, *, lr, …)`. TypeError, naming what is wrong, where it is no rule."
    if not callable(rule): raise TypeError(f"a rule must be a function rule(p, g, …, *, lr, …), got {rule!r}")
    params = list(inspect.signature(rule).parameters.values())
    positional, hypers = [p.name for p in params if p.kind is _P], {p.name: p.default for p in params if p.kind is _K}
    starts, scalars = _said(rule, 'starts'), _said(rule, 'scalars')
    wrong = _wrong_with(params, positional, hypers, dict(starts=starts, scalars=scalars))
    if wrong: raise TypeError(f"rule {rule_name(rule)}{inspect.signature(rule)}: {wrong}")
    uses_t = hypers.pop('t', None) is not None
    states = tuple(nm for nm in positional[2:] if nm not in scalars)
    scalars = {nm: scalars[nm] for nm in positional if nm in scalars}
    return RuleSpec(rule, states, scalars, hypers, uses_t, starts, _untraced(rule, scalars))


def _wrong_with(params: list, positional: list[str], hypers: dict[str, Any],
                said: dict[str, dict[str, Any]]) -> str | None:
    "What keeps a signature from being a rule's, in words; None where nothing does."
    odd = [p.name for p in params if p.kind not in (_P, _K)]
    if odd: return (f"{', '.join(odd)} is positional-only or variadic; state comes as positional names, "
                    f"hyperparameters as keyword-only ones")
    if positional[:2] != ['p', 'g']: return "the first two arguments must be p and g, the parameter and its gradient"
    with_default = [p.name for p in params if p.kind is _P and p.default is not REQUIRED]
    if with_default: return f"{', '.join(with_default)} has a default, as hyperparameters do: write them after a lone *"
    if 'lr' not in hypers: return "it needs a keyword-only lr, the learning rate: rule(p, g, *, lr)"
    for by, names in said.items():
        unknown = sorted(set(names) - set(positional[2:]))
        if unknown: return f"{by}() names {', '.join(unknown)}, which is none of its states {positional[2:]}"
    last = positional[len(positional) - len(said['scalars']):]
    if set(last) != set(said['scalars']): return f"states that are one number, {', '.join(said['scalars'])}, come last"
    both = sorted(set(said['starts']) & set(said['scalars']))
    if both: return f"starts() and scalars() both name {', '.join(both)}"
    taken = sorted(nm for nm in _OURS if nm in positional or nm in hypers)
    if set(taken) & {'wd', 'weight_decay', 'step'} or 't' in positional:
        return (f"decay and the step count are the optimizer's: leave out {', '.join(taken or 't')}, and take "
                f"the count as a keyword-only t")
    return f"{', '.join(taken)} is a name of the optimizer's own: call it something else" if taken else None


def _said(rule: Callable, what: str) -> dict[str, Any]:
    "What the decorator `what` said of a rule, or of the rule that a partial wraps."
    while not hasattr(rule, what) and hasattr(rule, 'func'): rule = rule.func
    return getattr(rule, what, {})


def _untraced(rule: Callable, scalars: dict[str, float]) -> str:
    "Why a rule cannot be traced and must be run as it is: it does what has no symbols; '' where it can."
    try: trace_rule(rule, scalars=tuple(scalars))
    except RuleError as e: raise RuleError(f"rule {rule_name(rule)}: {e}") from e
    except Exception as e: return f"{rule_name(rule)} cannot be traced: {e}"
    return ''
