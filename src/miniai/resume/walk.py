"One walk over everything a run holds: from the Learner through attributes, containers, closures and globals."
import random
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, cached_property, partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Generator, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from miniai.distributed.dtensor import reshard
from miniai.distributed.wrap import class_of, unwrapped
from miniai.events import Callback
from miniai.metrics.early_stopping import EarlyStoppingCB
from miniai.resume.slots import (
    HOOKS,
    ITEMS,
    attributes_of,
    cells_of,
    globals_in,
    is_hugging_face,
    names_in,
    options_of,
    set_items,
    slot_names,
    slots_of,
)
from miniai.resume.values import WEAK, is_container, is_plain, parts_of

__all__ = ['Node', 'walk', 'is_generator', 'callbacks_of', 'only_shows', 'has_state_dict']

_MOST = 10_000  # objects
_GLOBAL_GENERATORS = torch.default_generator, np.random.get_state.__self__, random.getstate.__self__
_KNOWN = 'miniai', 'torchvision', 'timm', 'torchmetrics', 'torchdata'
_KNOWN_IN_TORCH = 'torch.nn', 'torch.optim', 'torch.utils.data'
_LIBRARIES = tuple({sysconfig.get_paths()[k] for k in ('stdlib', 'platstdlib', 'purelib', 'platlib')})
_OF_THE_LOOP = frozenset((  # attributes of every Learner, except for those that are part of a run, such as kept_in_eval
    'model', 'dls', 'loss_func', 'opt_func', 'lr', 'opt', 'epochs', 'n_epochs', 'epoch', 'iter', 'dl', 'batch', 'preds',
    'loss', 'metrics', 'display', 'ended_by', 'trains', 'validates', 'resume', 'dry_run', 'skip_backward', 'hold_step',
    'fitting', 'counts', 'history', '_cbs', '_last_dispatch', '_left_in_eval'))


@dataclass
class Node:
    """An object of the run. `kind` says how its state is kept: 'module', 'part' (of a module), 'optimizer',
    'generator', 'stateful' (it has a state_dict), 'plain' (its `slots`: attributes, or variables of a function), or
    'opaque' (not entered). `strict`: a changed setting changes the result for sure. `data`: it belongs to the data, or
    to a global variable, and large values in it are usually constant. `keeps`: the slots that are state and not only
    settings; None for all."""
    path: str
    object: Any
    kind: str
    strict: bool = True
    data: bool = False
    keeps: frozenset[str] | None = None
    slots: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, value: Any) -> None:
        "Set a slot."
        o = self.object
        if name == ITEMS: return set_items(o, value)
        if name == HOOKS: return
        if type(o) is dict: o[name] = value  # the globals of a module
        elif isinstance(o, FunctionType):
            if name in o.__code__.co_freevars: cells_of(o)[name].cell_contents = value
            elif name in vars(o): setattr(o, name, value)
        elif isinstance(o, type): setattr(o, name, value)
        elif attributes_of(o) is not None and (name in attributes_of(o) or not hasattr(type(o), name)):
            attributes_of(o)[name] = value
        else: object.__setattr__(o, name, value)  # a slot of `__slots__`


def walk(learn: Any, names: dict[int, str] | None = None) -> dict[str, Node]:
    """Everything the Learner's run depends on, by path, such as 'learn.model.0', nearest first. `names` are the paths
    that an earlier walk gave to objects, by id: they keep them, wherever they are now. Does not enter what belongs to
    libraries, except for modules, optimizers and data of the well-known ones; stops after 10,000 objects."""
    return _Walk(names or {}).run(learn)


def callbacks_of(learn: Any) -> Iterator[tuple[str, Any]]:
    "The callbacks, named by class and, from the second one on, number."
    counts: dict[str, int] = {}
    for cb in learn.cbs:
        nm = type(cb).__name__
        counts[nm] = counts.get(nm, 0) + 1
        yield (nm if counts[nm] == 1 else f'{nm} {counts[nm]}'), cb


class _Walk:
    def __init__(self, names: dict[int, str]) -> None:
        self.nodes, self.seen, self.queue = {}, {id(g): g for g in _GLOBAL_GENERATORS}, deque()
        self.names, self.taken = names, set(names.values())

    def run(self, learn: Any) -> dict[str, Node]:
        self.seen |= {id(x): x for x in (learn, learn.cbs, *learn.cbs)}
        reshard(learn.model)
        parts = dict(model=unwrapped(learn.model), loss_func=learn.loss_func, opt=learn.opt)
        self.enter(Node('learn', learn, 'plain'), parts)
        loaders = {nm: getattr(learn.dls, nm) for nm in ('train', 'valid') if hasattr(learn.dls, nm)}
        self.enter(Node('learn.dls', learn.dls, 'plain', data=True), loaders)
        for nm, cb in callbacks_of(learn):
            if only_shows(cb) and not has_state_dict(cb): continue
            del self.seen[id(cb)]
            self.add(f'learn.cbs.{nm}', cb, False)
        own = {k: x for k, x in vars(learn).items() if k not in _OF_THE_LOOP}
        for k in [k for k in own if hasattr(type(learn), k)]:  # a method that a callback of the library replaced
            if str(getattr(getattr(own[k], 'func', own[k]), '__module__', '')).startswith('miniai.'): del own[k]
        self.enter(self.nodes['learn'], own)
        self.enter_class(type(learn))
        while self.queue and len(self.nodes) < _MOST: self.visit(*self.queue.popleft())
        return self.nodes

    def add(self, path: str, x: Any, data: bool) -> None:
        "Put what a slot holds into the queue, if it is an object or holds some."
        if type(x) in WEAK or id(x) in self.seen: return
        if isinstance(x, type | Enum): return self.enter_class(x if isinstance(x, type) else type(x))
        if isinstance(x, BuiltinFunctionType): x = x.__self__  # such as `random.Random(5).random`
        if not is_plain(x): self.queue.append((path, x, data))

    def visit(self, path: str, x: Any, data: bool) -> None:
        if id(x) in self.seen: return
        self.seen[id(x)] = x
        if is_container(x):
            for suffix, part in parts_of(x): self.add(path + suffix, part, data)
            return
        if isinstance(x, ModuleType): return self.enter_module(x, None)
        origin = origin_of(x if isinstance(x, FunctionType) else class_of(x))
        kind = _kind(x, origin)
        closed = only_shows(x) or kind in ('opaque', 'generator') or (kind == 'stateful' and origin == 'library')
        slots = {} if closed else slots_of(x, origin, kind)
        wrapped = (attributes_of(x) or {}).get('__wrapped__') if kind == 'opaque' else None
        if wrapped: self.add(f'{path}.__wrapped__', wrapped, data)
        keeps = None
        if kind == 'stateful' or (isinstance(x, Callback) and origin == 'known'): keeps = options_of(x)
        self.enter(Node(self.name(path, x), x, kind, _is_strict(x, origin), data, keeps), slots)
        parts = list(x.named_modules())[1:] if kind == 'module' else ()
        for nm, m in parts:
            if id(m) in self.seen: continue
            self.seen[id(m)] = m
            self.enter(Node(self.name(f'{path}.{nm}', m), m, 'part'), slots_of(m, origin_of(class_of(m)), 'part'))
            self.enter_class(type(m))
        for nm, p in x.named_parameters() if kind == 'module' else ():
            own = {k: x for k, x in attributes_of(p).items() if not k.startswith('_')}
            if own: self.enter(Node(f'{path}.{nm}', p, 'plain'), own)
        if origin == 'user' and isinstance(x, FunctionType): self.enter_globals(x)
        if not only_shows(x): self.enter_class(type(x))

    def name(self, path: str, x: Any) -> str:
        "The path that an earlier walk gave to `x`; else a free one."
        if id(x) in self.names: return self.names[id(x)]
        while path in self.nodes or path in self.taken: path += "'"
        return path

    def enter(self, node: Node, slots: dict[str, Any]) -> None:
        self.nodes[node.path] = node
        node.slots |= slots
        for nm, x in slots.items(): self.add(f'{node.path}.{nm}', x, node.data)

    # What functions and classes name

    def enter_class(self, cls: type) -> None:
        "The attributes of a user's class, its bases, and the globals that its methods name."
        for c in cls.__mro__:
            if id(c) in self.seen or origin_of(c) != 'user': continue
            self.seen[id(c)] = c
            own = {} if issubclass(c, Enum) else {k: _function_of(x) for k, x in vars(c).items()}
            methods = {k: f for k, f in own.items() if isinstance(f, FunctionType) and origin_of(f) == 'user'}
            node = Node(self.name(f'class {c.__module__}.{c.__qualname__}', c), c, 'plain', strict=False)
            self.enter(node, {k: x for k, x in own.items() if _is_attribute(k, x)} | methods)

    def enter_globals(self, f: FunctionType) -> None:
        names = globals_in(f.__code__)
        self.enter_space(f.__globals__.get('__name__', f.__module__), f.__globals__, names)
        used = names_in(f.__code__)
        for m in [f.__globals__[nm] if nm in f.__globals__ else sys.modules.get(nm) for nm in used]:
            if isinstance(m, ModuleType): self.enter_module(m, used)

    def enter_module(self, m: ModuleType, names: set[str] | None) -> None:
        "Globals of a user's module, and of modules in it, by the names that a function uses; all if that is not known."
        if _origin(m.__name__) != 'user': return
        known = {nm for nm in vars(m) if not nm.startswith('__')} if names is None else names
        self.enter_space(m.__name__, vars(m), known)
        for part in [vars(m)[nm] for nm in known & vars(m).keys()]:
            inside = isinstance(part, ModuleType) and part.__name__.startswith(f'{m.__name__}.')
            if inside: self.enter_module(part, names)

    def enter_space(self, name: str, space: dict[str, Any], names: set[str]) -> None:
        path = f'module {name}'
        node = self.nodes.get(path) or Node(path, space, 'plain', strict=False, data=True)
        found = {nm: space[nm] for nm in sorted(names & space.keys() - node.slots.keys())
                 if not isinstance(space[nm], ModuleType)}
        users = {nm: x for nm, x in found.items()
                 if not isinstance(x, type | FunctionType | BuiltinFunctionType) or origin_of(x) == 'user'}
        self.enter(node, users)


def _function_of(x: Any) -> Any:
    "The function in a static or class method, or of a property; else `x`."
    if isinstance(x, property): return x.fget
    return x.func if isinstance(x, cached_property) else getattr(x, '__func__', x)


def _is_attribute(name: str, x: Any) -> bool:
    dunder = name.startswith('__') or name == '_abc_impl'
    return not (dunder or isinstance(x, type | BuiltinFunctionType) or hasattr(type(x), '__get__'))


# What kind of object it is

def _kind(x: Any, origin: str) -> str:
    if isinstance(x, nn.Module): return 'module'
    if is_generator(x): return 'generator'
    if is_hugging_face(x): return 'plain'
    if has_state_dict(x): return 'optimizer' if hasattr(x, 'param_groups') else 'stateful'
    if isinstance(x, FunctionType | MethodType | partial | SimpleNamespace): return 'plain'
    of_data = isinstance(x, DataLoader | Dataset | Sampler)
    entered = (origin != 'library' or of_data) and (attributes_of(x) is not None or slot_names(type(x)))
    return 'plain' if entered else 'opaque'


def is_generator(x: Any) -> bool:
    """Is `x` a generator with a state: torch's Generator, numpy's Generator or RandomState, or Python's Random?
    SystemRandom has no state."""
    if isinstance(x, random.Random): return type(x).getstate is random.Random.getstate
    return isinstance(x, Generator | np.random.Generator | np.random.RandomState)


def has_state_dict(x: Any) -> bool:
    "Has this object a state_dict and a load_state_dict? Of DataLoaders, only torchdata's have real ones."
    if isinstance(x, DataLoader) and not type(x).__module__.startswith('torchdata.'): return False
    return all(callable(getattr(type(x), nm, None)) for nm in ('state_dict', 'load_state_dict'))


def only_shows(cb: Any) -> bool:
    "Does this callback say that it does not change training?"
    return getattr(type(cb), 'only_shows', False) is True


def _is_strict(x: Any, origin: str) -> bool:
    if isinstance(x, FunctionType): return origin == 'known' or x.__name__ == '<lambda>'
    if isinstance(x, EarlyStoppingCB): return False  # how long to train is the user's choice
    return origin == 'known' or isinstance(x, nn.Module | partial | MethodType)


def origin_of(x: type | Callable) -> str: return _origin(getattr(x, '__module__', None) or 'builtins')


@cache
def _origin(module: str) -> str:
    "'known' for a library whose objects are entered, 'library' for any other, 'user' for the rest."
    root = module.partition('.')[0]
    if root in _KNOWN or module.startswith(_KNOWN_IN_TORCH): return 'known'
    if root == '__main__' or root == '__mp_main__': return 'user'
    if root in sys.stdlib_module_names: return 'library'
    file = getattr(sys.modules.get(module) or sys.modules.get(root), '__file__', None)
    return 'library' if file is None or file.startswith(_LIBRARIES) else 'user'
