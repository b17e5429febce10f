"Training at one point and validating at another, for optimizers whose rule says so, such as Schedule-Free ones."
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from miniai.events import Callback, is_cancel
from miniai.optim.optimizer import inner_optimizer
from miniai.steps.average import averaged_state

__all__ = ['EvaluationPointCB']


class EvaluationPointCB(Callback):
    """For an optimizer whose rule has an evaluation point: validation uses that point, and so does all that uses the
    model after a training fit, unless an error ended it. Training goes on from the training point. BatchNorm's
    statistics stay those of training. Every fit adds this callback; it removes itself for other optimizers."""
    order, only_shows = -math.inf, True

    def before_fit(self, learn: Any) -> None:
        if getattr(inner_optimizer(learn.opt), 'rule_averages', False): return
        learn.cbs[:] = [cb for cb in learn.cbs if cb is not self]

    def before_epoch(self, learn: Any) -> None:
        opt = inner_optimizer(learn.opt)
        (opt.train if learn.model.training else opt.eval)(learn.model)

    def cleanup_fit(self, learn: Any) -> None:
        error, opt = getattr(learn, 'ended_by', None), inner_optimizer(learn.opt)
        failed = isinstance(error, Exception) and not is_cancel(error)
        if not failed and getattr(opt, 'rule_averages', False): opt.eval(learn.model)

    @contextmanager
    def validated(self, learn: Any) -> Iterator[None]:
        "Within it the model has the weights that validation judges."
        opt = inner_optimizer(learn.opt)
        shown = opt.shows_averages
        opt.eval(learn.model)
        try: yield
        finally:
            if not shown: opt.train(learn.model)

    def averaged(self, learn: Any, state: dict[str, Any]) -> dict[str, Any]:
        "The model's state_dict `state` with the evaluation point of its parameters in it."
        return averaged_state(learn, state)
