"The 1cycle policy in one call: the rate rises, then falls, and may be lower for earlier layers."
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from miniai.callbacks.dry_run import patch
from miniai.events import as_list
from miniai.optim.groups import depth_groups
from miniai.optim.schedules import has_momentum
from miniai.steps.schedule import BatchSchedCB

__all__ = ['fit_one_cycle']


def fit_one_cycle(self: Any, n_epochs: int | None = None, lr: float | slice | None = None, cbs: Any = None,
                  **kwargs: Any) -> None:
    """`fit` with a learning rate that rises to `lr`, then falls to almost 0 (Smith & Topin 2017); momentum, if the
    optimizer has any, falls and rises. With a slice, the first layers of the model learn at its start and the last at
    its end, those between at rates between (see `depth_groups`). `kwargs` go to `fit`. ValueError for a slice without a
    start and a larger end, or if `opt_func` does not use the groups it is given."""
    with ExitStack() as undo:
        if isinstance(lr, slice):
            _check_slice(lr, self.opt_func)
            patch(undo, self, 'opt_func', partial(_discriminative, self.opt_func, self.model, lr))
            lr = lr.stop
        self.fit(n_epochs, lr=lr, cbs=[*as_list(cbs), BatchSchedCB(_one_cycle)], **kwargs)


def _one_cycle(opt: Any, steps: int) -> OneCycleLR:
    "An earlier cycle on the same optimizer left the rates near 0, and its highest ones as `max_lr`."
    return OneCycleLR(opt, [g.get('max_lr', g['lr']) for g in opt.param_groups], total_steps=steps,
                      cycle_momentum=has_momentum(opt))


def _check_slice(lr: slice, opt_func: Callable | None) -> None:
    if opt_func is None: raise ValueError("lr as a slice needs an opt_func to make the optimizer; give a single lr for "
                                          "the optimizer in learn.opt")
    if lr.start and lr.stop and 0 < lr.start <= lr.stop: return
    raise ValueError(f"lr needs a start and an end above it, as in slice(1e-5, 1e-3), got {lr}")


def _discriminative(opt_func: Callable, model: nn.Module, lr: slice, params: Iterable, top: float) -> Any:
    "The optimizer with a group for each child of the model; other parameters, such as a loss's, learn at the end rate."
    n = len(depth_groups(model, top))
    groups = depth_groups(model, top, (lr.start/lr.stop)**(1/max(1, n - 1)))
    known = {id(p) for g in groups for p in g['params']}
    rest = [p for p in params if id(p) not in known and p.requires_grad]
    if rest: groups.append(dict(params=rest, lr=top, name='rest'))
    opt = opt_func(groups, top)
    if {g['lr'] for g in groups} <= {g['lr'] for g in opt.param_groups}: return opt
    raise ValueError("lr as a slice needs an opt_func(params, lr) that gives `params` to the optimizer, here groups "
                     "with a rate each, as AdamW or lambda params, lr: AdamW(no_decay_groups(params, wd=.01), lr) do")
