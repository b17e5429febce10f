"""What a run is made of, as a tree of values and tensors, and back: model, optimizer, schedules, records, random
states; and what must be the same for a run to go on. Knows what a Learner keeps, no files."""
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from miniai.checkpoint.tree import flatten
from miniai.data.content import describe_content
from miniai.data.position import describe_loader, loader_state, set_loader_state, set_workers
from miniai.randomness import (
    describe_states,
    generators_of,
    random_states,
    set_random_states,
    set_state_of,
    state_of,
)
from miniai.versions import version_of

__all__ = ['ResumeError', 'loaders_of', 'run_state', 'restore_run', 'restore_records', 'state_now', 'fingerprint',
           'first_fingerprint', 'check_same', 'check_savable', 'steady', 'first_change']

_OPTIONS = ('clip_norm', 'clip_value', 'skip_nonfinite', 'ema', 'rounding', 'seed', 'state_dtype', 'stages')


class ResumeError(ValueError): "A run cannot go on from a checkpoint: they differ, and the message says in what."


def run_state(learn: Any) -> dict[str, Any]:
    "Everything that a later step depends on. Tensors are the run's own, not copies."
    model = dict(learn.model.state_dict())
    return dict(
        model=model, loss=_state_of(learn.loss_func), still=_still(learn.model),
        unsaved={nm: x for nm, x in learn.model.named_buffers() if nm not in model},
        frozen=[nm for nm, p in learn.model.named_parameters() if not p.requires_grad], grads=_gradients(learn.model),
        others=[dict(value=p.detach(), grad=p.grad) for p in _others(learn)], opt=learn.opt.state_dict(),
        skipped=getattr(learn.opt, 'skipped', None), history=learn.history, records=_records(learn), **state_now(learn))


def state_now(learn: Any) -> dict[str, Any]:
    "Random states and the loaders' own, as they are now."
    return dict(random=random_states(), generators=[state_of(g) for g in _generators(learn)],
                loaders=[loader_state(dl) for dl in loaders_of(learn)])


def loaders_of(learn: Any) -> list:
    "The loaders of training and, where there is one, of validation."
    return [dl for _, dl in _loaders(learn) if dl is not None]


def _loaders(learn: Any) -> list[tuple[str, Any]]:
    return [('training data', learn.dls.train), ('validation data', getattr(learn.dls, 'valid', None))]


def _generators(learn: Any) -> list: return [g for cb in learn.cbs for _, g in generators_of(cb)]


def _others(learn: Any) -> list[torch.Tensor]:
    "The optimizer's parameters that are not the model's, such as those of a loss function."
    ours = {id(p) for p in learn.model.parameters()}
    return [p for g in learn.opt.param_groups for p in g['params'] if id(p) not in ours]


def _state_of(loss_func: Any) -> dict[str, Any] | None:
    return dict(loss_func.state_dict()) if isinstance(loss_func, nn.Module) else None


def _still(model: nn.Module) -> list[str]:
    "The modules that are in another mode, training or not, than the model."
    return [nm for nm, m in model.named_modules() if m.training != model.training]


def _gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {nm: p.grad for nm, p in model.named_parameters() if p.grad is not None}


def _keepers(learn: Any) -> Iterator[tuple[str, Any]]:
    "Callbacks with a state of their own, by class and place among those of it."
    seen: dict[str, int] = {}
    for cb in learn.cbs:
        nm = type(cb).__name__
        seen[nm] = seen.get(nm, 0) + 1
        if callable(getattr(cb, 'state_dict', None)) and callable(getattr(cb, 'load_state_dict', None)):
            yield f'{nm} {seen[nm]}', cb


def _records(learn: Any) -> dict[str, Any]: return {nm: cb.state_dict() for nm, cb in _keepers(learn)}


def check_savable(learn: Any) -> None:
    "TypeError, naming the place, where the run has what a checkpoint cannot hold, or an optimizer without a state."
    lacks = [nm for nm in ('param_groups', 'state_dict', 'load_state_dict') if not hasattr(learn.opt, nm)]
    if lacks: raise TypeError(f"a run is saved with its optimizer's state, and {type(learn.opt).__name__} has no "
                              f"{' or '.join(lacks)}: give it these, as torch.optim.Optimizer has them")
    named = [*learn.model.named_parameters(), *learn.model.named_buffers()]
    lazy = [nm for nm, x in named if is_lazy(x)]
    if lazy: raise ValueError(f"{lazy[0]!r} has no shape yet: run a batch through the model before a fit that is saved")
    flatten(run_state(learn))


@torch.no_grad()
def restore_run(learn: Any, state: dict[str, Any]) -> None:
    "Put back what `run_state` gave, records aside."
    learn.model.load_state_dict(state['model'])
    if state['loss'] is not None: learn.loss_func.load_state_dict(state['loss'])
    for nm, m in learn.model.named_modules(): m.training = learn.model.training != (nm in state['still'])
    for nm, x in state['unsaved'].items(): _set_buffer(learn.model, nm, x)
    for nm, p in learn.model.named_parameters():
        p.requires_grad_(nm not in state['frozen'])
        _set_gradient(p, state['grads'].get(nm))
    for p, other in zip(_others(learn), state['others'], strict=True):
        p.copy_(other['value'])
        _set_gradient(p, other['grad'])
    _load_in_place(learn.opt, state['opt'])
    if state['skipped'] is not None: learn.opt.skipped = state['skipped']
    learn.history[:] = state['history']
    for dl, s in zip(loaders_of(learn), (state['begun'] or state)['loaders'], strict=True): set_workers(dl, s)
    for g, s in zip(_generators(learn), state['generators'], strict=True): set_state_of(g, s)
    for dl, s in zip(loaders_of(learn), state['loaders'], strict=True): set_loader_state(dl, s)
    set_random_states(state['random'])


def _set_gradient(p: torch.Tensor, g: torch.Tensor | None) -> None:
    p.grad = None if g is None else g.to(p.device, copy=True)


def _set_buffer(model: nn.Module, name: str, x: torch.Tensor) -> None:
    "Give a buffer that no state_dict has its values, or make it: a forward may have made it, or have let it grow."
    owner, _, leaf = name.rpartition('.')
    module = model.get_submodule(owner)
    there = module._buffers.get(leaf)
    if there is not None and there.shape == x.shape: there.copy_(x)
    else: module.register_buffer(leaf, x.to(_device(model)), persistent=False)


def _load_in_place(opt: Any, state: dict[str, Any]) -> None:
    "Load an optimizer's state into the very groups that callbacks and schedules may hold."
    groups = opt.param_groups
    opt.load_state_dict(state)
    for old, new in zip(groups, opt.param_groups, strict=True):
        old.clear()
        old.update(new)
    opt.param_groups = groups


def restore_records(learn: Any, state: dict[str, Any]) -> None:
    "Give callbacks back what they had recorded. ResumeError where one cannot take it; then all keep what they had."
    before, saved = deepcopy(_records(learn)), deepcopy(state['records'])
    for nm, cb in _keepers(learn):
        try: cb.load_state_dict(saved[nm])
        except Exception as e:
            for old, other in _keepers(learn): other.load_state_dict(before[old])
            raise ResumeError(f"the run cannot go on: {nm} takes back no such records: {_said(e)}") from e


def _said(e: Exception) -> str: return str(e) if isinstance(e, ValueError) else f'{type(e).__name__}: {e}'


# What must be the same

def fingerprint(learn: Any) -> dict[str, Any]:
    "What of library, model and data must be the same for a run to go on, as plain values by name."
    return {'miniai': version_of('miniai-torch'), 'torch': str(torch.__version__), 'device': _device(learn.model),
            'threads': torch.get_num_threads(), 'optimizer': type(learn.opt).__name__,
            'module': {nm: type(m).__name__ for nm, m in learn.model.named_modules()},
            'model': _kinds(learn.model.state_dict()),
            **{f'{nm}: {k}': v for nm, dl in _loaders(learn) for k, v in describe_loader(dl).items()}}


def _device(model: nn.Module) -> str: return next((p.device.type for p in model.parameters()), 'cpu')


def _kinds(model: dict[str, Any]) -> dict[str, str]: return {nm: _kind(x) for nm, x in model.items()}


def _kind(x: Any) -> str:
    return f'{tuple(x.shape)} {str(x.dtype)[6:]}' if isinstance(x, torch.Tensor) else type(x).__name__


def first_fingerprint(learn: Any, by_workers: bool = False) -> dict[str, Any]:
    """What of data in memory, hyperparameters, schedules and records must be the same, as a fit begins: later they have
    moved, and two that are the same no longer look it. With `by_workers` it matters how many workers there are."""
    schedules = [cb.schedo for cb in learn.cbs if getattr(cb, 'schedo', None) is not None]
    workers = {f'{nm}: number of workers': getattr(dl, 'num_workers', 0) for nm, dl in _loaders(learn)}
    return {**{f'{nm}: {k}': v for nm, dl in _loaders(learn) for k, v in describe_content(dl).items()},
            **(workers if by_workers else {}),
            'schedules': [type(s).__name__ for s in schedules],
            **{f'schedule {i}:': _schedule(s) for i, s in enumerate(schedules)},
            'optimizer option': {nm: str(getattr(learn.opt, nm)) for nm in _OPTIONS if hasattr(learn.opt, nm)},
            **{f'group {i}:': _group(learn, g) for i, g in enumerate(learn.opt.param_groups)},
            **{f'group {i}, parameter': nms for i, nms in enumerate(_names_of(learn))},
            'loss function': _name(learn.loss_func), 'validation': learn.validates, 'mom': getattr(learn, 'mom', None),
            'records of callbacks': [nm for nm, _ in _keepers(learn)]}


def _name(f: Any) -> str | None:
    "What a function, or an object that stands in for one, is called."
    return getattr(getattr(f, 'func', f), '__qualname__', None if f is None else type(f).__name__)


def _names_of(learn: Any) -> list[dict[str, str]]:
    "The names of the parameters of each group, in their order, by which the optimizer's state knows them."
    names = {id(p): nm for nm, p in learn.model.named_parameters()}
    return [{str(i): names.get(id(p), 'not of the model') for i, p in enumerate(g['params'])}
            for g in learn.opt.param_groups]


def _group(learn: Any, group: dict) -> dict[str, Any]:
    "An optimizer that stays from fit to fit, without an `opt_func`, may have been moved by an earlier one."
    hypers = {k: _plain(x) for k, x in group.items() if k != 'params'} if learn.opt_func else {}
    return {'parameters': len(group['params'])} | hypers


def _schedule(s: Any) -> dict[str, Any]:
    fixed = {k: _plain(x) for k, x in s.state_dict().items()}
    lambdas = {f'value of function {i} at step 1': _plain(f(1)) for i, f in enumerate(getattr(s, 'lr_lambdas', ()))}
    return {k: fixed[k] for k in sorted(fixed, key=lambda k: k.startswith('_'))} | lambdas


def _plain(x: Any) -> Any:
    "What can be compared of a schedule's state: functions and objects by the names of their kinds."
    if isinstance(x, dict): return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple): return [_plain(y) for y in x]
    if isinstance(x, torch.Tensor) and x.numel() == 1: return x.item()
    return x if isinstance(x, int | float | str | None) else type(x).__name__


def check_same(learn: Any, state: dict[str, Any], first: dict[str, Any]) -> None:
    """ResumeError for the first thing in which the run of `state` differs from `learn`, whose fit begins, with `first`
    as its first fingerprint; with both."""
    _check(state['fingerprint'], fingerprint(learn) | first)
    now = run_state(learn)
    _check(_trained(state), _trained(now), ": what is trained must all be there as a fit begins")
    _check(_random_fingerprint(state), _random_fingerprint(now))


def steady(state: dict[str, Any]) -> dict[str, Any]:
    "What of a run's state must look the same as it is saved and as a fit that goes on with it begins."
    return {'model': _kinds(state['model']), **_trained(state), **_random_fingerprint(state),
            'records of callbacks': list(state['records'])}


def first_change(before: dict[str, Any], now: dict[str, Any]) -> str:
    "The first thing in which two of `steady` differ, with both; '' where nothing does."
    return next((f'{k} was {a} as it began and is {b} now' for k, a, b in _differences(before, now)), '')


def _trained(state: dict[str, Any]) -> dict[str, Any]:
    return {'parameters of group': {str(i): len(g['params']) for i, g in enumerate(state['opt']['param_groups'])},
            'parameters beside the model': [_kind(o['value']) for o in state['others']]}


def _random_fingerprint(now: dict[str, Any]) -> dict[str, Any]:
    held = dict(callbacks=now['generators']) | {f'loader {i}': [*s['generators'], *s['held']]
                                                for i, s in enumerate(now['loaders'])}
    return {'random state:': describe_states(now['random']),
            'kinds of the generators of': {nm: [g['kind'] for g in gs] for nm, gs in held.items()}}


def _check(saved: dict[str, Any], here: dict[str, Any], hint: str = '') -> None:
    for k, then, now in _differences(saved, here):
        if k.endswith('number of workers') and 'nothing' in (then, now): continue  # compared where it matters to both
        raise ResumeError(f"the run cannot go on: {k} was {then} in the checkpoint and is {now} here{hint}")


def _differences(saved: dict[str, Any], here: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    "What differs, and both, as words."
    a, b = _flat(saved), _flat(here)
    for k in dict.fromkeys([*b, *a]):
        then, now = (repr(d[k]) if k in d else 'nothing' for d in (a, b))
        if a.get(k) != b.get(k): yield k, then, now


def _flat(d: dict[str, Any]) -> dict[str, Any]:
    "Nested names joined: one level of them."
    inner = {k: x if isinstance(x, dict) else {'': x} for k, x in d.items()}
    return {f'{k} {nm}'.strip(): x for k, xs in inner.items() for nm, x in xs.items()}


