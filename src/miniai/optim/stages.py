"""What an optimizer does around its rule, each a small function of numbers: scaling and clipping gradients, decay,
cautious masking, weight averages. Composed with a rule they are a rule again. Knows specs, no engine."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .math import maximum, minimum, where
from .spec import RuleSpec, rule_name
from .trace import Trace, trace_rule

__all__ = ['Stages', 'Program', 'program', 'prepared', 'clipped', 'decayed', 'with_l2', 'cautious', 'averaged']


@dataclass(frozen=True)
class Stages:
    "Which stages stand around a rule."
    clip_value: bool = False
    decoupled: bool = True
    cautious: bool = False
    ema: bool = False


def clipped(g: Any, limit: Any) -> Any:
    "`g`, kept between -limit and limit."
    return maximum(minimum(g, limit), -limit)


def decayed(p: Any, lr: Any, wd: Any) -> Any:
    "Decay decoupled from the gradient: p *= 1 - lr*wd (Loshchilov & Hutter 2017)."
    return p * (1 - lr*wd)


def with_l2(p: Any, g: Any, wd: Any) -> Any:
    "The gradient of the loss plus wd/2 * p*p: L2 regularisation."
    return g + wd*p


def cautious(p: Any, new_p: Any, g: Any) -> Any:
    "The step where it goes against the gradient, and no step elsewhere (Liang et al. 2024, without the rescaling)."
    return where((p - new_p)*g > 0, new_p, p)


def averaged(ema: Any, p: Any, decay: Any) -> Any:
    "An exponential average of the parameter."
    return ema + (1 - decay)*(p - ema)


@dataclass(frozen=True, eq=False)
class Program:
    """A rule with its stages around it: `run(p, g, *states, **hypers)` gives the new parameter and states. `trace` is
    it as code; None where the rule has none."""
    spec: RuleSpec
    stages: Stages
    states: tuple[str, ...]
    hypers: tuple[str, ...]
    run: Callable
    trace: Trace | None


@lru_cache(maxsize=512)
def program(spec: RuleSpec, stages: Stages) -> Program:
    "The composition of a rule and its stages, traced."
    states, run = (*spec.states, 'ema') if stages.ema else spec.states, _composed(spec, stages)
    own = dict(clip_value=stages.clip_value, ema_decay=stages.ema)
    hypers = ('t', *spec.hypers, 'wd', 'g_scale', *(nm for nm, used in own.items() if used))
    trace = trace_rule(run, ('p', 'g', *states), hypers) if spec.trace else None
    return Program(spec, stages, states, hypers, run, trace)


def prepared(stages: Stages, p: Any, g: Any, h: dict[str, Any]) -> tuple[Any, Any]:
    "The parameter and the gradient as the rule sees them: scaled, clipped, decayed."
    g = g * h['g_scale']
    if stages.clip_value: g = clipped(g, h['clip_value'])
    return (decayed(p, h['lr'], h['wd']), g) if stages.decoupled else (p, with_l2(p, g, h['wd']))


def _composed(spec: RuleSpec, stages: Stages) -> Callable:
    def run(p: Any, g: Any, *states: Any, **h: Any) -> tuple:
        p, g = prepared(stages, p, g, h)
        new_p, *news = _ruled(spec, p, g, states[:len(spec.states)], h)
        if stages.cautious: new_p = cautious(p, new_p, g)
        return (new_p, *news, averaged(states[-1], new_p, h['ema_decay'])) if stages.ema else (new_p, *news)
    return run


def _ruled(spec: RuleSpec, p: Any, g: Any, states: tuple, h: dict[str, Any]) -> tuple:
    "What the rule gives, a tuple. TypeError where that is not the parameter and its states."
    out = spec.rule(p, g, *states, **{nm: h[nm] for nm in (*spec.hypers, *(('t',) if spec.uses_t else ()))})
    out = out if isinstance(out, tuple) else (out,)
    if len(out) == 1 + len(spec.states): return out
    raise TypeError(f"rule {rule_name(spec.rule)} must return the new parameter and its {len(spec.states)} state(s) "
                    f"{list(spec.states)}, got {len(out)} value(s)")
