"Where a model is evaluated, if not at the parameters that train: at their averages, or at a point that the rule gives."
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from miniai.distributed.dtensor import is_dtensor, reshard
from miniai.optim.eager import numbers, wide
from miniai.optim.plan import hypers_of
from miniai.optim.spec import by_names
from miniai.optim.zero import from_all_ranks

__all__ = ['EvaluationPoint', 'Shown']


class Shown:
    """`weights` is the training point while the evaluation point is shown. It is in an object of its own because
    Lightning's wrappers of optimizers are subclasses of them: what a method sets there, the optimizer would not see."""
    weights: dict[Tensor, Tensor] | None = None


class EvaluationPoint:
    """The part of a RuleOptimizer that shows the evaluation point in the parameters, and puts the training point back.
    The evaluation point is the average that `ema` or `tail` keeps, or what `@evaluated` of the rule computes."""
    _shown: Shown

    @property
    def has_averages(self) -> bool:
        "Whether there is an evaluation point other than the parameters."
        return bool(self.stages.averages) or self.rule_averages

    @property
    def rule_averages(self) -> bool:
        "Whether a rule of this optimizer gives an evaluation point."
        return any(self.rule_of(g).spec.evaluated for g in self.param_groups)

    @property
    def shows_averages(self) -> bool:
        "Whether the parameters are the evaluation point now."
        return self._shown.weights is not None

    def eval(self, model: nn.Module | None = None) -> None:
        """Put the evaluation point, if there is one, into the parameters, those of `model`. ValueError without `model`
        if they are DTensors, as FSDP2's are."""
        if self.shows_averages or not self.has_averages: return
        if model is None and any(is_dtensor(p) for g in self.param_groups for p in g['params']):
            raise ValueError("the parameters are DTensors, of which the model may have gathered copies: pass the model "
                             "to eval, train or averaged, so that it uses the values now in the parameters")
        self.swap_averages(model)

    def train(self, model: nn.Module | None = None) -> None:
        "Put the training point back into the parameters, those of `model`, exactly as it was."
        if self.shows_averages: self.swap_averages(model)

    @contextmanager
    def averaged(self, model: nn.Module | None = None) -> Iterator[None]:
        "Within this context the parameters are the evaluation point, as `eval` puts it there."
        if not self.has_averages:
            raise ValueError(f"{type(self).__name__} has no weight averages: create it with ema=0.999 or tail=1000")
        self.eval(model)
        try: yield
        finally: self.train(model)

    def averages(self) -> dict[Tensor, Tensor]:
        "The evaluation point of all parameters that have been stepped. In ZeroRedundancyOptimizer all ranks call it."
        points = ((p, self._point(p, g)) for g in self.param_groups for p in g['params'])
        own = {p: x for p, x in points if x is not None}
        return own if self.zero is None else from_all_ranks(self.zero, own)

    @torch.no_grad()
    def _point(self, p: Tensor, group: dict[str, Any]) -> Tensor | None:
        state, rule = self.state.get(p, {}), self.rule_of(group)
        if not state.get('step'): return None
        for average in self.stages.averages: return state.get(average)
        if rule.spec.evaluated is None: return None
        states = {s: state[rule.state_name(s)] for s in rule.spec.state_names}
        states = {s: numbers(x, p) if isinstance(x, Tensor) else x for s, x in states.items()}
        values = hypers_of(group, rule.spec.places) | states
        values['p'] = wide((self._shown.weights or {}).get(p, p).detach())
        return by_names(rule.spec.evaluated, values)

    @torch.no_grad()
    def swap_averages(self, model: nn.Module | None = None) -> None:
        "Replace parameters, those of `model`, by the evaluation point; called again, put them back."
        new, self._shown.weights = self._shown.weights, None
        if new is None:
            new = self.averages()
            self._shown.weights = {p: p.detach().clone() for p in new}
        for p, x in new.items(): p.copy_(x)
        if model is not None: reshard(model)

    def keep_averages(self, model: nn.Module | None = None) -> None:
        "Replace parameters, those of `model`, by the evaluation point for good."
        if self._shown.weights is None: self.swap_averages(model)
        self._shown.weights = None

    def weights_replaced(self, learn: Any) -> None:
        "Called when other weights are put into the model: if the rule has a point of its own, it starts from them."
        if not self.rule_averages: return
        self._shown.weights = None
        self.state.clear()

    def with_training_point(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        "A state_dict of this optimizer with the training point in it if the evaluation point is shown."
        if not self._shown.weights: return state_dict
        if self.zero is not None: raise RuntimeError(
            "the parameters are at the evaluation point: call train() of the optimizer in ZeroRedundancyOptimizer "
            "before you save its state")
        params, places = ([x for g in groups for x in g['params']]
                          for groups in (self.param_groups, state_dict['param_groups']))
        shown = {i: dict(training_point=self._shown.weights[p]) for p, i in zip(params, places, strict=True)
                 if p in self._shown.weights}
        return state_dict | dict(state={i: s | shown.get(i, {}) for i, s in state_dict['state'].items()})

    def restore_training_point(self) -> None:
        "Take the training point out of a state that was just loaded."
        points = {p: s.pop('training_point') for p, s in self.state.items() if 'training_point' in s}
        self._shown.weights = points or None
