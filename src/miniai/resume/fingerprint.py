"""What of a run must be the same for it to go on, and in what two differ, in words. Knows what a Learner keeps, no
files."""
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch

from miniai.environment import version_of
from miniai.randomness import describe_states
from miniai.resume.content import describe_content
from miniai.resume.loader import describe_loader
from miniai.resume.state import ResumeError, device_of, named_loaders, stateful_callbacks

__all__ = ['fingerprint', 'first_fingerprint', 'check_same', 'resume_signature', 'first_difference']

_OPTIONS = ('clip_norm', 'clip_value', 'skip_nonfinite', 'ema', 'rounding', 'seed', 'state_dtype', 'stages')
_TRAINED = 'is trained:'
_STEPS = sorted({int(1.1**k) for k in range(150)})  # from 1 to over a million


def fingerprint(learn: Any, state: dict[str, Any]) -> dict[str, Any]:
    "What of library, model and data must be the same for a run, of that state, to go on, as plain values by name."
    return {'miniai': version_of('miniai-torch'), 'torch': str(torch.__version__), 'device': device_of(learn.model),
            'threads': torch.get_num_threads(), 'optimizer': type(learn.opt).__name__,
            'module': {nm: type(m).__name__ for nm, m in learn.model.named_modules()},
            'model': _kinds(state['model']),
            **{f'{nm}: {k}': v for nm, dl in named_loaders(learn) for k, v in describe_loader(dl).items()}}


def _kinds(model: dict[str, Any]) -> dict[str, str]: return {nm: _kind(x) for nm, x in model.items()}


def _kind(x: Any) -> str:
    return f'{tuple(x.shape)} {str(x.dtype)[6:]}' if isinstance(x, torch.Tensor) else type(x).__name__


def first_fingerprint(learn: Any, by_workers: bool = False) -> dict[str, Any]:
    """What of data in memory, hyperparameters, schedules and records must be the same, as a fit begins: later they have
    moved, and two that are the same no longer look it. With `by_workers` it matters how many workers there are."""
    schedules = [cb.schedo for cb in learn.cbs if getattr(cb, 'schedo', None) is not None]
    workers = {f'{nm}: number of workers': getattr(dl, 'num_workers', 0) for nm, dl in named_loaders(learn)}
    return {**{f'{nm}: {k}': v for nm, dl in named_loaders(learn) for k, v in describe_content(dl).items()},
            **(workers if by_workers else {}),
            'schedules': [type(s).__name__ for s in schedules],
            **{f'schedule {i}:': _schedule(s) for i, s in enumerate(schedules)},
            'optimizer option': {nm: str(getattr(learn.opt, nm)) for nm in _OPTIONS if hasattr(learn.opt, nm)},
            **{f'group {i}:': _group(learn, g) for i, g in enumerate(learn.opt.param_groups)},
            **{f'group {i}, parameter': nms for i, nms in enumerate(_names_of(learn))},
            _TRAINED: {nm: p.requires_grad for nm, p in learn.model.named_parameters()},
            'loss function': _name(learn.loss_func), 'validation': learn.validates, 'mom': getattr(learn, 'mom', None),
            'records of callbacks': [nm for nm, _ in stateful_callbacks(learn)]}


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
    functions = {id(f): f for part in _within(s) for f in getattr(part, 'lr_lambdas', ())}.values()
    values = {f'value of function {i} at step {n}': _value(f, n)
              for i, f in enumerate(map(_to_be_asked, functions)) if f for n in _STEPS}
    return {k: fixed[k] for k in sorted(fixed, key=lambda k: k.startswith('_'))} | values


def _within(s: Any) -> Iterator[Any]:
    "A schedule, and those that it is made of."
    yield s
    for part in getattr(s, '_schedulers', ()): yield from _within(part)


def _to_be_asked(f: Callable) -> Callable | None:
    "A copy of an object that may count its calls, and no function that uses up an iterator."
    try: uses_up = any(isinstance(c.cell_contents, Iterator) for c in getattr(f, '__closure__', None) or ())
    except ValueError: return None  # a variable that has no value yet
    if uses_up: return None
    try: return deepcopy(f)
    except Exception: return None


def _value(f: Callable[[int], Any], step: int) -> float | str:
    "What a schedule's function gives, as something that equals itself; how it fails, at a step that it has none for."
    try: x = float(f(step))
    except Exception as e: return type(e).__name__
    return x if x == x else 'nan'


def _plain(x: Any) -> Any:
    "What can be compared of a schedule's state: functions and objects by the names of their kinds."
    if isinstance(x, dict): return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple): return [_plain(y) for y in x]
    if isinstance(x, torch.Tensor) and x.numel() == 1: return x.item()
    return x if isinstance(x, int | float | str | None) else type(x).__name__


def check_same(learn: Any, state: dict[str, Any], now: dict[str, Any], first: dict[str, Any]) -> None:
    """ResumeError for the first thing in which the run of `state` differs from `learn`, whose fit begins in the state
    `now`, with `first` as its first fingerprint; with both."""
    _check(state['fingerprint'], fingerprint(learn, now) | first)
    left_out = sorted(state['extras'].keys() - now['extras'].keys())
    if left_out: warnings.warn(f"the checkpoint has what the Learner has not as its fit begins, and leaves out: "
                               f"{', '.join(left_out)}", stacklevel=5)
    _check(_besides(state, now), _besides(now, state))
    _check(_trained(state), _trained(now), ": what is trained must all be there as a fit begins")
    _check(_random_fingerprint(state), _random_fingerprint(now))


def _besides(state: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    "What the loss's module and each thing beside model and optimizer is like, of those that both states have."
    things = {'the loss': state['loss']} | {f"the Learner's {nm}": x for nm, x in state['extras'].items()
                                            if nm in other['extras']}
    return {nm: _thing(x) for nm, x in things.items() if x}


def _thing(x: dict[str, Any]) -> dict[str, Any]:
    is_module = 'training' in x
    return {'': x['kind']} | (_kinds(x['state']) if is_module else {
        'parameters of groups': [len(g['params']) for g in x['state']['param_groups']]})


def resume_signature(state: dict[str, Any]) -> dict[str, Any]:
    "What of a run's state must look the same as it is saved and as a fit that goes on with it begins."
    return {'model': _kinds(state['model']), **_trained(state), **_random_fingerprint(state),
            'records of callbacks': list(state['records'])}


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    "The first thing in which two of `resume_signature` differ, with both; '' where nothing does."
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
        if k.startswith(_TRAINED):
            warnings.warn(f"{k} was {then} as the run began and is {now} here: going on puts back what the checkpoint "
                          f"has", stacklevel=6)
            continue
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


