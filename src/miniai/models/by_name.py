"Models by name: the library's own, those of timm, and functions of a module."
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from numbers import Real
from types import NoneType, UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin

from torch import nn

from miniai.models.convnet import get_model
from miniai.models.layers import act_gr
from miniai.models.resnet import get_resnet
from miniai.models.table_net import TableNet

__all__ = ['MODELS', 'ModelRow', 'build_model', 'check_options', 'function_at']


class ModelRow(NamedTuple):
    """`build(**facts, **options)` returns a model for data of the kind `data`, 'images' or 'table'. `about` is for the
    help."""
    build: Callable[..., nn.Module]
    data: str
    about: str


def _simple(channels: int = 1, outputs: int = 10, widths: Sequence[int] = (8, 16, 32, 64)) -> nn.Module:
    return get_model(act_gr, [channels, *widths], nn.BatchNorm2d, outputs, pool=True)


def _resnet(channels: int = 1, outputs: int = 10, widths: Sequence[int] = (8, 16, 32, 64, 128)) -> nn.Module:
    return get_resnet(act_gr, tuple(widths), channels=channels, outputs=outputs)


MODELS = {
    'simple': ModelRow(_simple, 'images', 'five convolutions, 30 thousand parameters'),
    'resnet': ModelRow(_resnet, 'images', 'five residual blocks, 300 thousand parameters'),
    'table':  ModelRow(TableNet, 'table', 'for tables: a linear model plus a small network'),
}


def build_model(name: str, facts: Mapping[str, Any], **options: Any) -> nn.Module:
    """The model called `name`, a row of MODELS, 'timm:NAME' or 'module:function', for data with these `facts`:
    'channels' and 'outputs' of images; 'numbers', 'categories' and 'outputs' of a table. A function gets those that it
    has parameters for. `options` are the model's own. `model.recipe` keeps all of this for `save_model`. ValueError for
    a name that does not exist or does not fit the data, and for options that the model cannot be made with; TypeError
    for options that are unknown or of the wrong kind."""
    if name.startswith('timm:'): build, given = _timm(name, facts)
    elif ':' in name: build, given = function_at(name), facts
    else: build, given = _own(name, facts), facts
    parameters = inspect.signature(build).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {nm: v for nm, v in given.items() if nm in parameters or takes_any}
    check_options(f'the model {name}', build, options, given)
    try: model = build(**given | options)
    except Exception as e:
        if not options: raise
        said = ', '.join(f'{nm}={v!r}' for nm, v in options.items())
        raise ValueError(f"the model {name} cannot be made with {said}: {e}") from e
    if not isinstance(model, nn.Module): raise TypeError(f"{name} returned a {type(model).__name__}, not a model")
    model.recipe = dict(name=name, facts=dict(facts), options=options)
    return model


def check_options(what: str, build: Callable, options: Mapping[str, Any], others: Iterable[str]) -> None:
    """TypeError for options that `build` has no parameter for, next to `others`, or that are neither like their
    defaults nor of a kind in their annotation, such as `bool | str`."""
    parameters = inspect.signature(build).parameters
    known = [nm for nm, p in parameters.items() if nm not in others and p.kind != p.VAR_KEYWORD]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in parameters.values())
    for nm, value in options.items():
        if nm in known: _check_kind(f'the option {nm} of {what}', value, parameters[nm])
        elif nm in others or not takes_any:
            near = get_close_matches(nm, known, n=1)
            raise TypeError(f"{what} has no option {nm}; " + (f"did you mean {near[0]!r}?" if near else
                            f"it has {', '.join(known) or 'none'}"))


def _check_kind(what: str, value: Any, parameter: inspect.Parameter) -> None:
    """TypeError for a value unlike the parameter's default, a bool, a number, text, or a list of whole numbers, and not
    of the kinds that its annotation joins."""
    default, kinds = parameter.default, _joined_kinds(parameter.annotation)
    if type(value) in kinds or (float in kinds and isinstance(value, int) and not isinstance(value, bool)): return
    if isinstance(default, bool): right, words = isinstance(value, bool), 'True or False'
    elif isinstance(default, Real): right, words = isinstance(value, Real) and not isinstance(value, bool), 'a number'
    elif isinstance(default, str): right, words = isinstance(value, str), 'text'
    elif isinstance(default, list | tuple):
        whole = all(isinstance(v, int) and v > 0 for v in default)
        right = isinstance(value, list | tuple) and all(isinstance(v, int) and v > 0 if whole else isinstance(v, Real)
                                                        for v in value)
        words = 'a list of whole numbers above 0' if whole else 'a list of numbers'
    else: return
    if right: return
    words = ', or '.join(dict.fromkeys([words, *(_KINDS[k] for k in kinds if k in _KINDS)]))
    raise TypeError(f"{what} must be {words}, such as its default {default!r}, got {value!r}")


_KINDS = {bool: 'True or False', float: 'a number', int: 'a number', str: 'text', NoneType: 'None'}


def _joined_kinds(annotation: Any) -> tuple[Any, ...]:
    "The kinds that an annotation such as `bool | str` joins; none for others."
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()


def _own(name: str, facts: Mapping[str, Any]) -> Callable[..., nn.Module]:
    kind = 'images' if 'channels' in facts else 'table' if 'numbers' in facts else None
    if kind is None: raise ValueError(f"the model {name} is not for such data: name your own, module:function")
    fitting = [nm for nm, row in MODELS.items() if row.data == kind]
    if name in fitting: return MODELS[name].build
    if name in MODELS:
        raise ValueError(f"the model {name} is for {'images' if kind == 'table' else 'a table'}, and the data are "
                         f"{'a table' if kind == 'table' else 'images'}: choose from {', '.join(fitting)}")
    near = get_close_matches(name, MODELS, n=1)
    raise ValueError(f"unknown model {name!r}; " + (f"did you mean {near[0]!r}?" if near else
                     f"choose from {', '.join(fitting)}, timm:NAME or module:function"))


def function_at(path: str) -> Callable[..., Any]:
    "The function at 'module:function', imported. ValueError if there is none."
    module, _, name = path.partition(':')
    try: f = getattr(import_module(module), name)
    except (ImportError, AttributeError) as e:
        raise ValueError(f"cannot import {path!r}: {e}. Give module:function, with the module where Python finds it, "
                         f"such as the current folder") from e
    if not callable(f): raise ValueError(f"{path!r} is of type {type(f).__name__}, not a function")
    return f


def _timm(name: str, facts: Mapping[str, Any]) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    "How timm makes a model, and what it calls our facts."
    if 'channels' not in facts: raise ValueError(f"{name} is for images, and the data are a table: use the model table")
    try:
        import timm
    except ImportError as e:
        raise ValueError(f"{name} needs the package timm: pip install 'miniai-torch[vision]'") from e
    known, name = timm.list_models(), name.removeprefix('timm:')
    if name.partition('.')[0] not in known:
        near = ', '.join(get_close_matches(name, known))
        raise ValueError(f"timm has no model {name!r}; {f'did you mean {near}?' if near else 'see timm.list_models()'}")
    return partial(timm.create_model, name), dict(in_chans=facts['channels'], num_classes=facts['outputs'])
