"What a Learner holds at a moment, and what has changed between two moments, as plain data and as text."
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from miniai.callbacks.trained import loss_modules
from miniai.device import first_tensor
from miniai.distributed.dtensor import local, reshard
from miniai.events import PHASES
from miniai.randomness import host_states, same_states

__all__ = ['Moment', 'changes', 'change_text', 'described']

_BOOKKEEPING = {'ended_by', 'fitting', 'dry_run', 'resume', 'events', 'kept_in_eval', *PHASES}
_PLAIN = int | float | str | bool | None


class Moment:
    """The public attributes of a Learner, its callbacks, parameters, gradients, buffers, modes, hyperparameters and
    optimizer state, and the random generators, as they are now. Tensors are copied: of a DTensor the part that this
    process has."""
    def __init__(self, learn: Any) -> None:
        self.values = dict(leaf for nm, x in _attributes(learn).items() for leaf in _leaves(nm, x))
        self.values['cbs'] = ', '.join(type(cb).__name__ for cb in learn.cbs)
        self.values |= _hyperparameters(learn.opt)
        self.groups = _tensors(learn) | {'optimizer state': _state(learn.opt)}
        self.random = host_states()


def _attributes(learn: Any) -> dict[str, Any]:
    "The public ones, with the defaults in the class of those that are not set, without properties and methods."
    defaults = {nm: x for c in reversed(type(learn).__mro__) for nm, x in vars(c).items()
                if isinstance(x, _PLAIN) and nm != '__doc__'}
    return {nm: x for nm, x in (defaults | vars(learn)).items() if nm[0] != '_' and nm not in _BOOKKEEPING}


def _leaves(name: str, x: Any) -> Iterator[tuple[str, Any]]:
    "The tensors of a nest by name, such as batch[0]; anything else is a leaf itself."
    if isinstance(x, Tensor): yield name, _copied(x)
    elif first_tensor(x) is None: yield name, list(x) if type(x) is list else x
    elif isinstance(x, Mapping):
        for k, o in x.items(): yield from _leaves(f'{name}[{k!r}]', o)
    elif isinstance(x, tuple | list):
        for i, o in enumerate(x): yield from _leaves(f'{name}[{i}]', o)
    else:  # a dataclass
        for field in fields(x): yield from _leaves(f'{name}.{field.name}', getattr(x, field.name))


def _copied(x: Tensor) -> Tensor:
    x = local(x.detach())
    if x.is_nested: x = torch.cat([part.flatten() for part in x.unbind()])
    return x.to_dense() if x.is_sparse else x.clone()


def _hyperparameters(opt: Any) -> dict[str, Any]:
    "Numbers of the parameter groups, such as opt.lr."
    groups = getattr(opt, 'param_groups', ())
    return {f'opt[{i}].{nm}' if len(groups) > 1 else f'opt.{nm}': float(x) if isinstance(x, Tensor) else x
            for i, group in enumerate(groups) for nm, x in group.items()
            if isinstance(x, _PLAIN | tuple) or (isinstance(x, Tensor) and x.numel() == 1)}


def _tensors(learn: Any) -> dict[str, dict[str, Any]]:
    "Parameters, gradients, buffers and modes of the model and of losses that are modules, by name."
    found = dict(parameters={}, gradients={}, buffers={}, modes={})
    for prefix, module in {'': learn.model, **{f'{nm}.': m for nm, m in loss_modules(learn).items()}}.items():
        if not isinstance(module, torch.nn.Module): continue
        reshard(module)
        for nm, p in module.named_parameters():
            if is_lazy(p): continue
            found['parameters'][prefix + nm] = _copied(p)
            if p.grad is not None: found['gradients'][prefix + nm] = _copied(p.grad)
        found['buffers'] |= {prefix + nm: _copied(b) for nm, b in module.named_buffers() if not is_lazy(b)}
        found['modes'] |= {prefix + nm or 'the model': m.training for nm, m in module.named_modules()}
    return found


def _state(opt: Any) -> dict[str, Any]:
    state = getattr(opt, 'state', None)
    if not isinstance(state, Mapping): return {}
    params = [p for group in opt.param_groups for p in group['params'] if p in state]
    return {f'{i}.{nm}': _copied(x) if isinstance(x, Tensor) else x
            for i, p in enumerate(params) for nm, x in state[p].items() if isinstance(x, Tensor | _PLAIN)}


# Differences

def changes(before: Moment, after: Moment) -> list[dict[str, Any]]:
    """What differs, a dict each. A value has `name`, `before` and `after`: a number, text, or a dict of dtype, shape,
    mean and standard deviation of a tensor; None where there was nothing. Parameters and the like come in one dict for
    all that changed, with their `names`. Random generators that were drawn from are one more."""
    found = [dict(name=nm, before=described(before.values.get(nm)), after=described(after.values.get(nm)))
             for nm in before.values | after.values if not _same(before.values.get(nm), after.values.get(nm))]
    for group, now in after.groups.items():
        was = before.groups[group]
        names = [nm for nm in was | now if not _same(was.get(nm), now.get(nm))]
        if names: found.append(dict(name=group, names=names, before=_together(was, names), after=_together(now, names)))
    drawn = [nm for nm, state in after.random.items() if not same_states(state, before.random[nm])]
    if drawn: found.append(dict(name='random numbers', names=drawn, before=None, after=None))
    return found


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if (a.shape, a.dtype, a.device) != (b.shape, b.dtype, b.device): return False
        return bool(((a == b) | ((a != a) & (b != b))).all())
    if isinstance(a, Tensor) or isinstance(b, Tensor): return False
    if isinstance(a, _PLAIN) and isinstance(b, _PLAIN): return a is b or (type(a) is type(b) and a == b)
    if type(a) is type(b) and type(a) in (list, tuple): return len(a) == len(b) and all(map(_same, a, b))
    return a is b


def described(x: Any) -> Any:
    "A value as plain data: numbers and text as they are, tensors as a dict, other objects as the name of their type."
    if isinstance(x, Tensor):
        where = {} if x.device.type == 'cpu' else dict(device=str(x.device))
        return dict(dtype=str(x.dtype).removeprefix('torch.'), shape=list(x.shape), **_moments([x]), **where)
    if isinstance(x, _PLAIN): return x
    name = type(x).__name__ if type(x).__module__.split('.')[0] != 'builtins' or not hasattr(x, '__len__') else ''
    return name or f'{type(x).__name__} of {len(x)}'


def _together(values: dict[str, Any], names: list[str]) -> dict[str, Any] | None:
    "How many of the values there are, with mean and standard deviation of all their elements."
    there = [values[nm] for nm in names if values.get(nm) is not None]
    return dict(count=len(there), **_moments(x for x in there if isinstance(x, Tensor))) if there else None


def _moments(xs: Any) -> dict[str, float]:
    "Mean and standard deviation over the elements of all tensors; those of magnitudes for complex ones."
    xs = [(x.abs() if x.is_complex() else x).flatten().double().cpu() for x in xs if x.numel()]
    if not xs: return {}
    values = torch.cat(xs)
    return dict(mean=values.mean().item(), std=values.std(correction=0).item())


def change_text(change: dict[str, Any]) -> str:
    "A change in one line."
    name, before, after = change['name'], change['before'], change['after']
    if name == 'random numbers': return f"random numbers drawn from {' and '.join(change['names'])}"
    if 'names' in change: return f"{_counted(change)}{_group_text(before, after)}"
    if name == 'cbs': return _list_text(before or '', after or '')
    if isinstance(after, dict): return f'{name}: {_difference(before, after)}'
    return f'{name}: {_short(before)} → {_short(after)}'


def _list_text(before: str, after: str) -> str:
    was, now = (Counter(nm for nm in text.split(', ') if nm and nm[0] != '_') for text in (before, after))
    changed = dict(added=now - was, removed=was - now)
    words = [f"{word} {', '.join(names.elements())}" for word, names in changed.items() if names]
    return f"cbs: {'; '.join(words) or 'in another order'}"


def _counted(change: dict[str, Any]) -> str:
    names = change['names']
    shown = ', '.join(names[:3]) + f' and {len(names) - 3} more'*(len(names) > 3)
    return f"{change['name']}: {shown}"


def _group_text(before: dict | None, after: dict | None) -> str:
    if after is None: return ' cleared'
    if before is None: return ' new' + _std_text(after)
    return f'{_std_text(before)} →{_std_text(after)}' if 'std' in before and 'std' in after else ' changed'


def _std_text(stats: dict) -> str: return f" mean {stats['mean']:.3g} std {stats['std']:.3g}" if 'std' in stats else ''


def _difference(before: Any, after: dict) -> str:
    "A tensor that changed: what is the same on both sides is said once."
    if not isinstance(before, dict): return f'{_short(before)} → {_kind(after)}{_value(after)}'
    if _kind(before) == _kind(after): return f'{_kind(after)}{_value(before)} →{_value(after)}'
    return f'{_kind(before)}{_value(before)} → {_kind(after)}{_value(after)}'


def _kind(tensor: dict) -> str:
    where = f" on {tensor['device']}" if 'device' in tensor else ''
    return f"{tensor['dtype']} {tuple(tensor['shape'])}{where}" if tensor['shape'] else tensor['dtype'] + where


def _value(tensor: dict) -> str: return _std_text(tensor) if tensor['shape'] else f" {tensor['mean']:.4g}"


def _short(x: Any) -> str:
    if isinstance(x, dict): return _kind(x)
    if isinstance(x, float): return f'{x:.4g}'
    text = str(x)
    return text if len(text) <= 60 else text[:59] + '…'
