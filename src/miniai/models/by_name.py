"Models by name: the library's own, those of timm, and functions of a module."
import inspect
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from torch import nn

from miniai.models.convnet import get_model
from miniai.models.layers import act_gr
from miniai.models.resnet import get_resnet
from miniai.models.table_net import TableNet

__all__ = ['MODELS', 'ModelRow', 'build_model', 'function_at']


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
    a name that does not exist or does not fit the data, TypeError for unknown options."""
    if name.startswith('timm:'): build, given = _timm(name, facts)
    elif ':' in name: build, given = function_at(name), facts
    else: build, given = _own(name, facts), facts
    parameters = inspect.signature(build).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    given = {nm: v for nm, v in given.items() if nm in parameters or takes_any}
    unknown = [nm for nm in options if nm not in parameters and not takes_any]
    if unknown:
        raise TypeError(f"the model {name} has no option {', '.join(unknown)}; it has "
                        f"{', '.join(nm for nm in parameters if nm not in given) or 'none'}")
    model = build(**given | options)
    if not isinstance(model, nn.Module): raise TypeError(f"{name} returned a {type(model).__name__}, not a model")
    model.recipe = dict(name=name, facts=dict(facts), options=options)
    return model


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
