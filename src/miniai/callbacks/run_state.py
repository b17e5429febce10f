"""What a run is made of, as a tree of values and tensors, and back: model, optimizer, schedules, records, random
states; and what must be the same for a run to go on. Knows what a Learner keeps, no files."""
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from miniai.data.position import describe_loader, loader_state, set_loader_state
from miniai.randomness import generators_of, random_states, set_random_states

__all__ = ['ResumeError', 'run_state', 'restore_run', 'restore_records', 'state_now', 'fingerprint',
           'check_fingerprint']

_MOVING = {'last_epoch', '_step_count', '_last_lr', '_get_lr_called_within_step', '_schedulers', '_is_initial'}
_PLAIN = (int, float, str, list)


class ResumeError(ValueError): "A run cannot go on from a checkpoint: they differ, and the message says in what."


def run_state(learn: Any) -> dict[str, Any]:
    "Everything that a later step depends on. Tensors are the run's own, not copies."
    return dict(
        model=dict(learn.model.state_dict()), unsaved=_unsaved_buffers(learn.model), grads=_gradients(learn.model),
        opt=learn.opt.state_dict(), skipped=getattr(learn.opt, 'skipped', None), history=learn.history,
        records=_records(learn), **state_now(learn))


def state_now(learn: Any) -> dict[str, Any]:
    "Random states and the loaders' own, as they are now."
    return dict(random=random_states(), generators=[g.get_state() for _, g in _generators(learn)],
                loaders=[loader_state(dl) for dl in _loaders(learn)])


def _loaders(learn: Any) -> list: return [dl for dl in (learn.dls.train, learn.dls.valid) if dl is not None]
def _generators(learn: Any) -> list: return [(cb, g) for cb in learn.cbs for _, g in generators_of(cb)]


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {nm: p.grad for nm, p in model.named_parameters() if p.grad is not None}


def _unsaved_buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    saved = model.state_dict()
    return {nm: x for nm, x in model.named_buffers() if nm not in saved}


def _keepers(learn: Any) -> Iterator[tuple[str, Any]]:
    "Callbacks with a state of their own, by class and place among those of it."
    seen: dict[str, int] = {}
    for cb in learn.cbs:
        nm = type(cb).__name__
        seen[nm] = seen.get(nm, 0) + 1
        if callable(getattr(cb, 'state_dict', None)) and callable(getattr(cb, 'load_state_dict', None)):
            yield f'{nm} {seen[nm]}', cb


def _records(learn: Any) -> dict[str, Any]: return {nm: cb.state_dict() for nm, cb in _keepers(learn)}


@torch.no_grad()
def restore_run(learn: Any, state: dict[str, Any]) -> None:
    "Put back what `run_state` gave, records aside."
    learn.model.load_state_dict(state['model'])
    buffers, params = dict(learn.model.named_buffers()), dict(learn.model.named_parameters())
    for nm, x in state['unsaved'].items(): buffers[nm].copy_(x)
    for nm, p in params.items():
        g = state['grads'].get(nm)
        p.grad = None if g is None else g.to(p.device)
    _load_in_place(learn.opt, state['opt'])
    if state['skipped'] is not None: learn.opt.skipped = state['skipped']
    learn.history[:] = state['history']
    for (_, g), s in zip(_generators(learn), state['generators'], strict=True): g.set_state(s)
    for dl, s in zip(_loaders(learn), state['loaders'], strict=True): set_loader_state(dl, s)
    set_random_states(state['random'])


def _load_in_place(opt: Any, state: dict[str, Any]) -> None:
    "Load an optimizer's state into the very groups that callbacks and schedules may hold."
    groups = opt.param_groups
    opt.load_state_dict(state)
    for old, new in zip(groups, opt.param_groups, strict=True):
        old.clear()
        old.update(new)
    opt.param_groups = groups


def restore_records(learn: Any, state: dict[str, Any]) -> None:
    "Give callbacks back what they had recorded. ResumeError where other callbacks are there."
    here, saved = dict(_keepers(learn)), state['records']
    if set(here) != set(saved): raise _differ('callbacks with records', sorted(saved), sorted(here))
    for nm, cb in here.items(): cb.load_state_dict(saved[nm])


def _differ(what: str, saved: Any, here: Any) -> ResumeError:
    return ResumeError(f"the run cannot go on: {what} was {saved!r} in the checkpoint and is {here!r} here")


def fingerprint(learn: Any) -> dict[str, Any]:
    "What must be the same for a run to go on, as plain values by name."
    model = {nm: f"{tuple(x.shape)} {str(x.dtype)[6:]}" for nm, x in learn.model.state_dict().items()}
    return {'miniai': version('miniai-torch'), 'torch': str(torch.__version__), 'device': _device(learn.model),
            'threads': torch.get_num_threads(), 'optimizer': type(learn.opt).__name__,
            'groups': [len(g['params']) for g in learn.opt.param_groups],
            **{f'model {nm}': shape for nm, shape in model.items()},
            **{f'training data: {k}': v for k, v in describe_loader(learn.dls.train).items()},
            **{f'validation data: {k}': v for k, v in describe_loader(learn.dls.valid).items()},
            **_schedules(learn), 'generators of callbacks': len(_generators(learn))}


def _device(model: nn.Module) -> str: return next((p.device.type for p in model.parameters()), 'cpu')


def _schedules(learn: Any) -> dict[str, Any]:
    out = {}
    for i, s in enumerate(cb.schedo for cb in learn.cbs if getattr(cb, 'schedo', None) is not None):
        fixed = {k: v for k, v in s.state_dict().items() if k not in _MOVING and isinstance(v, _PLAIN)}
        out |= {f'schedule {i}': type(s).__name__} | {f'schedule {i}: {k}': v for k, v in fixed.items()}
    return out


def check_fingerprint(saved: dict[str, Any], here: dict[str, Any]) -> None:
    "ResumeError for the first thing that differs, with both values."
    for k in [*saved, *(k for k in here if k not in saved)]:
        if saved.get(k) != here.get(k): raise _differ(k, saved.get(k), here.get(k))
