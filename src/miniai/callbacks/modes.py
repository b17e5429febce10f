"Training and eval mode, for models of which a part stays in eval mode, such as a frozen BatchNorm."
import warnings
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

__all__ = ['set_mode', 'in_eval']


def set_mode(learn: Any, training: bool) -> None:
    """Put the model into training or eval mode. What stands in eval mode inside a model in training is
    `learn.kept_in_eval`: it returns to eval mode whenever the model is put into training. A model that is entirely
    in eval mode trains entirely, except for what earlier passes kept. A model's own `train` method decides last."""
    if not isinstance(learn.model, nn.Module): return learn.model.train(training)
    kept = in_eval(learn)
    learn.model.train(training)
    if training:
        kept = [m for m in kept if m.training]
        learn._left_in_eval = {m for m in learn.model.modules() if not m.training}  # by the model's own `train`
        for m in kept: m.training = False
        _warn_of_kept(learn.model, set(kept))
    learn.kept_in_eval = kept


def in_eval(learn: Any) -> list[nn.Module]:
    "The modules that stay in eval mode when the model is put into training."
    root, known = _unwrapped(learn.model), getattr(learn, 'kept_in_eval', None)
    inside = [m for m in root.modules() if m is not root]
    is_seen = root.training or (known is None and any(m.training for m in inside))
    found = inside if is_seen else [m for m in inside if m in set(known or ())]
    return [m for m in found if not m.training and m not in getattr(learn, '_left_in_eval', ())]


def _unwrapped(model: nn.Module) -> nn.Module:
    "The model inside wrappers such as DistributedDataParallel, which are in training mode when they are made."
    children = dict(model.named_children())
    return _unwrapped(*children.values()) if children.keys() in ({'module'}, {'_orig_mod'}) else model


def _warn_of_kept(model: nn.Module, kept: set[nn.Module]) -> None:
    "Parts in eval mode whose parameters train are usually what `from_pretrained` or an earlier fit left behind."
    for nm, m in model.named_modules():
        if m not in kept or not any(p.requires_grad for p in m.parameters()): continue
        inside = [d for d in m.modules() if d in kept and d is not m]
        found = [says for says, of in (("its dropout is off", _drops), ("its BatchNorm keeps its statistics", _tracks))
                 if any(map(of, inside))]
        if found: return warnings.warn(
            f"{nm} is in eval mode inside a model in training mode, and stays so: {' and '.join(found)}, although its "
            f"parameters train. If you don't want that, call learn.model.train() before fit; if you do, put only those "
            f"modules into eval mode", stacklevel=4)


def _drops(m: nn.Module) -> bool: return isinstance(m, _DropoutNd) and m.p > 0
def _tracks(m: nn.Module) -> bool: return isinstance(m, _NormBase) and m.running_mean is not None
