"What must be the same about a run for it to resume, and the first thing that differs."
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
_REQUIRES_GRAD = 'requires_grad of'
_STEPS = sorted({int(1.1**k) for k in range(150)})  # from 1 to over a million


# Taken whenever a run is saved

def fingerprint(learn: Any, state: dict[str, Any]) -> dict[str, Any]:
    "What must be the same about library, model and data, as plain values by name. `state` is the run's."
    return {'miniai': version_of('miniai-torch'), 'torch': str(torch.__version__), 'device': device_of(learn.model),
            'threads': torch.get_num_threads(), 'optimizer': type(learn.opt).__name__,
            'module': {nm: type(m).__name__ for nm, m in learn.model.named_modules()},
            'model': _describe_all(state['model']),
            **{f'{nm}: {k}': v for nm, dl in named_loaders(learn) for k, v in describe_loader(dl).items()}}


def _describe_all(tensors: dict[str, Any]) -> dict[str, str]: return {nm: _describe(x) for nm, x in tensors.items()}


def _describe(x: Any) -> str:
    return f'{tuple(x.shape)} {str(x.dtype)[6:]}' if isinstance(x, torch.Tensor) else type(x).__name__


# Taken once, when a fit starts

def first_fingerprint(learn: Any, with_workers: bool = False) -> dict[str, Any]:
    """What must be the same about data in memory, hyperparameters, schedules and records when a fit starts; training
    changes them. `with_workers` adds the number of workers."""
    schedules = [cb.schedo for cb in learn.cbs if getattr(cb, 'schedo', None) is not None]
    workers = {f'{nm}: number of workers': getattr(dl, 'num_workers', 0) for nm, dl in named_loaders(learn)}
    names = {id(p): nm for nm, p in learn.model.named_parameters()}
    params = [{str(i): names.get(id(p), 'not in the model') for i, p in enumerate(g['params'])}
              for g in learn.opt.param_groups]
    loss = getattr(learn.loss_func, 'func', learn.loss_func)
    return {**{f'{nm}: {k}': v for nm, dl in named_loaders(learn) for k, v in describe_content(dl).items()},
            **(workers if with_workers else {}),
            'schedules': [type(s).__name__ for s in schedules],
            **{f'schedule {i}:': _schedule(s) for i, s in enumerate(schedules)},
            'optimizer option': {nm: str(getattr(learn.opt, nm)) for nm in _OPTIONS if hasattr(learn.opt, nm)},
            **{f'group {i}:': _group(learn, g) for i, g in enumerate(learn.opt.param_groups)},
            **{f'group {i}, parameter': nms for i, nms in enumerate(params)},  # the optimizer knows them by number
            _REQUIRES_GRAD: {nm: p.requires_grad for nm, p in learn.model.named_parameters()},
            'loss function': getattr(loss, '__qualname__', None if loss is None else type(loss).__name__),
            'validation': learn.validates, 'mom': getattr(learn, 'mom', None),
            'stateful callbacks': [nm for nm, _ in stateful_callbacks(learn)]}


def _group(learn: Any, group: dict) -> dict[str, Any]:
    # without an opt_func the optimizer stays from fit to fit, and an earlier one may have changed its hyperparameters
    hypers = {k: _plain(x) for k, x in group.items() if k != 'params'} if learn.opt_func else {}
    return {'parameters': len(group['params'])} | hypers


def _schedule(s: Any) -> dict[str, Any]:
    "A schedule's state, public attributes first, and values of its functions at steps from 1 to over a million."
    state = {k: _plain(x) for k, x in s.state_dict().items()}
    functions = {id(f): f for part in _parts_of(s) for f in getattr(part, 'lr_lambdas', ())}.values()
    values = {f'value of function {i} at step {n}': _value(f, n)
              for i, f in enumerate(map(_safe_to_call, functions)) if f for n in _STEPS}
    return {k: state[k] for k in sorted(state, key=lambda k: k.startswith('_'))} | values


def _parts_of(schedule: Any) -> Iterator[Any]:
    "A schedule and those inside it."
    yield schedule
    for part in getattr(schedule, '_schedulers', ()): yield from _parts_of(part)


def _safe_to_call(f: Callable) -> Callable | None:
    "A copy of `f`, which may count its calls; None if it cannot be copied, or if calls would use up an iterator."
    try: uses_iterator = any(isinstance(c.cell_contents, Iterator) for c in getattr(f, '__closure__', None) or ())
    except ValueError: return None  # a variable that has no value yet
    if uses_iterator: return None
    try: return deepcopy(f)
    except Exception: return None


def _value(f: Callable[[int], Any], step: int) -> float | str:
    "The function's value at `step`, NaN as text; its exception's name if it has no value there."
    try: x = float(f(step))
    except Exception as e: return type(e).__name__
    return x if x == x else 'nan'


def _plain(x: Any) -> Any:
    "What can be compared in a schedule's state: functions and other objects by their classes."
    if isinstance(x, dict): return {str(k): _plain(v) for k, v in x.items()}
    if isinstance(x, list | tuple): return [_plain(y) for y in x]
    if isinstance(x, torch.Tensor) and x.numel() == 1: return x.item()
    return x if isinstance(x, int | float | str | None) else type(x).__name__


# Compared

def check_same(learn: Any, state: dict[str, Any], now: dict[str, Any], first: dict[str, Any]) -> None:
    """ResumeError, with both values, for the first difference between the run of the checkpoint `state` and `learn`, in
    the state `now` as its fit starts, with the first fingerprint `first`."""
    then, here = state['fingerprint']['miniai'], version_of('miniai-torch')
    if then != here: raise ResumeError(f"cannot resume: the checkpoint was saved by miniai {then}, and this is {here}")
    _check(state['fingerprint'], fingerprint(learn, now) | first)
    missing = sorted(state['extras'].keys() - now['extras'].keys())
    if missing: warnings.warn(f"the checkpoint has the Learner's {', '.join(missing)}, but the Learner has no such "
                              f"attribute when its fit starts: this will not be restored", stacklevel=5)
    _check(_extras(state, now), _extras(now, state))
    _check(_trained(state), _trained(now), ". The optimizer must have all its parameters when the fit starts")
    _check(_random(state), _random(now))


def _check(saved: dict[str, Any], here: dict[str, Any], hint: str = '') -> None:
    for k, then, now in _differences(saved, here):
        if k.endswith('number of workers') and 'missing' in (then, now): continue  # compared only if both recorded it
        if not k.startswith(_REQUIRES_GRAD):
            raise ResumeError(f"cannot resume: {k} was {then} in the checkpoint and is {now} now{hint}")
        warnings.warn(f"{k} was {then} when the run started and is {now} now: the checkpoint's choice will be restored",
                      stacklevel=6)


def resume_signature(state: dict[str, Any]) -> dict[str, Any]:
    "What must be the same about a run's state when it is saved and when the fit that resumes it starts."
    return {'model': _describe_all(state['model']), **_trained(state), **_random(state),
            'stateful callbacks': list(state['records'])}


def first_difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    "The first difference between two of `resume_signature`, with both values; '' if there is none."
    return next((f'{k} was {a} at the start and is {b} now' for k, a, b in _differences(before, now)), '')


def _extras(state: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    "Descriptions of the loss's module, and of the modules and optimizers of the Learner that both states have."
    things = {'the loss': state['loss']} | {f"the Learner's {nm}": x for nm, x in state['extras'].items()
                                            if nm in other['extras']}
    def describe(x: dict[str, Any]) -> dict[str, Any]:
        if 'training' in x: return _describe_all(x['state'])
        return {'parameters per group': [len(g['params']) for g in x['state']['param_groups']]}
    return {nm: {'': x['kind']} | describe(x) for nm, x in things.items() if x}


def _trained(state: dict[str, Any]) -> dict[str, Any]:
    return {'parameters in group': {str(i): len(g['params']) for i, g in enumerate(state['opt']['param_groups'])},
            'parameters outside the model': [_describe(p['value']) for p in state['other_params']]}


def _random(state: dict[str, Any]) -> dict[str, Any]:
    found = dict(callbacks=state['generators']) | {f'loader {i}': [*s['generators'], *s['data_generators']]
                                                   for i, s in enumerate(state['loaders'])}
    return {'random state:': describe_states(state['random']),
            'random generators of': {nm: [g['kind'] for g in gs] for nm, gs in found.items()}}


def _differences(saved: dict[str, Any], here: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    "The names of the values that differ, and both as text."
    a, b = _flat(saved), _flat(here)
    for k in dict.fromkeys([*b, *a]):
        if a.get(k) != b.get(k): yield k, *(repr(d[k]) if k in d else 'missing' for d in (a, b))


def _flat(d: dict[str, Any]) -> dict[str, Any]:
    "One level of nested dicts, their names joined."
    inner = {k: x if isinstance(x, dict) else {'': x} for k, x in d.items()}
    return {f'{k} {nm}'.strip(): x for k, xs in inner.items() for nm, x in xs.items()}
