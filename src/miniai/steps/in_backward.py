"Steps during the backward pass: parameters are stepped as soon as their gradients are complete, which are then freed."
import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor

from miniai.distributed.callback import DistributedCB
from miniai.distributed.ranks import world
from miniai.events import Callback
from miniai.optim.optimizer import inner_optimizer
from miniai.steps.closure import closure_need

__all__ = ['StepInBackwardCB']

TOGETHER = 1 << 18  # elements stepped at once, while their gradients are still in the processor's cache


class StepInBackwardCB(Callback):
    """Steps parameters during the backward pass, a few at a time as soon as their gradients are complete, and frees
    these. The weights are the same to the bit, with any optimizer of miniai and torch, and gradients need less memory.
    ValueError together with what needs all gradients at once: `clip_norm`, `skip_nonfinite`, AccumulateCB, callbacks
    that hear `after_backward`, optimizers that take a closure, several processes; and in a batch in which a parameter
    gets more than one gradient."""
    def __init__(self) -> None: self._hooks = []

    def before_fit(self, learn: Any) -> None:
        if not getattr(learn, 'trains', True): return
        self._check(learn)
        self._copies = {}
        for params in _pieces(p for g in learn.opt.param_groups for p in g['params'] if p.requires_grad):
            hook = partial(self._complete, learn, params)
            self._hooks += [p.register_post_accumulate_grad_hook(hook) for p in params]

    def _check(self, learn: Any) -> None:
        opt = inner_optimizer(learn.opt)
        needing = [nm for nm in ('clip_norm', 'skip_nonfinite') if getattr(opt, nm, None)]
        needing += [type(cb).__name__ for cb in learn.cbs
                    if not isinstance(cb, DistributedCB)  # which does nothing in one process
                    and (hasattr(cb, 'after_backward') or (hasattr(cb, 'weigh_group') and cb.n > 1))]
        if opt is not learn.opt or closure_need(opt) or getattr(opt, 'takes_totals', False):
            needing.append(type(learn.opt).__name__)
        if world() > 1: needing.append('training on several processes')
        if needing: raise ValueError(f"StepInBackwardCB frees a gradient before the next is complete, but "
                                     f"{', '.join(needing)} must see all of them: remove one or the other")

    def _complete(self, learn: Any, params: tuple[Tensor, ...], p: Tensor) -> None:
        "The gradient of `p` is complete: step its piece if those of all of it are."
        if p in self._stepped: raise ValueError(
            f"StepInBackwardCB has stepped a parameter of shape {tuple(p.shape)} in this batch, and it now has another "
            f"gradient: call backward once in a batch and torch.utils.checkpoint with use_reentrant=False, or remove "
            f"StepInBackwardCB")
        self._waiting.add(p)
        if not self._waiting.issuperset(params): return
        others = [(q, q.grad) for q in self._waiting.difference(params)]
        for q, _ in others: q.grad = None
        self._copy(learn, params).step()
        for q in params: q.grad = None
        for q, g in others: q.grad = g
        self._waiting.difference_update(params)
        self._stepped.update(params)

    def _copy(self, learn: Any, params: tuple[Tensor, ...]) -> Any:
        "A copy of the optimizer for a piece: it shares groups and states, and remembers how to step this piece."
        known = self._copies.get(params)
        if known is None or known.state is not learn.opt.state: self._copies[params] = copy.copy(learn.opt)
        return self._copies[params]

    def before_batch(self, learn: Any) -> None: self._waiting, self._stepped = set(), set()

    def cleanup_fit(self, learn: Any) -> None:
        for hook in self._hooks: hook.remove()
        self._hooks, self._copies = [], {}


def _pieces(params: Iterable[Tensor]) -> list[tuple[Tensor, ...]]:
    "Neighbors, of about TOGETHER elements."
    pieces, size = [()], 0
    for p in params:
        if size >= TOGETHER: pieces, size = [*pieces, ()], 0
        pieces[-1] += (p,)
        size += p.numel()
    return pieces
