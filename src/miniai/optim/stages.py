"""Stages around a rule, each a small function of numbers: gradient scaling and clipping, decay, Nesterov's momentum,
cautious masking, a kept norm, weight averages. A rule with its stages is a rule again."""
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from miniai.kernels.cut import cut
from miniai.kernels.math import double, maximum, minimum, where
from miniai.kernels.matrix import mean, norm
from miniai.kernels.trace import Trace, trace_rule
from miniai.optim.spec import RuleSpec, by_names, rule_name

__all__ = ['AVERAGES', 'Stages', 'Program', 'program', 'prepared', 'clipped', 'decayed', 'with_l2',
           'cautiously_decayed', 'agrees', 'cautious', 'rescaled', 'on_sphere', 'averaged', 'average_weight']

AVERAGES = 'ema', 'tail'  # the states of weight averages
MOMENTA = 'avg', 'buf'    # what rules call their average of gradients

SMALLEST_SHARE = 1e-3  # as in the authors' code: a step becomes at most a thousand times longer


@dataclass(frozen=True)
class Stages:
    "Which stages surround a rule."
    clip_value: bool = False
    decoupled: bool = True
    cautious: bool = False
    rescaled: bool = False
    ema: bool = False
    tail: bool = False
    nesterov: bool = False
    cautious_decay: bool = False
    hyperball: bool = False

    @property
    def averages(self) -> tuple[str, ...]:
        "The state that holds the weight average, if there is one."
        return tuple(s for s in AVERAGES if getattr(self, s))


def clipped(g: Any, limit: Any) -> Any:
    "`g`, clamped to [-limit, limit]."
    return maximum(minimum(g, limit), -limit)


def decayed(p: Any, lr: Any, wd: Any) -> Any:
    "Decay decoupled from the gradient: `p *= 1 - lr*wd` (Loshchilov & Hutter 2017)."
    return p * (1 - lr*wd)


def with_l2(p: Any, g: Any, wd: Any) -> Any:
    "The gradient of the loss plus `wd/2 * p*p`: L2 regularisation."
    return g + wd*p


def cautiously_decayed(p: Any, new_p: Any, lr: Any, wd: Any) -> tuple[Any, Any]:
    "`p` and `new_p` decayed where the step does not lead away from zero (Chen et al. 2025, equation 2)."
    decay = where(where(p > 0, p - new_p, new_p - p) >= 0, lr*wd*p, 0.)
    return p - decay, new_p - decay


def agrees(p: Any, new_p: Any, g: Any) -> Any:
    "Whether the step from `p` to `new_p` goes against the gradient."
    return where(g > 0, p - new_p, where(g < 0, new_p - p, 0.)) > 0


def cautious(p: Any, new_p: Any, g: Any) -> Any:
    "The step where it goes against the gradient, and no step elsewhere (Liang et al. 2024, algorithm 1)."
    return where(agrees(p, new_p, g), new_p, p)


def rescaled(p: Any, new_p: Any, share: Any) -> Any:
    "The step divided by the share of elements that take it, which keeps its mean length (Liang et al. 2024)."
    return p - (p - new_p) * (1/maximum(share, SMALLEST_SHARE))


def on_sphere(p: Any, new_p: Any, radius: Any, lr: Any) -> Any:
    """The step with a length of lr*radius, then the parameter with the norm `radius`, that of its first value (Wen et
    al. 2026, Hyperball). Where that is 0, the parameter is left free."""
    step = p - new_p
    length = norm(step)
    moved = p - where(length > 0, lr*radius/length, 0.)*step
    return where(radius > 0, radius/norm(moved) * moved, new_p)


def averaged(average: Any, p: Any, weight: Any) -> Any:
    "An average of the parameter, in which its new value has that weight."
    return average + weight*(p - average)


def average_weight(t: Any, ema: Any, tail: Any) -> Any:
    """The weight of step `t` in an average. That of `ema` is exponential and warms up, over about the last tenth of the
    first steps (TensorFlow's ExponentialMovingAverage); that of `tail` is uniform over the steps from `tail` on."""
    return 1 - minimum(ema, (1 + t)/(10 + t)) if tail is None else 1/maximum(t - tail + 1, 1.)


@dataclass(frozen=True, eq=False)
class Program:
    """A rule with its stages: `run(p, g, *states, *scalars, **hypers)` returns the new parameter, states and scalars.
    `scalars`, one number per parameter each, map to their first values. `trace` is a trace of `run`, and `passes` are
    those before it that find sums for it; they are None and () if `untraced` says why there are none. `totals` is a
    trace of the values of elements that the rule wants summed over all parameters, if it can be traced."""
    spec: RuleSpec
    stages: Stages
    states: tuple[str, ...]
    scalars: dict[str, float]
    untraced: str
    run: Callable
    trace: Trace | None
    passes: tuple[Trace, ...]
    totals: Trace | None


    @property
    def keeps_parameter(self) -> bool:
        "Whether the rule gets the parameter itself: no stage decays it before."
        return self.spec.decays or self.stages.cautious_decay or not self.stages.decoupled


@lru_cache(maxsize=512)
def program(spec: RuleSpec, stages: Stages) -> Program:
    "A rule and its stages, composed and traced. ValueError if a stage does not fit the rule."
    if stages.nesterov: _momentum(spec)
    n, states = len(spec.states), (*spec.states, *stages.averages)
    scalars = spec.scalars | (dict(radius=0.) if stages.hyperball else {})
    def run(p: Any, g: Any, *states: Any, **h: Any) -> tuple:
        before, p, new_p, g, new = p, *_stepped(spec, stages, p, g, states, h)
        if stages.rescaled: new_p = rescaled(p, new_p, mean(agrees(p, new_p, g)))
        if stages.cautious: new_p = cautious(p, new_p, g)
        if stages.hyperball: new_p = on_sphere(before, new_p, states[-1], h['lr'])
        average = [averaged(states[n], new_p, _weight(stages, h)) for _ in stages.averages]
        return (new_p, *new[:n], *average, *new[n:], *states[len(states) - stages.hyperball:])
    hypers = 't', *spec.hypers, 'wd', 'g_scale', 'clip_value', 'ema_decay', 'tail_start'
    passes = [None]
    if not spec.untraced: passes = cut(trace_rule(run, ('p', 'g', *states, *scalars), hypers, tuple(scalars)))
    return Program(spec, stages, states, scalars, spec.untraced, run, passes[-1], tuple(passes[:-1]),
                   _totals(spec, stages, states, (*hypers, *scalars)))


def _totals(spec: RuleSpec, stages: Stages, states: tuple[str, ...], hypers: tuple[str, ...]) -> Trace | None:
    "A trace of the values that a rule wants summed over all parameters; None if they cannot be traced, or sum again."
    if spec.untraced or not spec.totals: return None
    def values(p: Any, g: Any, *xs: Any, **h: Any) -> tuple:
        p, g = prepared(spec, stages, p, g, h)
        given = h | dict(zip(states, xs, strict=True)) | dict(p=p, g=g)
        return tuple(double(by_names(f, given)) for f in spec.totals[1].values())
    try: trace = trace_rule(values, ('p', 'g', *states), hypers)
    except TypeError: return None
    return None if trace.sums else trace


def _stepped(spec: RuleSpec, stages: Stages, p: Any, g: Any, states: tuple, h: dict[str, Any]) -> tuple:
    "The parameter before and after the rule's step, the gradient as the rule saw it, and the rule's new states."
    n = len(spec.states)
    k = n + len(stages.averages)
    own = [*states[:n], *states[k:k + len(spec.scalars)]]
    p, g = prepared(spec, stages, p, g, h)
    new_p, *new = _call(spec, stages, p, g, own, h)
    if stages.nesterov:
        own[_momentum(spec)] = new[_momentum(spec)]
        new_p = _call(spec, stages, p, g, own, h)[0]
    if stages.cautious_decay: p, new_p = cautiously_decayed(p, new_p, h['lr'], h['wd'])
    return p, new_p, g, new


def _weight(stages: Stages, h: dict[str, Any]) -> Any:
    return average_weight(h['t'], h['ema_decay'], h['tail_start'] if stages.tail else None)


def _momentum(spec: RuleSpec) -> int:
    "The index of a rule's average of gradients among its states."
    found = [i for i, s in enumerate(spec.states) if s in MOMENTA]
    if found: return found[0]
    raise ValueError(f"nesterov=True applies a rule's average of gradients once more, but {rule_name(spec.rule)} has "
                     f"no state named {' or '.join(MOMENTA)}: create it without nesterov")


def prepared(spec: RuleSpec, stages: Stages, p: Any, g: Any, h: dict[str, Any]) -> tuple[Any, Any]:
    "The parameter and the gradient as the rule sees them: scaled, clipped, decayed."
    g = g * h['g_scale']
    if stages.clip_value: g = clipped(g, h['clip_value'])
    if not stages.decoupled: return p, with_l2(p, g, h['wd'])
    return (p if spec.decays or stages.cautious_decay else decayed(p, h['lr'], h['wd'])), g


def _call(spec: RuleSpec, stages: Stages, p: Any, g: Any, own: list, h: dict[str, Any]) -> tuple:
    "What the rule returns, as a tuple. TypeError if it is not the parameter and its states."
    if not stages.decoupled or stages.cautious_decay: h = h | dict(wd=0.)  # the gradient or a stage has it
    out = spec.rule(p, g, *own, **{nm: h[nm] for nm in (*spec.hypers, *spec.supplied)})
    out = out if isinstance(out, tuple) else (out,)
    if len(out) == 1 + len(own): return out
    raise TypeError(f"rule {rule_name(spec.rule)} must return the new parameter and its {len(own)} state(s) "
                    f"{[*spec.states, *spec.scalars]}, got {len(out)} value(s)")
