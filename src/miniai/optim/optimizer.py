"A rule as a torch.optim.Optimizer: its arguments, parameter groups, state_dict and step."
import copyreg
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from miniai.optim.evaluation_point import EvaluationPoint, Shown
from miniai.optim.matrices import check_matrices, matrix_groups
from miniai.optim.options import OPTIONS, SEVERAL_KINDS, STATES, stages_of
from miniai.optim.plan import current_plan, hypers_of
from miniai.optim.spec import REQUIRED, RuleSpec, read_rule, rule_name
from miniai.optim.stages import program
from miniai.optim.state_dict import check_loadable, own_group, restore_states, unpacked_states
from miniai.optim.zero import show_momentum, zero_around

__all__ = ['RuleOptimizer', 'optimizer', 'class_of', 'inner_optimizer']

_CLASSES = {}  # the optimizer class of each rule
_KEPT = ('clip_norm', 'clip_value', 'skip_nonfinite', 'skipped', 'ema', 'tail', 'rounding', 'seed', 'state_dtype',
         'stages', '_shown')


class _RuleClass(type):
    "The type of optimizer classes. Those made by `optimizer(rule)` are pickled as that call."


def _reduced(cls: _RuleClass) -> str | tuple:
    return (optimizer, vars(cls)['made_from']) if 'made_from' in vars(cls) else cls.__qualname__


copyreg.pickle(_RuleClass, _reduced)


class RuleOptimizer(EvaluationPoint, torch.optim.Optimizer, metaclass=_RuleClass):
    """An optimizer made from a `rule`, a function as described in miniai.optim.rules. Arguments: `params, lr, wd`, the
    weight decay, then the rule's other hyperparameters with their defaults, then options by keyword.

    A group may name another rule by its class: `dict(params=biases, rule=AdamW)`. It shares `lr` and `wd` with the
    other groups unless it gives its own; its other hyperparameters default to those of that class.

    Subclasses set `rule`; `default_wd`; `state_names`, to rename the rule's states in `state` as torch does;
    `torch_names`, torch's names for hyperparameters in a state_dict; `torch_group`, what else torch's class of the same
    mathematics has in a group, with the values that this class stands for; and `unlike_torch`, hyperparameters that
    must be 0 in a state_dict of torch, and why."""
    rule: ClassVar[Callable]
    spec: ClassVar[RuleSpec]
    default_wd: ClassVar[float] = 0.
    state_names: ClassVar[dict[str, str]] = {}
    torch_names: ClassVar[dict[str, str]] = {}
    torch_group: ClassVar[Callable[[dict[str, Any]], dict[str, Any]]] = staticmethod(lambda group: {})
    unlike_torch: ClassVar[dict[str, str]] = {}
    mathematics: ClassVar[str]  # the name of the class that set the rule: a state_dict says whose state it is

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        ignored = {'opt_step', 'reg_step'} & set(vars(cls))
        if ignored:
            raise TypeError(f"{cls.__name__} defines {', '.join(sorted(ignored))}, which is never called: write the "
                            f"update as a rule and create the class with optimizer(rule)")
        if 'rule' not in vars(cls): return
        rule = vars(cls)['rule']
        cls.rule, cls.mathematics = rule if isinstance(rule, staticmethod) else staticmethod(rule), cls.__name__
        cls.spec = read_rule(cls.rule)
        _CLASSES.setdefault(cls.rule, cls)
        cls.__signature__ = _signature(cls.spec, cls.default_wd)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if not hasattr(self, 'spec'):
            raise TypeError(f"{type(self).__name__} has no rule: subclass RuleOptimizer with rule = …, "
                            f"or call optimizer(rule)")
        bound = self.__signature__.bind(*args, **kwargs)
        bound.apply_defaults()
        given, self.zero, self._shown, self.skipped, self._plan = bound.arguments, zero_around(), Shown(), 0, None
        self._set_options({k: given.pop(k) for k in OPTIONS})
        params = given.pop('params')
        if self.spec.others or isinstance(params, nn.Module): params = self._grouped(params)
        super().__init__(params, self.spec.as_group(given, {}))
        if self.zero is not None: show_momentum(self.zero, self.defaults)

    def _set_options(self, options: dict[str, Any]) -> None:
        self.stages = stages_of(options)
        for name in ('clip_norm', 'clip_value', 'skip_nonfinite', 'ema', 'tail', 'rounding', 'seed'):
            setattr(self, name, options[name])
        self.state_dtype = STATES[options['state']]

    def _grouped(self, params: Any) -> Any:
        "`params`, which may be a model, and for a rule for matrices in groups."
        if not self.spec.others: return params.parameters()
        if self.zero is None or all('rule' in g for g in self.zero.param_groups):
            return matrix_groups(params, type(self))
        raise TypeError(f"{type(self).__name__} needs groups, which ZeroRedundancyOptimizer lets nobody add: give it "
                        f"matrix_groups(model, {type(self).__name__})")

    @classmethod
    def companion(cls) -> 'type[RuleOptimizer]':
        "The class that steps what a rule for matrices does not."
        return class_of(cls.spec.others)

    def rule_of(self, group: dict[str, Any]) -> 'type[RuleOptimizer]':
        "The class whose rule steps a group: the one that the group names as `rule`, or this optimizer's own."
        return group.get('rule', type(self))

    @classmethod
    def state_name(cls, s: str) -> str:
        "The key in `state` of the rule's state `s`."
        return cls.state_names.get(s, s)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group: a dict with `params`, hyperparameters by the constructor's names or by the groups' own, and
        optionally `rule`, an optimizer class that steps it. ValueError for hyperparameters out of range; TypeError for
        complex parameters and unknown rules."""
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group must be a dict with 'params', got {param_group!r}")
        rule, own = self.rule_of(param_group), self.defaults
        if not (isinstance(rule, type) and issubclass(rule, RuleOptimizer) and hasattr(rule, 'spec')):
            raise TypeError(f"a group's rule must be an optimizer class of miniai or optimizer(rule), got {rule!r}")
        defaults = self._defaults_of(rule)
        group = rule.spec.as_group(param_group, defaults)
        if rule.spec.others: check_matrices(rule, group['params'])
        if rule is type(self): group.pop('rule', None)
        missing = [k for k, v in (defaults | group).items() if v is REQUIRED]
        if missing: raise TypeError(f"{rule.__name__} has no default for {', '.join(missing)}: give it in the group")
        rule._check(defaults | group)
        own_stages = [f.name for f in fields(self.stages) if f.name not in ('clip_value', 'decoupled')]
        odd = [nm for nm in own_stages if rule.spec.evaluated and getattr(self.stages, nm)]
        if odd: raise ValueError(f"{rule.__name__} has an evaluation point of its own, which {odd[0]} would make "
                                 f"wrong: create it without {odd[0]}")
        program(rule.spec, self.stages)  # raises an error if the rule returns too few or too many values
        self.defaults = defaults  # torch completes the group from these
        try: super().add_param_group(group)
        finally: self.defaults = own
        for p in self.param_groups[-1]['params']:
            if not p.is_complex(): continue
            self.param_groups.pop()
            raise TypeError(f"{rule.__name__} does not support complex numbers, but a parameter of shape "
                            f"{tuple(p.shape)} is {p.dtype}: pass torch.view_as_real of it")

    def _defaults_of(self, rule: 'type[RuleOptimizer]') -> dict[str, Any]:
        "The hyperparameters of a new group of that rule, by group keys."
        if rule is type(self): return self.defaults
        return rule.spec.as_group(rule.spec.hypers, {}) | {k: self.defaults[k] for k in ('lr', 'weight_decay')}

    @classmethod
    def _check(cls, group: dict[str, Any]) -> None:
        cls.spec.check_numbers(cls.__name__, group)
        hypers = hypers_of(group, cls.spec.places)
        cls.spec.check_words(hypers)
        for h, x in hypers.items():
            average = re.fullmatch(r'beta\d+|(\w+_)?mom', h)
            size = h in ('lr', 'wd') or h.endswith('decay') or re.fullmatch(r'eps\d*', h)
            if isinstance(x, str): continue
            if math.isnan(x) or (x < 0 and (average or size)):
                raise ValueError(f"{cls.__name__}: {h} must be 0 or more, got {x}")
            if h == 'every' and x < 1: raise ValueError(f"{cls.__name__}: every must be 1 or more steps, got {x}")
            if average and x >= 1:
                raise ValueError(f"{cls.__name__}: {h} is the weight of an average and must be below 1, got {x}")

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        "Step every parameter that has a gradient; gradients stay. Returns what `closure`, called first, returns."
        watched = (self._optimizer_step_pre_hooks or self._optimizer_step_post_hooks or _global_optimizer_pre_hooks
                   or _global_optimizer_post_hooks or torch.autograd._profiler_enabled())
        return (_watched_step if watched else _step)(self, closure)

    step.hooked = True  # else torch wraps it in a profiler's record, which costs more than a small step

    @property
    def path(self) -> str:
        "Which path (fused, batched, eager) steps how many parameters that have gradients now, and why."
        return current_plan(self).path()

    def state_dict(self) -> dict[str, Any]:
        """Like torch's, with states in 8 bits as float32. Each group also has what torch's class of the same
        mathematics needs there, its kind of decay, and the name of its rule's class."""
        out = self.with_training_point(super().state_dict())
        if self.state_dtype is torch.uint8: out['state'] = unpacked_states(self, out)
        for group in out['param_groups']:
            rule = self.rule_of(group)
            group |= {theirs: group[h] for h, theirs in rule.torch_names.items()} | rule.torch_group(group)
            group |= dict(rule=rule.mathematics, decoupled_weight_decay=self.stages.decoupled)
        return out

    @property
    def takes_totals(self) -> bool:
        "Whether a step needs sums over all parameters, as Prodigy's does."
        return any(self.rule_of(g).spec.totals for g in self.param_groups)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what this class, or torch's class of the same mathematics, saved. ValueError, changing nothing, if it
        does not fit or the mathematics differ."""
        check_loadable(self, state_dict)
        groups = zip(state_dict['param_groups'], self.param_groups, strict=False)
        super().load_state_dict(state_dict | dict(param_groups=[own_group(self, *pair) for pair in groups]))
        restore_states(self, state_dict)
        self.restore_training_point()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {k: getattr(self, k) for k in _KEPT}

    def __setstate__(self, state: dict[str, Any]) -> None:
        "Like torch's. The state may come from torch's own class: hyperparameters missing in it get our defaults."
        defaults = dict(getattr(self, 'defaults', {}))
        super().__setstate__(state)
        for k, x in dict(skipped=0, zero=None, tail=None, _shown=Shown()).items(): self.__dict__.setdefault(k, x)
        self._plan = None
        self.defaults = state.get('defaults', defaults)
        self.defaults.pop('differentiable', None)
        for group in self.param_groups:
            rule = self.rule_of(group)
            for k, v in self._defaults_of(rule).items(): group.setdefault(k, v)
            for p in group['params']:
                if p not in self.state: continue
                s = self.state[p]
                s['step'] = int(s.get('step', 0))
                s |= {k: float(s[k]) for k in map(rule.state_name, program(rule.spec, self.stages).scalars) if k in s}


def _step(opt: RuleOptimizer, closure: Callable[[], Any] | None = None) -> Any:
    if opt.shows_averages: raise RuntimeError(
        "the parameters are at the evaluation point, where opt.eval() put them: call opt.train() before the next batch")
    loss = None if closure is None else torch.enable_grad()(closure)()
    current_plan(opt).step(opt)
    return loss


_watched_step = torch.optim.Optimizer.profile_hook_step(_step)


def _signature(spec: RuleSpec, wd: float) -> inspect.Signature:
    """(params, lr, wd, other hyperparameters, options). Those without a default, and options, are keyword-only. Those
    that may be of several kinds are annotated: a hyperparameter that is a word by default may also be a number."""
    several = SEVERAL_KINDS | {k: float | str for k, v in spec.hypers.items() if isinstance(v, str)}
    def parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
        return inspect.Parameter(name, kind, default=default, annotation=several.get(name, inspect.Parameter.empty))
    kinds, hypers = inspect.Parameter, dict(spec.hypers)
    first = dict(params=REQUIRED, lr=hypers.pop('lr'), wd=wd)
    positional = first | {k: v for k, v in hypers.items() if v is not REQUIRED}
    required = [k for k, v in hypers.items() if v is REQUIRED]
    return inspect.Signature([parameter(k, kinds.POSITIONAL_OR_KEYWORD, v) for k, v in positional.items()]
                             + [parameter(k, kinds.KEYWORD_ONLY, kinds.empty) for k in required]
                             + [parameter(k, kinds.KEYWORD_ONLY, v) for k, v in OPTIONS.items()])


def optimizer(rule: Callable, name: str | None = None) -> type[RuleOptimizer]:
    "The optimizer class of a rule: `Mine = optimizer(my_rule)`."
    name = name or rule_name(rule).title().replace('_', '')
    module = getattr(rule, '__module__', __name__)
    return _RuleClass(name, (RuleOptimizer,), dict(rule=staticmethod(rule), made_from=(rule, name),
                                                   __doc__=rule.__doc__, __module__=module))


def class_of(rule: Callable) -> type[RuleOptimizer]:
    "The optimizer class that has a rule, the first one; a new class if there is none."
    return _CLASSES.get(rule) or optimizer(rule)


def inner_optimizer(opt: Any) -> Any:
    """The optimizer inside wrappers, which keep it as `optimizer`, or in ZeroRedundancyOptimizer as `optim`; `opt`
    itself if it wraps nothing."""
    while True:
        inner = next((x for nm in ('optimizer', 'optim') if hasattr(x := getattr(opt, nm, None), 'step')), None)
        if inner is None: return opt
        opt = inner
