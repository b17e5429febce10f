"What an object holds, by name: attributes, arguments of a partial, variables and code of a function."
from dis import get_instructions
from functools import cache, partial
from hashlib import sha256
from inspect import signature
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from miniai.distributed.wrap import class_of, is_own
from miniai.optim.zero import is_zero
from miniai.steps.schedule import BaseSchedCB

__all__ = ['ITEMS', 'HOOKS', 'attributes_of', 'options_of', 'set_items', 'slots_of', 'slot_names', 'cells_of',
           'names_in', 'globals_in', 'is_hugging_face']

_MODULE_NAMES = frozenset(vars(nn.Module()))
_LOADER_NAMES = frozenset(vars(DataLoader([0]))) - {'dataset', 'sampler', 'batch_sampler', 'generator', 'collate_fn',
                                                    'batch_size', 'drop_last', 'persistent_workers', 'in_order'}
_HOOK_NAMES = sorted(nm for nm in _MODULE_NAMES if nm.endswith('_hooks'))
_EMPTY_CELL = CellType()
ITEMS, HOOKS = 'items()', 'hooks()'  # slots that are no attributes


@cache
def _optimizer_names() -> frozenset[str]:
    "Attributes of every optimizer. Not read at import: torch's first optimizer loads its compiler, for a second."
    return frozenset(vars(SGD([torch.zeros(1)]))) | {'step'}  # torch's schedulers replace `step`


def attributes_of(x: Any) -> dict[str, Any] | None:
    "The `__dict__` of an object, without asking its own `__getattr__`; None if it has none."
    try: return object.__getattribute__(x, '__dict__')
    except AttributeError: return None


def slots_of(x: Any, origin: str, kind: str) -> dict[str, Any]:
    "What an object holds, by name: attributes, arguments of a partial, variables and code of a function."
    if isinstance(x, partial):
        return dict(func=x.func) | {f'argument {i}': a for i, a in enumerate(x.args)} | x.keywords
    if isinstance(x, MethodType): return dict(self=x.__self__, method=x.__func__)
    if isinstance(x, FunctionType): return _slots_of_function(x, origin)
    if kind == 'optimizer': return _slots_of_optimizer(x)
    if is_hugging_face(x):  # what the data are, and the user's transform
        return {nm: getattr(x, nm, None) for nm in ('_fingerprint', '_format_kwargs', '_epoch')}
    own = dict(attributes_of(x) or {})
    own |= {nm: getattr(x, nm) for nm in slot_names(type(x)) if hasattr(x, nm)}
    if isinstance(x, nn.Module): own = {k: v for k, v in own.items() if is_own(k)}
    hidden = _MODULE_NAMES if isinstance(x, nn.Module) else _LOADER_NAMES if isinstance(x, DataLoader) else ()
    if isinstance(x, BaseSchedCB): own.pop('sched', None)  # what it made, the schedule, is compared
    private = _private_names(class_of(x))
    own = {k: v for k, v in own.items() if k not in hidden and k not in private
           and not (k.startswith('_') and class_of(x).__module__.startswith('miniai.'))}
    if isinstance(x, list | dict | set): own[ITEMS] = _items_of(x)
    hooks = _hooks_of(x) if isinstance(x, nn.Module) else []
    return own | {HOOKS: hooks} if hooks else own


def is_hugging_face(x: Any) -> bool:
    "Is this a dataset of Hugging Face? The state_dict of a stream tells where its next pass starts, not this one."
    return type(x).__module__.startswith('datasets.')


def options_of(x: Any) -> frozenset[str]:
    "The names of a class's constructor."
    try: return frozenset(signature(type(x).__init__).parameters)
    except ValueError: return frozenset()


def _base_of(x: list | dict | set) -> type: return next(c for c in (list, dict, set) if isinstance(x, c))


def _items_of(x: list | dict | set) -> Any:
    "The items of a user's container, whatever its own methods do."
    base = _base_of(x)
    return dict(dict.items(x)) if base is dict else base(base.__iter__(x))


def set_items(x: list | dict | set, items: Any) -> None:
    "Replace the items of a user's container."
    base = _base_of(x)
    base.clear(x)
    if base is list: list.extend(x, items)
    else: base.update(x, items)


def _hooks_of(m: nn.Module) -> list:
    "The hooks of a module and of its parameters, except those of the library and of torch's ways to shard a model."
    of_tensors = [p._backward_hooks for p in m._parameters.values() if p is not None and p._backward_hooks]
    found = [h for hooks in (*(vars(m).get(nm, {}) for nm in _HOOK_NAMES), *of_tensors) for h in list(hooks.values())]
    own = 'miniai.', 'torch.distributed.'
    return [h for h in found if not str(getattr(getattr(h, 'func', h), '__module__', '')).startswith(own)]


def slot_names(cls: type) -> list[str]:
    "The names in the `__slots__` of a class and its bases."
    def mangled(c: type, nm: str) -> str:
        private = nm.startswith('__') and not nm.endswith('__')
        return f"_{c.__name__.lstrip('_')}{nm}" if private else nm
    found = [mangled(c, nm) for c in cls.__mro__ for nm in _as_names(vars(c).get('__slots__', ()))]
    return [nm for nm in found if not nm.startswith('__')]


def _as_names(names: Any) -> list[str]: return [names] if isinstance(names, str) else list(names)


@cache
def _private_names(cls: type) -> frozenset[str]:
    "The private attributes that the library's own bases of a user's class use."
    methods = [f for c in cls.__mro__ if c.__module__.startswith('miniai.') for f in vars(c).values()
               if isinstance(f, FunctionType)]
    return frozenset(nm for f in methods for nm in names_in(f.__code__) if nm.startswith('_'))


def cells_of(f: FunctionType) -> dict[str, CellType]:
    "The variables of a function's closure."
    return dict(zip(f.__code__.co_freevars, f.__closure__ or (), strict=True))


def _slots_of_function(f: FunctionType, origin: str) -> dict[str, Any]:
    cells = {nm: c.cell_contents for nm, c in cells_of(f).items() if c != _EMPTY_CELL}
    defaults = {f'default {i}': x for i, x in enumerate(f.__defaults__ or ())} | (f.__kwdefaults__ or {})
    return cells | defaults | (vars(f) | dict(__code__=_code_text(f.__code__, f.__doc__)) if origin == 'user' else {})


@cache
def _code_text(code: CodeType, doc: str | None = None) -> str:
    "The name of a function, and text that differs where its code does."
    def text(c: Any) -> str:
        if isinstance(c, CodeType): return _code_text(c)
        return repr(sorted(map(repr, c)) if isinstance(c, frozenset) else c)
    constants = [text(c) for c in code.co_consts if c not in (None, doc)]
    digest = sha256(repr((code.co_code, code.co_names, constants)).encode()).hexdigest()[:8]
    return f"{code.co_qualname.rpartition('<locals>.')[2]} #{digest}"


def _slots_of_optimizer(opt: Any) -> dict[str, Any]:
    inner = opt.optim if is_zero(opt) else opt  # what divides the work among processes is not part of a run
    ours = type(inner).__module__.startswith('miniai.')
    there = attributes_of(inner) or {}
    hidden = _optimizer_names() | ({'zero'} if ours else set())
    own = {k: v for k, v in there.items()
           if k not in hidden and not (k.startswith('_') and (ours or hasattr(inner, 'spec')))}
    hooks = [h for nm, x in there.items() if nm.endswith('_hooks') for h in list(x.values())]
    return own | dict(parameters=[g['params'] for g in opt.param_groups], rule=getattr(inner, 'rule', None)) | (
        {HOOKS: hooks} if hooks else {})


# Functions

def names_in(code: CodeType) -> set[str]:
    "The globals and attributes that a function names, with those of functions inside it."
    return set(code.co_names).union(*(names_in(c) for c in code.co_consts if isinstance(c, CodeType)))


@cache
def globals_in(code: CodeType) -> frozenset[str]:
    "The globals that a function names, with those of functions inside it."
    own = {i.argval for i in get_instructions(code) if i.opname.endswith(('_GLOBAL', '_NAME'))}
    return frozenset(own.union(*(globals_in(c) for c in code.co_consts if isinstance(c, CodeType))))
