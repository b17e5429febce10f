"A rule as a real torch.optim.Optimizer: arguments, parameter groups and the step. Knows no particular rule."
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from miniai.optim.eager import wide
from miniai.optim.engine import Plan
from miniai.optim.exchange import check_loadable, restore_states
from miniai.optim.spec import REQUIRED, RuleSpec, read_rule, rule_name
from miniai.optim.stages import Stages, prepared, program

__all__ = ['RuleOptimizer', 'optimizer']

OPTIONS = dict(decoupled=True, clip_norm=None, clip_value=None, skip_nonfinite=False, cautious=False, ema=None,
               state=None, rounding='nearest', seed=0)
_KEPT = ('clip_norm', 'clip_value', 'skip_nonfinite', 'skipped', 'ema', 'rounding', 'seed', 'state_dtype', 'stages')
_ALIASES = dict(mom='momentum', wd='weight_decay')


class RuleOptimizer(torch.optim.Optimizer):
    """An optimizer that is its `rule`. A subclass sets `rule`, a function as miniai.optim.rules describes, and takes
    `(params, lr, wd=0., …)`, the rest being the rule's hyperparameters with their defaults, in order. `wd` is decay,
    decoupled from the gradient: p *= 1 - lr*wd.

    Groups keep `lr`, `weight_decay`, `betas` (for beta1, beta2, …), `momentum` (for mom) and the rule's other names,
    all of which may change at any time. `state_names` maps the rule's states to other names in `state`, such as
    torch's, and `torch_group` gives what torch's own class wants in a group beside ours. ValueError for a negative
    rate, decay or eps and for the weight of an average outside [0, 1); TypeError for complex parameters and sparse
    gradients."""
    rule: ClassVar[Callable]
    spec: ClassVar[RuleSpec]
    default_wd: ClassVar[float] = 0.
    state_names: ClassVar[dict[str, str]] = {}
    skipped, _plan, _kept, _step_supports_amp_scaling = 0, None, None, True
    torch_group: ClassVar[Callable[[dict[str, Any]], dict[str, Any]]] = staticmethod(lambda group: {})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ignored = {'opt_step', 'reg_step'} & set(vars(cls))
        if ignored:
            raise TypeError(f"{cls.__name__} has {', '.join(sorted(ignored))}, which nothing calls here: write the "
                            f"update as a rule, and the class as optimizer(rule)")
        if 'rule' not in vars(cls): return
        rule = vars(cls)['rule']
        cls.rule = rule if isinstance(rule, staticmethod) else staticmethod(rule)
        cls.spec = read_rule(cls.rule)
        cls.__signature__ = _signature(cls.spec, cls.default_wd)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, 'spec'):
            raise TypeError(f"{type(self).__name__} has no rule: subclass RuleOptimizer with rule = …, "
                            f"or call optimizer(rule)")
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        self._options(**{k: given.pop(k) for k in OPTIONS})
        params = given.pop('params')
        super().__init__(params, self._group_names(given))

    def _options(self, decoupled: bool, clip_norm: float | None, clip_value: float | None, skip_nonfinite: bool,
                 cautious: bool | str, ema: float | None, state: str | None, rounding: str, seed: int) -> None:
        "Keep what stands around the rule, for the whole optimizer. ValueError for what cannot be meant."
        _check_option('clip_norm', clip_norm, clip_norm is None or clip_norm > 0, 'above 0')
        _check_option('clip_value', clip_value, clip_value is None or clip_value > 0, 'above 0')
        _check_option('cautious', cautious, cautious in (False, True, 'rescaled'), "True, False or 'rescaled'")
        _check_option('ema', ema, ema is None or 0 <= ema < 1, 'in [0, 1), the weight of the average')
        _check_option('state', state, state in (None, 'bf16'), "'bf16' or None")
        _check_option('rounding', rounding, rounding in ('nearest', 'stochastic'), "'nearest' or 'stochastic'")
        self.clip_norm, self.clip_value, self.skip_nonfinite, self.ema = clip_norm, clip_value, skip_nonfinite, ema
        self.rounding, self.seed, self.state_dtype = rounding, seed, torch.bfloat16 if state else None
        self.stages = Stages(clip_value is not None, decoupled, bool(cautious), cautious == 'rescaled', ema is not None)
        self.program = program(self.spec, self.stages)

    def _group_names(self, given: dict[str, Any]) -> dict[str, Any]:
        "Arguments of a constructor or a group under the names that groups use; TypeError where one is given twice."
        names = {h: self.spec.group_key(h) for h in self.spec.hypers} | _ALIASES
        twice = [(k, names[k]) for k in given if names.get(k, k) != k and names[k] in given]
        if twice: raise TypeError(f"{twice[0][0]} and {twice[0][1]} are the same hyperparameter: give one of them")
        out = {names.get(k, k): v for k, v in given.items()}
        return out | dict(betas=self._betas(given)) if 'betas' in out else out

    def _betas(self, given: dict[str, Any]) -> tuple:
        "All betas of a group: those given, by one name or one by one, the rest from the defaults."
        names = self.spec.betas
        old = getattr(self, 'defaults', {}).get('betas', names)
        betas = given['betas'] if 'betas' in given else [given.get(b, o) for b, o in zip(names, old, strict=True)]
        if isinstance(betas, tuple | list) and len(betas) == len(names): return tuple(betas)
        raise ValueError(f"{type(self).__name__}: betas must be {len(names)} numbers, for {', '.join(names)}, "
                         f"got {betas!r}")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: a dict with `params`, and hyperparameters in place of the defaults, by the constructor's
        names or the groups' own."""
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group must be a dict with 'params', got {param_group!r}")
        group = self._group_names(param_group)
        self._check(self.defaults | group)
        super().add_param_group(group)
        for p in self.param_groups[-1]['params']:
            if not p.is_complex(): continue
            self.param_groups.pop()
            raise TypeError(f"{type(self).__name__} has no complex arithmetic, and a parameter of shape "
                            f"{tuple(p.shape)} is {p.dtype}: pass torch.view_as_real of it")

    def _check(self, group: dict[str, Any]) -> None:
        for h, x in (self.spec.hypers_of(group) | dict(wd=float(group['weight_decay']))).items():
            average = re.fullmatch(r'beta\d|(\w+_)?mom', h)
            if math.isnan(x) or (x < 0 and (average or h in ('lr', 'wd', 'eps') or h.endswith('decay'))):
                raise ValueError(f"{type(self).__name__}: {h} must be 0 or more, got {x}")
            if average and x >= 1:
                raise ValueError(f"{type(self).__name__}: {h} is the weight of an average and must be below 1, got {x}")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient; gradients stay. Returns what `closure`, called first with
        gradients on, gives."""
        return (_watched_step if _is_watched(self) else _step)(self, closure)

    step.hooked = True  # else torch wraps it in a profiler's record, which costs more than a small step

    def _current_plan(self) -> Plan:
        if self._plan is None or not self._plan.holds(self):
            _check_dense(p for g in self.param_groups for p in g['params'] if p.grad is not None)
            self._plan = Plan(self)
            if not self._plan.holds(self):
                raise RuntimeError("parameters changed while a step was planned: step an optimizer from one thread")
        return self._plan

    def _gradient_scale(self, plan: Plan) -> float | None:
        "What gradients are multiplied by, to unscale and to clip by norm; None where the step is to be skipped."
        found_inf, grad_scale = getattr(self, 'found_inf', None), getattr(self, 'grad_scale', None)
        if found_inf is not None and found_inf.item(): return self._skip()
        scale = 1. if grad_scale is None else 1/grad_scale.item()
        if self.clip_norm is None and not self.skip_nonfinite: return scale
        norm = math.sqrt(plan.sum_of_squares())*scale
        if self.skip_nonfinite and not math.isfinite(norm): return self._skip()
        return scale if self.clip_norm is None else scale*min(self.clip_norm/(norm + 1e-6), 1.)

    def _skip(self) -> None: self.skipped += 1

    def _hypers(self, group: dict[str, Any], scale: float, t: int) -> dict[str, float]:
        given = self.spec.hypers_of(group) | dict(t=t, wd=float(group['weight_decay']), g_scale=scale)
        if self.clip_value is not None: given['clip_value'] = self.clip_value
        if self.ema is not None: given['ema_decay'] = self.ema
        return given

    @property
    def path(self) -> str:
        "Which path, fused or eager, steps how many parameters, and why: for those that have gradients now."
        return self._current_plan().path()

    def state_of(self, p: Tensor) -> dict[str, Any]:
        "The state of `p`, made, all zeros, where there is none."
        state, like = self.state[p], wide(p.detach())
        for s in self.program.states:
            dtype = self.state_dtype if self.state_dtype and s != 'ema' else like.dtype
            if self.state_name(s) not in state: state[self.state_name(s)] = torch.zeros_like(like, dtype=dtype)
        for s, first in self.spec.scalars.items(): state.setdefault(self.state_name(s), float(first))
        state.setdefault('step', 0)
        return state

    @torch.no_grad()
    def start(self, p: Tensor, hypers: dict[str, float]) -> None:
        "Set states that do not start at zero, from the parameter as it is and the gradient as the rule will see it."
        state, now = self.state[p], wide(p.detach())
        if self.ema is not None: state['ema'].copy_(now)
        for s, value in self.spec.starts.items():
            first, old = value(now, prepared(self.stages, now, wide(p.grad), hypers)[1]), state[self.state_name(s)]
            old.copy_(first) if isinstance(first, Tensor) else old.fill_(first)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        "Within it the parameters are their weight averages, `ema`; after it what they were. ValueError without `ema`."
        if self.ema is None: raise ValueError(f"{type(self).__name__} keeps no weight average: give it ema=0.999, say")
        self.swap_averages()
        try: yield
        finally: self.swap_averages()

    @property
    def shows_averages(self) -> bool:
        "Are weight averages in the place of the parameters now?"
        return self._kept is not None

    @torch.no_grad()
    def swap_averages(self) -> None:
        "Put weight averages in the place of the parameters that have one; called again, put the parameters back."
        kept, self._kept = self._kept, None
        begun = [p for p, state in self.state.items() if state.get('step') and 'ema' in state]
        if kept is None: self._kept = {p: p.detach().clone() for p in begun}
        for p in self._kept or kept or (): p.copy_(self.state[p]['ema'] if kept is None else kept[p])

    def dithers(self, s: str | None) -> bool:
        "Is the state `s`, or with None the parameter, rounded at random where it is kept in bfloat16?"
        return self.rounding == 'stochastic' if s is None else s != 'ema'

    def state_name(self, s: str) -> str:
        "What `state` calls the rule's state `s`."
        return self.state_names.get(s, s)

    def state_dict(self) -> dict[str, Any]:
        "As torch's, and with what torch's class of the same mathematics wants in a group, so that it can load it."
        out = super().state_dict()
        for group in out['param_groups']:
            group |= self.torch_group(group)
            if 'decoupled_weight_decay' in group: group['decoupled_weight_decay'] = self.stages.decoupled
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class, or torch's of the same mathematics, saved. ValueError, changing nothing, where it
        does not fit."""
        check_loadable(self, state_dict)
        super().load_state_dict(state_dict)
        restore_states(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {k: getattr(self, k) for k in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's, for a state of torch's own too: what its groups lack comes from our defaults, step counts become
        ints."""
        defaults = dict(getattr(self, 'defaults', {}))
        super().__setstate__(state)
        self._plan, self.program = None, program(self.spec, self.stages)
        self.defaults = state.get('defaults', defaults)
        self.defaults.pop('differentiable', None)
        for group in self.param_groups:
            for k in set(self.torch_group(group | self.defaults)) - set(self.defaults): group.pop(k, None)
            for k, v in self.defaults.items(): group.setdefault(k, v)
        for s in self.state.values():
            s['step'] = int(s.get('step', 0))
            s |= {nm: float(s[nm]) for nm in map(self.state_name, self.spec.scalars) if nm in s}


def _check_option(name: str, value: Any, good: bool, wanted: str) -> None:
    if not good: raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _step(opt: RuleOptimizer, closure: Callable[[], Any] | None = None) -> Any:
    loss = None
    if closure is not None:
        with torch.enable_grad(): loss = closure()
    plan = opt._current_plan()
    scale = opt._gradient_scale(plan)
    if scale is None: return loss
    hypers = [partial(opt._hypers, group, scale) for group in opt.param_groups]
    for s in plan.unstarted: opt.start(s.p, hypers[s.group](1))
    plan.step(hypers, opt.seed)
    return loss


_watched_step = torch.optim.Optimizer.profile_hook_step(_step)


def _is_watched(opt: RuleOptimizer) -> bool:
    "Does anybody hook into steps, or profile them?"
    return bool(opt._optimizer_step_pre_hooks or opt._optimizer_step_post_hooks or _global_optimizer_pre_hooks
                or _global_optimizer_post_hooks or torch.autograd._profiler_enabled())


def _signature(spec: RuleSpec, wd: float) -> inspect.Signature:
    "(params, lr, wd=0., *the rule's other hyperparameters); those without a default by keyword."
    kinds, hypers = inspect.Parameter, dict(spec.hypers)
    first = dict(params=REQUIRED, lr=hypers.pop('lr'), wd=wd)
    positional = first | {k: v for k, v in hypers.items() if v is not REQUIRED}
    required = [k for k, v in hypers.items() if v is REQUIRED]
    return inspect.Signature([kinds(k, kinds.POSITIONAL_OR_KEYWORD, default=v) for k, v in positional.items()]
                             + [kinds(k, kinds.KEYWORD_ONLY) for k in required]
                             + [kinds(k, kinds.KEYWORD_ONLY, default=v) for k, v in OPTIONS.items()])


def _check_dense(ps: Iterable[Tensor]) -> None:
    for p in ps:
        if p.grad.layout is not torch.strided:
            raise TypeError(f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which rules cannot take: "
                            f"build its layer with sparse=False, or give it to torch.optim.SparseAdam")


def optimizer(rule: Callable, name: str | None = None) -> type[RuleOptimizer]:
    "The optimizer class of a rule, in one call: `Mine = optimizer(my_rule)`."
    name = name or rule_name(rule).title().replace('_', '')
    module = getattr(rule, '__module__', __name__)
    return type(name, (RuleOptimizer,), dict(rule=staticmethod(rule), __doc__=rule.__doc__, __module__=module))
