"""A rule as a real torch.optim.Optimizer: arguments, parameter groups, state and its exchange with torch.
Knows no particular rule."""
import inspect
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .eager import eager_step, start_state
from .spec import REQUIRED, RuleSpec, read_rule

__all__ = ['RuleOptimizer', 'optimizer']

_ALIASES = dict(mom='momentum', wd='weight_decay')


class RuleOptimizer(torch.optim.Optimizer):
    """An optimizer that is its `rule`. A subclass sets `rule`, a function as miniai.optim.rules describes, and takes
    `(params, lr, wd=0., …)`, the rest being the rule's hyperparameters with their defaults, in order. `wd` is decay,
    decoupled from the gradient: p *= 1 - lr*wd.

    Groups keep `lr`, `weight_decay`, `betas` (for beta1, beta2, …), `momentum` (for mom) and the rule's other
    names, all of which may change at any time. `state_names` maps the rule's states to other names in `state`,
    such as torch's. ValueError for a negative rate or decay and for an average outside [0, 1); TypeError for
    complex parameters and sparse gradients."""
    rule: ClassVar[Callable]
    spec: ClassVar[RuleSpec]
    state_names: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if 'rule' not in vars(cls): return
        rule = vars(cls)['rule']
        cls.rule = rule if isinstance(rule, staticmethod) else staticmethod(rule)
        cls.spec = read_rule(cls.rule)
        cls.__signature__ = _signature(cls.spec)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, 'spec'):
            raise TypeError(f"{type(self).__name__} has no rule: "
                            f"subclass RuleOptimizer with rule = …, or call optimizer(rule)")
        bound = _signature(self.spec).bind(*args, **kwargs)
        bound.apply_defaults()
        params = bound.arguments.pop('params')
        super().__init__(params, self._group_names(bound.arguments))

    def _group_names(self, given: dict[str, Any]) -> dict[str, Any]:
        "Arguments of a constructor or a group under the names that groups use; TypeError where one is given twice."
        out = {k: v for k, v in given.items() if k not in _ALIASES and k not in self.spec.betas}
        for short, name in _ALIASES.items():
            if short in given and name in out:
                raise TypeError(f"{short} and {name} are the same hyperparameter: give one of them")
            if short in given: out[name] = given[short]
        betas = out.get('betas', getattr(self, 'defaults', {}).get('betas', ()))
        new = tuple(given.get(b, old) for b, old in zip(self.spec.betas, betas or [None]*9, strict=False))
        return out | dict(betas=new) if new else out

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: a dict with `params`, and hyperparameters in place of the defaults,
        by the constructor's names or the groups' own."""
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
            if math.isnan(x) or x < 0: raise ValueError(f"{type(self).__name__}: {h} must be 0 or more, got {x}")
            if re.fullmatch(r'beta\d|(\w+_)?mom', h) and x >= 1:
                raise ValueError(f"{type(self).__name__}: {h} is the weight of an average and must be below 1, got {x}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient; gradients stay.
        Returns what `closure`, called first with gradients on, gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad(): loss = closure()
        work = [(g, [p for p in g['params'] if p.grad is not None]) for g in self.param_groups]
        for _, ps in work: _check_dense(ps)
        for group, ps in work:
            hypers, wd = self.spec.hypers_of(group), float(group['weight_decay'])
            for p in ps: self._step_one(p, hypers, wd)
        return loss

    def _step_one(self, p: Tensor, hypers: dict[str, float], wd: float) -> None:
        state = self.state[p]
        if not state:
            state |= dict(step=0) | {self._state_name(s): x for s, x in start_state(self.spec, p, p.grad).items()}
        state['step'] += 1
        tensors = [state[self._state_name(s)] for s in self.spec.states]
        eager_step(self.spec, p, p.grad, tensors, state['step'], hypers, wd)

    def _state_name(self, s: str) -> str: return self.state_names.get(s, s)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's, for a state of torch's own too: what its groups lack comes from our defaults,
        and step counts become ints."""
        super().__setstate__(state)
        for group in self.param_groups:
            for k, v in self.defaults.items(): group.setdefault(k, v)
        for s in self.state.values():
            if 'step' in s: s['step'] = int(s['step'])


def _signature(spec: RuleSpec) -> inspect.Signature:
    "(params, lr, wd=0., *the rule's other hyperparameters)"
    kind, hypers = inspect.Parameter.POSITIONAL_OR_KEYWORD, dict(spec.hypers)
    defaults = dict(params=REQUIRED, lr=hypers.pop('lr'), wd=0.) | hypers
    return inspect.Signature([inspect.Parameter(k, kind, default=v) for k, v in defaults.items()])


def _check_dense(ps: Iterable[Tensor]) -> None:
    for p in ps:
        if p.grad.layout is not torch.strided:
            raise TypeError(f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which rules cannot take: "
                            f"build its layer with sparse=False, or give it to torch.optim.SparseAdam")


def optimizer(rule: Callable, name: str | None = None) -> type[RuleOptimizer]:
    "The optimizer class of a rule, in one call: `Mine = optimizer(my_rule)`."
    body = dict(rule=staticmethod(rule), __doc__=rule.__doc__, __module__=rule.__module__)
    return type(name or rule.__name__.title().replace('_', ''), (RuleOptimizer,), body)
