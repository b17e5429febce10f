"A rule's signature: its states, its hyperparameters with their defaults, and where parameter groups keep them."
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import inf
from typing import Any

from miniai.kernels.trace import RuleError, trace_rule

__all__ = ['RuleSpec', 'read_rule', 'rule_name', 'by_names', 'REQUIRED']

REQUIRED = inspect.Parameter.empty
_STATE, _HYPER = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
_RESERVED = {'weight_decay', 'step', 'params', 'betas', 'rule', 'g_scale', 'ema_decay', 'decoupled',
             'clip_norm', 'clip_value', 'skip_nonfinite', 'cautious', 'ema', 'state', 'rounding', 'seed',
             'tail', 'tail_start', 'nesterov', 'cautious_decay', 'hyperball', 'radius'}
_KEYS = dict(mom='momentum', wd='weight_decay')  # hyperparameters for which groups use torch's name


@dataclass(frozen=True, eq=False)
class RuleSpec:
    """What a rule's signature says. `states` are tensors; `scalars`, one number per parameter each, map to their first
    value; `hypers` map to their defaults, or REQUIRED; `supplied` are those of t, wd and key that it takes; `starts`
    maps states that do not start at zero to a function of (p, g). `untraced` says why a rule cannot be traced; it is ''
    for rules that can. `others` is the rule for other parameters if this one is for matrices only: those with at most
    `longest` rows and columns, only `hidden` ones, `flat` or with all their dimensions. `evaluated` gives the point at
    which models are evaluated. `totals` are a function that renews hyperparameters, and the functions of elements whose
    sums it takes."""
    rule: Callable
    states: tuple[str, ...]
    scalars: dict[str, float]
    hypers: dict[str, Any]
    supplied: tuple[str, ...]
    starts: dict[str, Callable]
    untraced: str
    others: Callable | None
    longest: float
    hidden: bool
    flat: bool
    evaluated: Callable | None
    totals: tuple[Callable, dict[str, Callable]] | None

    @property
    def decays(self) -> bool: return 'wd' in self.supplied

    @property
    def state_names(self) -> tuple[str, ...]: return (*self.states, *self.scalars)

    @cached_property
    def exact_states(self) -> set[str]:
        "States that the evaluation point and `totals` are computed from: they are kept in full precision."
        functions = [*[self.evaluated]*bool(self.evaluated), *(self.totals[1].values() if self.totals else ())]
        return {nm for f in functions for nm in _names(f)} & set(self.states)

    def check_numbers(self, name: str, group: dict[str, Any]) -> None:
        "TypeError for a hyperparameter of a group, of the class `name`, that is text or None and cannot be a word."
        for h, key, i in self.places:
            x = group[key] if i is None else group[key][i]
            default = self.hypers.get(h)
            may_be_word = isinstance(default, str) or (default is REQUIRED and h != 'lr')
            if may_be_word or not (x is None or isinstance(x, str)): continue
            raise TypeError(f"{name}: {h} must be a number, got {x!r}")

    def check_words(self, hypers: dict[str, Any]) -> None:
        "ValueError for a hyperparameter that is a word and that the rule does not know: it is tried on numbers."
        if not any(isinstance(x, str) for x in hypers.values()): return
        given = dict(t=1, wd=0., key=0) | hypers
        given = {nm: given[nm] for nm in (*self.hypers, *self.supplied)}
        try: self.rule(1., 1., *(1. for _ in self.state_names), **given)
        except ValueError: raise
        except Exception: return  # a rule need not work on numbers

    @cached_property
    def betas(self) -> tuple[str, ...]:
        """The hyperparameters that a group keeps together as `betas`: beta1, beta2, … in this order. None without a
        beta1: torch's cycling schedulers take the first of `betas` for a momentum."""
        found = [h for h in self.hypers if re.fullmatch(r'beta\d+', h)]
        return tuple(sorted(found, key=lambda h: int(h[4:]))) if 'beta1' in found else ()

    def group_key(self, hyper: str) -> str:
        "The key under which a parameter group keeps a hyperparameter."
        return 'betas' if hyper in self.betas else _KEYS.get(hyper, hyper)

    @cached_property
    def places(self) -> list[tuple[str, str, int | None]]:
        "For each hyperparameter and `wd`: its name, its key in a group, and its index there, None for a number."
        return [(h, self.group_key(h), self.betas.index(h) if h in self.betas else None) for h in (*self.hypers, 'wd')]

    def as_group(self, given: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
        """`given`, by argument names or group keys, under group keys, with `defaults` for the betas that are missing.
        TypeError if one is given by both names, ValueError for a wrong number of betas."""
        keys = {h: self.group_key(h) for h in self.hypers} | _KEYS
        for k in given:
            if keys.get(k, k) != k and keys[k] in given:
                raise TypeError(f"{k} and {keys[k]} are the same hyperparameter: give only one of them")
        group = {keys.get(k, k): v for k, v in given.items()}
        if 'betas' not in group: return group
        rest = defaults.get('betas', self.betas)
        betas = given['betas'] if 'betas' in given else [given.get(b, d) for b, d in zip(self.betas, rest, strict=True)]
        if isinstance(betas, tuple | list) and len(betas) == len(self.betas): return group | dict(betas=tuple(betas))
        raise ValueError(f"{rule_name(self.rule)}: betas must be {len(self.betas)} numbers, for "
                         f"{', '.join(self.betas)}, got {betas!r}")


@lru_cache(maxsize=512)
def _names(f: Callable) -> tuple[str, ...]: return tuple(inspect.signature(f).parameters)


def by_names(f: Callable, values: dict[str, Any]) -> Any:
    "What `f` returns for those of `values` that its arguments name."
    return f(**{nm: values[nm] for nm in _names(f)})


def rule_name(rule: Callable) -> str:
    "The name of a rule, or of the rule inside a partial, or of the rule's class."
    return getattr(rule, '__name__', None) or (rule_name(rule.func) if hasattr(rule, 'func') else type(rule).__name__)


def read_rule(rule: Callable) -> RuleSpec:
    "The spec of `rule(p, g, *states, *, lr, …)`. TypeError says what is wrong with a function that is not a rule."
    if not callable(rule): raise TypeError(f"a rule must be a function rule(p, g, …, *, lr, …), got {rule!r}")
    params = list(inspect.signature(rule).parameters.values())
    starts, scalars = _noted(rule, 'starts', {}), _noted(rule, 'scalars', {})
    wrong = _wrong_arguments(params) or _wrong_states([p.name for p in params if p.kind is _STATE][2:], starts, scalars)
    if wrong: raise TypeError(f"rule {rule_name(rule)}{inspect.signature(rule)}: {wrong}")
    try:
        trace_rule(rule, scalars=tuple(scalars))
        untraced = ''
    except RuleError as e: raise RuleError(f"rule {rule_name(rule)}: {e}") from e
    except (Exception, SystemExit) as e: untraced = f"{rule_name(rule)} cannot be traced: {e}"
    states = [p.name for p in params[2:] if p.kind is _STATE]
    hypers = {p.name: p.default for p in params if p.kind is _HYPER}
    supplied = tuple(nm for nm in ('t', 'wd', 'key') if hypers.pop(nm, None) is not None)
    if 'key' in supplied: untraced = f"{rule_name(rule)} cannot be traced: it draws random numbers"
    return RuleSpec(rule, tuple(s for s in states if s not in scalars), {s: scalars[s] for s in states if s in scalars},
                    hypers, supplied, starts, untraced, _noted(rule, 'others', None), _noted(rule, 'longest', inf),
                    _noted(rule, 'hidden', True), _noted(rule, 'flat', True), _noted(rule, 'evaluated', None),
                    _noted(rule, 'totals', None))


def _noted(rule: Callable, what: str, default: Any) -> Any:
    "What a decorator noted on a rule, or on the rule inside a partial."
    while not hasattr(rule, what) and hasattr(rule, 'func'): rule = rule.func
    return getattr(rule, what, default)


def _wrong_arguments(params: list[inspect.Parameter]) -> str | None:
    "An error message if the arguments of a rule are wrong; None if they are right."
    odd = [p.name for p in params if p.kind not in (_STATE, _HYPER)]
    if odd: return (f"{', '.join(odd)} is positional-only or variadic; write states as positional arguments and "
                    f"hyperparameters as keyword-only ones")
    if [p.name for p in params[:2]] != ['p', 'g'] or params[1].kind is _HYPER:
        return "the first two arguments must be p and g, the parameter and its gradient"
    defaulted = [p.name for p in params if p.kind is _STATE and p.default is not REQUIRED]
    if defaulted: return f"{', '.join(defaulted)} has a default, so it is a hyperparameter: write it after a lone *"
    hypers = [p.name for p in params if p.kind is _HYPER]
    if 'lr' not in hypers: return "it needs a keyword-only lr, the learning rate: rule(p, g, *, lr)"
    names = [p.name for p in params]
    taken = sorted(_RESERVED & set(names))
    wrong = [h for h in ('t', 'wd') if h in names and h not in hypers]
    if {'weight_decay', 'step'} & set(taken) or wrong:
        return (f"the optimizer handles decay and counts steps: remove {', '.join(taken or wrong)}, and take "
                f"the step count as a keyword-only t")
    if taken: return f"the optimizer uses the name {', '.join(taken)} itself: choose another one"
    return None


def _wrong_states(states: list[str], starts: dict[str, Callable], scalars: dict[str, float]) -> str | None:
    "An error message if the decorators do not fit the states of a rule; None if they do."
    for by, names in dict(starts=starts, scalars=scalars).items():
        unknown = sorted(set(names) - set(states))
        if unknown: return f"{by}() names {', '.join(unknown)}, but the states are {states}"
    if set(states[len(states) - len(scalars):]) != set(scalars):
        return f"states that scalars() names must come last: {', '.join(scalars)}"
    both = sorted(set(starts) & set(scalars))
    if both: return f"starts() and scalars() both name {', '.join(both)}"
    return None
