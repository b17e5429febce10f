"Where values that are not finite began: an input, a parameter, a buffer, or the first module that made one."
from typing import Any

import torch
from torch import Tensor, nn

from miniai.callbacks.trained import buffers_of
from miniai.device import tensors_in
from miniai.diagnosis.hooks import Hooks
from miniai.metrics.batch import n_inputs
from miniai.randomness import random_states, set_random_states

__all__ = ['largest_input', 'origin_of_nonfinite']


def origin_of_nonfinite(learn: Any) -> tuple[str, str]:
    """The name and kind of what first was not finite in this batch: ('', 'input'), ('0.weight', 'parameter'),
    ('0.running_var', 'buffer'), ('2.act', 'output'), ('', 'target') or ('', 'loss'). Repeats the forward pass
    without gradients; weights, buffers, predictions and random states are as before."""
    n = n_inputs(learn)
    if any(map(_is_broken, tensors_in(learn.batch[:n] if isinstance(learn.batch, tuple | list) else learn.batch))):
        return '', 'input'
    for nm, p in learn.model.named_parameters():
        if _is_broken(p): return nm.removeprefix('module.'), 'parameter'
    found = _first_broken_output(learn) if _predicts_by_the_library(learn) else None
    if found is not None: return found, 'output'
    if isinstance(learn.batch, tuple | list) and any(map(_is_broken, tensors_in(learn.batch[n:]))): return '', 'target'
    broken = [nm for nm, b in buffers_of(learn).items() if _is_broken(b)]
    return (broken[0], 'buffer') if broken else ('', 'loss')


def largest_input(learn: Any) -> float:
    "The largest magnitude in the inputs of this batch."
    inputs = learn.batch[:n_inputs(learn)] if isinstance(learn.batch, tuple | list) else learn.batch
    return max((x.detach().abs().max().item() for x in tensors_in(inputs) if x.is_floating_point() and x.numel()),
               default=0.)


def _predicts_by_the_library(learn: Any) -> bool:
    "A predict phase of the user's may do more than predict."
    phases = [getattr(o, 'predict', None) for o in (learn, *learn.cbs)]
    return all((getattr(f, '__module__', None) or '').startswith('miniai.') for f in phases if f is not None)


@torch.no_grad()
def _first_broken_output(learn: Any) -> str | None:
    preds, states, modules = learn.preds, random_states(), list(learn.model.modules())
    buffers = [(m, nm, b) for m in modules for nm, b in m._buffers.items() if b is not None]
    names, found = {m: nm.removeprefix('module.') for nm, m in learn.model.named_modules()}, []
    def look(hook: Any, mod: nn.Module, inp: Any, outp: Any) -> None:
        if not found and any(map(_is_broken, tensors_in(outp))): found.append(names[mod])
    leaves = [m for m in names if not any(True for _ in m.children()) and not isinstance(m, torch.jit.ScriptModule)]
    try:  # on copies of buffers: backward may still need theirs as they are
        for m, nm, b in buffers: m._buffers[nm] = b.clone()
        with Hooks([*leaves, *([learn.model] if learn.model not in leaves else [])], look): learn.predict()
    finally:
        learn.preds = preds
        for m, nm, b in buffers: m._buffers[nm] = b
        set_random_states(states)
    return found[0] if found else None


def _is_broken(x: Tensor) -> bool: return x.is_floating_point() and not bool(x.detach().isfinite().all())
