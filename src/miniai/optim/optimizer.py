"A rule as a real torch.optim.Optimizer: arguments, parameter groups and the step. Knows no particular rule."
import inspect
import math
import re
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor

from .eager import eager_step, start_state
from .exchange import check_loadable, restore_states
from .spec import REQUIRED, RuleSpec, read_rule, rule_name

__all__ = ['RuleOptimizer', 'optimizer']

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
    state_names: ClassVar[dict[str, str]] = {}
    torch_group: ClassVar[Callable[[dict[str, Any]], dict[str, Any]]] = staticmethod(lambda group: {})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if 'rule' not in vars(cls): return
        rule = vars(cls)['rule']
        cls.rule = rule if isinstance(rule, staticmethod) else staticmethod(rule)
        cls.spec = read_rule(cls.rule)
        cls.__signature__ = _signature(cls.spec)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, 'spec'):
            raise TypeError(f"{type(self).__name__} has no rule: subclass RuleOptimizer with rule = …, "
                            f"or call optimizer(rule)")
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        params = bound.arguments.pop('params')
        super().__init__(params, self._group_names(bound.arguments))

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
            if math.isnan(x) or (x < 0 and (average or h in ('lr', 'wd', 'eps'))):
                raise ValueError(f"{type(self).__name__}: {h} must be 0 or more, got {x}")
            if average and x >= 1:
                raise ValueError(f"{type(self).__name__}: {h} is the weight of an average and must be below 1, got {x}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step on every parameter that has a gradient; gradients stay. Returns what `closure`, called first with
        gradients on, gives."""
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
        state = self.state[p] or self._start(p)
        states = [state[self.state_name(s)] for s in self.spec.states]
        eager_step(self.spec, p, p.grad, states, state['step'] + 1, hypers, wd)
        state['step'] += 1

    def _start(self, p: Tensor) -> dict[str, Any]:
        starts = start_state(self.spec, p, p.grad)
        self.state[p] = dict(step=0) | {self.state_name(s): x for s, x in starts.items()}
        return self.state[p]

    def state_name(self, s: str) -> str:
        "What `state` calls the rule's state `s`."
        return self.state_names.get(s, s)

    def state_dict(self) -> dict[str, Any]:
        "As torch's, and with what torch's class of the same mathematics wants in a group, so that it can load it."
        out = super().state_dict()
        for group in out['param_groups']: group |= self.torch_group(group)
        return out

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class, or torch's of the same mathematics, saved. ValueError, changing nothing, where it
        does not fit."""
        check_loadable(self, state_dict)
        super().load_state_dict(state_dict)
        restore_states(self, state_dict)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """As torch's, for a state of torch's own too: what its groups lack comes from our defaults, step counts become
        ints."""
        defaults = dict(getattr(self, 'defaults', {}))
        super().__setstate__(state)
        self.defaults = state.get('defaults', defaults)
        self.defaults.pop('differentiable', None)
        for group in self.param_groups:
            for k in set(self.torch_group(group | self.defaults)) - set(self.defaults): group.pop(k, None)
            for k, v in self.defaults.items(): group.setdefault(k, v)
        for s in self.state.values(): s['step'] = int(s.get('step', 0))


def _signature(spec: RuleSpec) -> inspect.Signature:
    "(params, lr, wd=0., *the rule's other hyperparameters); those without a default by keyword."
    kinds, hypers = inspect.Parameter, dict(spec.hypers)
    first = dict(params=REQUIRED, lr=hypers.pop('lr'), wd=0.)
    positional = first | {k: v for k, v in hypers.items() if v is not REQUIRED}
    required = [k for k, v in hypers.items() if v is REQUIRED]
    return inspect.Signature([kinds(k, kinds.POSITIONAL_OR_KEYWORD, default=v) for k, v in positional.items()]
                             + [kinds(k, kinds.KEYWORD_ONLY) for k in required])


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
