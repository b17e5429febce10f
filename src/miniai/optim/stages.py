"""Stages around a rule, each a small function of numbers: gradient scaling and clipping, decay, cautious masking,
weight averages. A rule with its stages is a rule again."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from miniai.kernels.math import maximum, minimum, where
from miniai.kernels.trace import Trace, trace_rule
from miniai.optim.spec import RuleSpec, rule_name

__all__ = ['Stages', 'Program', 'program', 'prepared', 'clipped', 'decayed', 'with_l2', 'agrees', 'cautious',
           'rescaled', 'averaged', 'warm_decay']

SMALLEST_SHARE = 1e-3  # as in the authors' code: a step becomes at most a thousand times longer


@dataclass(frozen=True)
class Stages:
    "Which stages surround a rule."
    clip_value: bool = False
    decoupled: bool = True
    cautious: bool = False
    rescaled: bool = False
    ema: bool = False


def clipped(g: Any, limit: Any) -> Any:
    "`g`, clamped to [-limit, limit]."
    return maximum(minimum(g, limit), -limit)


def decayed(p: Any, lr: Any, wd: Any) -> Any:
    "Decay decoupled from the gradient: p *= 1 - lr*wd (Loshchilov & Hutter 2017)."
    return p * (1 - lr*wd)


def with_l2(p: Any, g: Any, wd: Any) -> Any:
    "The gradient of the loss plus wd/2 * p*p: L2 regularisation."
    return g + wd*p


def agrees(p: Any, new_p: Any, g: Any) -> Any:
    "Whether the step from `p` to `new_p` goes against the gradient."
    return where(g > 0, p - new_p, where(g < 0, new_p - p, 0.)) > 0


def cautious(p: Any, new_p: Any, g: Any) -> Any:
    "The step where it goes against the gradient, and no step elsewhere (Liang et al. 2024, algorithm 1)."
    return where(agrees(p, new_p, g), new_p, p)


def rescaled(p: Any, new_p: Any, share: Any) -> Any:
    "The step divided by the share of elements that take it, which keeps its mean length (Liang et al. 2024)."
    return p - (p - new_p) * (1/maximum(share, SMALLEST_SHARE))


def averaged(ema: Any, p: Any, decay: Any, t: Any) -> Any:
    "An exponential average of the parameter, which warms up: over about the last tenth of the first steps."
    return ema + (1 - warm_decay(decay, t))*(p - ema)


def warm_decay(decay: Any, t: Any) -> Any:
    "The weight that an average has at step `t`: `decay`, and less at first (TensorFlow's ExponentialMovingAverage)."
    return minimum(decay, (1 + t)/(10 + t))


@dataclass(frozen=True, eq=False)
class Program:
    """A rule with its stages: `run(p, g, *states, *scalars, **hypers)` returns the new parameter, states and scalars.
    `mask`, with the same arguments, says where a step agrees with the gradient; it is None unless the step is rescaled
    by the mask's mean, the hyperparameter `share`. `trace` and `mask_trace` are their traces, None if untraceable."""
    spec: RuleSpec
    stages: Stages
    states: tuple[str, ...]
    run: Callable
    trace: Trace | None
    mask: Callable | None
    mask_trace: Trace | None

    @property
    def scalars(self) -> dict[str, float]:
        "The rule's states that are one number per parameter, with their first values."
        return self.spec.scalars


@lru_cache(maxsize=512)
def program(spec: RuleSpec, stages: Stages) -> Program:
    "A rule and its stages, composed and traced."
    n, states = len(spec.states), (*spec.states, 'ema') if stages.ema else spec.states
    def run(p: Any, g: Any, *states: Any, **h: Any) -> tuple:
        p, g = prepared(spec, stages, p, g, h)
        new_p, *new = _call(spec, stages, p, g, states, h)
        if stages.rescaled: new_p = rescaled(p, new_p, h['share'])
        if stages.cautious: new_p = cautious(p, new_p, g)
        average = (averaged(states[n], new_p, h['ema_decay'], h['t']),) if stages.ema else ()
        return (new_p, *new[:n], *average, *new[n:])
    def mask(p: Any, g: Any, *states: Any, **h: Any) -> tuple:
        p, g = prepared(spec, stages, p, g, h)
        return agrees(p, _call(spec, stages, p, g, states, h)[0], g), *states[len(states) - len(spec.scalars):]
    hypers = ('t', *spec.hypers, 'wd', 'g_scale', 'clip_value', 'ema_decay', *(('share',) if stages.rescaled else ()))
    def traced(f: Callable) -> Trace | None:
        return None if spec.untraced else trace_rule(f, ('p', 'g', *states, *spec.scalars), hypers, tuple(spec.scalars))
    masks = (mask, traced(mask)) if stages.rescaled else (None, None)
    return Program(spec, stages, states, run, traced(run), *masks)


def prepared(spec: RuleSpec, stages: Stages, p: Any, g: Any, h: dict[str, Any]) -> tuple[Any, Any]:
    "The parameter and the gradient as the rule sees them: scaled, clipped, decayed."
    g = g * h['g_scale']
    if stages.clip_value: g = clipped(g, h['clip_value'])
    if not stages.decoupled: return p, with_l2(p, g, h['wd'])
    return (p if spec.decays else decayed(p, h['lr'], h['wd'])), g


def _call(spec: RuleSpec, stages: Stages, p: Any, g: Any, states: tuple, h: dict[str, Any]) -> tuple:
    "What the rule returns, as a tuple. TypeError if it is not the parameter and its states."
    own = (*states[:len(spec.states)], *states[len(states) - len(spec.scalars):])
    if not stages.decoupled: h = h | dict(wd=0.)  # the gradient has it
    names = (*spec.hypers, *['t']*spec.uses_t, *['wd']*spec.decays)
    out = spec.rule(p, g, *own, **{nm: h[nm] for nm in names})
    out = out if isinstance(out, tuple) else (out,)
    if len(out) == 1 + len(own): return out
    raise TypeError(f"rule {rule_name(spec.rule)} must return the new parameter and its {len(own)} state(s) "
                    f"{[*spec.states, *spec.scalars]}, got {len(out)} value(s)")
