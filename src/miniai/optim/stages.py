"""What an optimizer does around its rule, each a small function of numbers: scaling and clipping gradients, decay,
cautious masking, weight averages. Composed with a rule they are a rule again. Knows specs, no engine."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from miniai.kernels.math import maximum, minimum, where
from miniai.kernels.trace import Trace, trace_rule
from miniai.optim.spec import RuleSpec, rule_name

__all__ = ['Stages', 'Program', 'program', 'prepared', 'clipped', 'decayed', 'with_l2', 'agrees', 'cautious',
           'rescaled', 'averaged']

SMALLEST_SHARE = 1e-3  # as in the authors' own code: a step is lengthened a thousandfold at most


@dataclass(frozen=True)
class Stages:
    "Which stages stand around a rule."
    clip_value: bool = False
    decoupled: bool = True
    cautious: bool = False
    rescaled: bool = False
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


def agrees(p: Any, new_p: Any, g: Any) -> Any:
    "Does the step from `p` to `new_p` go against the gradient?"
    return where(g > 0, p - new_p, where(g < 0, new_p - p, 0.)) > 0


def cautious(p: Any, new_p: Any, g: Any) -> Any:
    "The step where it goes against the gradient, and no step elsewhere (Liang et al. 2024, algorithm 1)."
    return where(agrees(p, new_p, g), new_p, p)


def rescaled(p: Any, new_p: Any, share: Any) -> Any:
    "The step over the share of elements that may take it, which keeps its mean length (Liang et al. 2024)."
    return p - (p - new_p) * (1/maximum(share, SMALLEST_SHARE))


def averaged(ema: Any, p: Any, decay: Any) -> Any:
    "An exponential average of the parameter."
    return ema + (1 - decay)*(p - ema)


@dataclass(frozen=True, eq=False)
class Program:
    """A rule with its stages around it: `run(p, g, *states, *scalars, **hypers)` gives the new parameter, states and
    scalars. `mask`, of the same arguments, says where a step agrees with its gradient; None unless the step is
    rescaled by its mean, as the hyperparameter `share`. `trace` and `mask_trace` are both as code, None where the rule
    has none."""
    spec: RuleSpec
    stages: Stages
    states: tuple[str, ...]
    run: Callable
    trace: Trace | None
    mask: Callable | None
    mask_trace: Trace | None

    @property
    def scalars(self) -> dict[str, float]:
        "The rule's states that are one number a parameter, with what they start at."
        return self.spec.scalars


@lru_cache(maxsize=512)
def program(spec: RuleSpec, stages: Stages) -> Program:
    "The composition of a rule and its stages, traced."
    states, own = (*spec.states, 'ema') if stages.ema else spec.states, dict(
        clip_value=stages.clip_value, ema_decay=stages.ema, share=stages.rescaled)
    hypers = ('t', *spec.hypers, 'wd', 'g_scale', *(nm for nm, used in own.items() if used))
    def traced(f: Callable | None) -> Trace | None:
        if spec.untraced or not f: return None
        return trace_rule(f, ('p', 'g', *states, *spec.scalars), hypers, tuple(spec.scalars))
    run, mask = _composed(spec, stages), _mask(spec, stages) if stages.rescaled else None
    return Program(spec, stages, states, run, traced(run), mask, traced(mask))


def prepared(stages: Stages, p: Any, g: Any, h: dict[str, Any]) -> tuple[Any, Any]:
    "The parameter and the gradient as the rule sees them: scaled, clipped, decayed."
    g = g * h['g_scale']
    if stages.clip_value: g = clipped(g, h['clip_value'])
    return (decayed(p, h['lr'], h['wd']), g) if stages.decoupled else (p, with_l2(p, g, h['wd']))


def _composed(spec: RuleSpec, stages: Stages) -> Callable:
    n = len(spec.states)
    def run(p: Any, g: Any, *states: Any, **h: Any) -> tuple:
        p, g = prepared(stages, p, g, h)
        new_p, *news = _ruled(spec, p, g, states, h)
        if stages.rescaled: new_p = rescaled(p, new_p, h['share'])
        if stages.cautious: new_p = cautious(p, new_p, g)
        average = (averaged(states[n], new_p, h['ema_decay']),) if stages.ema else ()
        return (new_p, *news[:n], *average, *news[n:])
    return run


def _mask(spec: RuleSpec, stages: Stages) -> Callable:
    def mask(p: Any, g: Any, *states: Any, **h: Any) -> tuple:
        p, g = prepared(stages, p, g, h)
        return agrees(p, _ruled(spec, p, g, states, h)[0], g), *states[len(states) - len(spec.scalars):]
    return mask


def _ruled(spec: RuleSpec, p: Any, g: Any, states: tuple, h: dict[str, Any]) -> tuple:
    "What the rule gives, a tuple. TypeError where that is not the parameter and its states."
    own = (*states[:len(spec.states)], *states[len(states) - len(spec.scalars):])
    out = spec.rule(p, g, *own, **{nm: h[nm] for nm in (*spec.hypers, *(('t',) if spec.uses_t else ()))})
    out = out if isinstance(out, tuple) else (out,)
    if len(out) == 1 + len(own): return out
    raise TypeError(f"rule {rule_name(spec.rule)} must return the new parameter and its {len(own)} state(s) "
                    f"{[*spec.states, *spec.scalars]}, got {len(out)} value(s)")
