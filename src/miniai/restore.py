"Leave a Learner as it was: for looks at training that must not train. Knows state_dicts, not the loop."
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch

__all__ = ['as_it_was']

_KEPT = ('opt', 'history', 'metrics', 'dls', 'lr', 'opt_func', 'model', 'cbs', 'loss_func')


@contextmanager
def as_it_was(learn: Any) -> Iterator[None]:
    """Within it `learn` may train; after it model, its mode,
    the optimizer and the Learner's history are what they were before."""
    kept = {k: getattr(learn, k) for k in _KEPT}
    weights, modes = _copied(learn.model.state_dict()), [(m, m.training) for m in learn.model.modules()]
    grads = [(p, None if p.grad is None else p.grad.clone()) for p in learn.model.parameters()]
    opt_state = deepcopy(learn.opt.state_dict()) if _keeps_optimizer(learn) else None
    learn.cbs = list(learn.cbs)
    try: yield
    finally:
        for k, v in kept.items(): setattr(learn, k, v)
        learn.model.load_state_dict(weights)
        for m, training in modes: m.training = training
        for p, g in grads: p.grad = None if g is None else g.to(p)
        if opt_state is not None: learn.opt.load_state_dict(opt_state)


def _keeps_optimizer(learn: Any) -> bool:
    "Will the next fit step the optimizer that is there, rather than a new one?"
    return learn.opt_func is None and hasattr(learn.opt, 'state_dict')


def _copied(state: dict) -> dict:
    return {k: v.detach().clone() if isinstance(v, torch.Tensor) else deepcopy(v) for k, v in state.items()}
