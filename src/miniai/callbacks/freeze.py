"Freezing parts of a model for fine-tuning: no gradients, and in eval mode, until they thaw."
from numbers import Integral
from typing import Any

from torch import nn

from miniai.callbacks.modes import in_eval
from miniai.distributed.dtensor import reshard
from miniai.events import Callback

__all__ = ['FreezeCB', 'freeze', 'unfreeze']


def freeze(self: Any, body: Any) -> None:
    """Freeze a part of the model: its parameters get no gradients, and it stays in eval mode, so that BatchNorm keeps
    its statistics and dropout is off. `body` is a module of the model, a slice of it such as `model[:-1]`, a name such
    as 'layers.0', or a list of them. ValueError for one that the model does not have."""
    reshard(self.model)
    kept = in_eval(self)
    for m in _parts(self.model, body):
        m.eval()
        kept += [k for k in m.modules() if k not in set(kept)]
        for p in m.parameters():
            p.requires_grad_(False)
            p.grad = None  # an optimizer steps whatever has a gradient
    self.kept_in_eval = kept


def unfreeze(self: Any, body: Any = None) -> None:
    "Let a part of the model train again, or all of it."
    reshard(self.model)
    for m in [self.model] if body is None else _parts(self.model, body):
        m.requires_grad_(True)
        m.train(self.model.training)
        thawed = set(m.modules())
        self.kept_in_eval = [k for k in self.kept_in_eval or () if k not in thawed]


def _parts(model: nn.Module, body: Any) -> list[nn.Module]:
    "The modules that `body` names. All are looked up before any is changed."
    named, found = dict(model.named_modules()), []
    known = set(named.values())
    for part in body if isinstance(body, list | tuple) else [body]:
        if isinstance(part, str) and part in named: found.append(named[part])
        elif isinstance(part, nn.Module) and (part in known or _is_slice(part, known)): found.append(part)
        else:
            names = ', '.join(repr(nm) for nm, _ in model.named_children()) or 'none'
            shown = repr(part) if isinstance(part, str) else f'a {type(part).__name__}'
            raise ValueError(f"the model has no part {shown}: give a module of it, or its name. Its parts are {names}")
    return found


def _is_slice(part: nn.Module, known: set[nn.Module]) -> bool:
    children = list(part.children())
    return isinstance(part, nn.Sequential | nn.ModuleList) and bool(children) and all(m in known for m in children)


class FreezeCB(Callback):
    """Trains with `body` frozen (see `freeze`) until epoch `until_epoch`, counted from 0, and then with all that it
    froze. The optimizer has the frozen parameters from the start, and steps them once they have gradients."""
    def __init__(self, body: Any, until_epoch: int = 2) -> None:
        if not isinstance(until_epoch, Integral) or until_epoch < 1:
            raise ValueError(f"FreezeCB: until_epoch must be a whole number, 1 or more, got {until_epoch!r}")
        self.body, self.until_epoch = body, until_epoch
        self._frozen = (), ()  # parameters, as pairs of module and name, and modules

    def before_fit(self, learn: Any) -> None:
        if not getattr(learn, 'trains', True): return
        searches = getattr(learn, 'dry_run', False)  # such as lr_find, for the rate to begin with
        if self.until_epoch >= learn.n_epochs and not searches: raise ValueError(
            f"FreezeCB: the body would never thaw, with until_epoch={self.until_epoch} in a fit of {learn.n_epochs} "
            f"epochs: use learn.freeze(body) if that is meant")
        kept, modules = in_eval(learn), [m for part in _parts(learn.model, self.body) for m in part.modules()]
        # By name, because FSDP2 puts others in their place.
        params = [(m, nm) for m in modules for nm, p in m.named_parameters(recurse=False) if p.requires_grad]
        freeze(learn, self.body)
        self._frozen = params, [m for m in modules if m not in set(kept)]

    def before_epoch(self, learn: Any) -> None:
        searches = getattr(learn, 'dry_run', False)
        if learn.model.training and learn.epoch >= self.until_epoch and not searches: self._thaw(learn)
        for m in self._frozen[1]: m.training = False  # your own Learner may not keep it

    def cleanup_fit(self, learn: Any) -> None: self._thaw(learn)

    def _thaw(self, learn: Any) -> None:
        "Let what was frozen train again. What did not train before stays as it was."
        (params, modules), self._frozen = self._frozen, ((), ())
        reshard(learn.model)
        for m, nm in params: getattr(m, nm).requires_grad_(True)
        for m in modules: m.training = learn.model.training
        learn.kept_in_eval = [m for m in learn.kept_in_eval or () if m not in set(modules)]
