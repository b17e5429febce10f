"What a function is made with, as short texts that are the same in every process: its bytecode and its variables."
import hashlib
import inspect
import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ['LIBRARIES', 'described', 'made_with']

LIBRARIES = 'miniai.', 'torch.'
ADDRESS = re.compile(r' at 0x[0-9a-fA-F]+')
LONGEST = 60  # characters of a text; longer ones are a digest


def made_with(thing: Any, seen: dict[int, Any] | None = None) -> Iterator[tuple[str, str]]:
    """Names and short texts of what makes a function, class, partial or other callable do what it does, beside its
    source: two functions that one line of code made may differ in it."""
    seen = {} if seen is None else seen
    for nm, value in _parts(thing): yield nm, described(value, seen)


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, partial):
        yield from ((f'argument {i}', value) for i, value in enumerate(thing.args))
        yield from (('argument ' + nm, value) for nm, value in sorted(thing.keywords.items()))
        yield from _parts(thing.func)
    elif isinstance(thing, FunctionType):
        if not (thing.__module__ or '').startswith(LIBRARIES):
            yield 'bytecode', thing.__code__
            if thing.__defaults__: yield 'defaults', thing.__defaults__
            if thing.__kwdefaults__: yield 'defaults by name', thing.__kwdefaults__
        yield from ((nm, _content(cell)) for nm, cell in
                    zip(thing.__code__.co_freevars, thing.__closure__ or (), strict=True))
    elif isinstance(thing, type):
        if thing.__module__.startswith(LIBRARIES) and '<locals>' not in thing.__qualname__: return
        for nm, value in sorted(vars(thing).items()):  # torch wraps `step` when the first optimizer is made
            value = inspect.unwrap(getattr(value, '__func__', value))
            if isinstance(value, FunctionType) and (nm == 'rule' or value.__qualname__ == f'{thing.__qualname__}.{nm}'):
                yield from ((f'{nm}: {of}', x) for of, x in _parts(value))
    elif isinstance(thing, MethodType): yield from (*_parts(thing.__func__), ('self', thing.__self__))
    elif callable(inner := getattr(thing, '__wrapped__', None)): yield from _parts(inner)
    elif not inspect.isroutine(thing): yield 'object', thing


def _content(cell: Any) -> Any:
    try: return cell.cell_contents
    except ValueError: return 'a variable without a value'


def described(value: Any, seen: dict[int, Any]) -> str:
    "A short text of a value: arrays by content, functions by what they are made with, objects by what they hold."
    if id(value) in seen: return seen[id(value)][1]
    seen[id(value)] = value, '…'  # one that contains itself
    text = _described(value, seen)
    if len(text) > LONGEST or '\n' in text or isinstance(value, CodeType):
        text = hashlib.sha256(text.encode(errors='replace')).hexdigest()[:16]
    seen[id(value)] = value, text
    return text


def _described(value: Any, seen: dict[int, Any]) -> str:
    def of(values: Any) -> str: return ', '.join(described(v, seen) for v in values)
    kind = type(value).__qualname__
    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f'{kind} {value.dtype} {tuple(value.shape)} {hashlib.sha256(data.data).hexdigest()[:16]}'
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f'{kind} {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}'
    if isinstance(value, CodeType): return f'{value.co_code.hex()} {value.co_names} {of(value.co_consts)}'
    if isinstance(value, torch.nn.Module):
        options = [pair for m in value.modules() for pair in sorted(vars(m).items()) if pair[0][0] != '_']
        return f'{ADDRESS.sub("", repr(value))} {of([*value.state_dict().items(), *options])}'
    if isinstance(value, tuple | list): return f'{kind}({of(value)})'
    if isinstance(value, set | frozenset): return f'{kind} {sorted(described(v, seen) for v in value)}'
    if isinstance(value, Mapping): return f'{kind}({of(value.items())})'
    if isinstance(value, ModuleType): return value.__name__
    if isinstance(value, partial | FunctionType | type | MethodType):
        function = value.func if isinstance(value, partial) else value
        named = getattr(function, '__qualname__', kind)
        return f'{getattr(function, "__module__", "")}.{named}({", ".join(map(str, made_with(value, seen)))})'
    text = repr(value)
    if not ADDRESS.search(text): return text
    return f'{ADDRESS.sub("", text)} {of(sorted(getattr(value, "__dict__", {}).items()))}'
