"What an optimizer trains: the parameters of the model, and those of a loss that is a module."
import warnings
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from miniai.distributed.dtensor import reshard
from miniai.optim.matrices import ModelParameters

__all__ = ['loss_modules', 'buffers_of', 'trained_parameters', 'can_train', 'new_optimizer', 'check_trained']


def loss_modules(learn: Any) -> dict[str, nn.Module]:
    "The losses that are modules, by name: the Learner's own, and those of callbacks such as TrainLossCB."
    losses = dict(loss_func=getattr(learn, 'loss_func', None))
    losses |= {f'{type(cb).__name__}.loss_func': getattr(cb, 'loss_func', None) for cb in learn.cbs}
    found = {nm: _owner(f) for nm, f in losses.items()}
    return {nm: m for nm, m in found.items() if isinstance(m, nn.Module) and m is not learn.model}


def _owner(f: Any) -> Any:
    "The module in a partial or behind a method."
    while isinstance(f, partial): f = f.func
    return getattr(f, '__self__', f)


def buffers_of(learn: Any) -> dict[str, Tensor]:
    "The buffers of the model, then those of its losses, by name. Lazy ones have no values yet."
    named = dict(learn.model.named_buffers())
    named |= {f'{nm}.{of}': b for nm, m in loss_modules(learn).items() for of, b in m.named_buffers()}
    return {nm: b for nm, b in named.items() if not is_lazy(b)}


def loss_parameters(learn: Any) -> dict[str, nn.Parameter]:
    "The parameters of losses that require a gradient and are not the model's, by name."
    own = set(learn.model.parameters())
    named = {p: f'{nm}.{of}' for nm, m in loss_modules(learn).items() for of, p in m.named_parameters()}
    return {nm: p for p, nm in named.items() if p.requires_grad and p not in own}


def trained_parameters(learn: Any) -> ModelParameters:
    "The parameters of the model, then those of its losses that require a gradient."
    return ModelParameters(learn.model, loss_parameters(learn).values())


def can_train(learn: Any) -> bool:
    "Does any parameter require a gradient?"
    return any(p.requires_grad for p in trained_parameters(learn))


def new_optimizer(learn: Any, lr: float) -> Any:
    "What `opt_func` makes for this fit. ValueError if it finds nothing to train."
    reshard(learn.model)
    try: return learn.opt_func(trained_parameters(learn), lr)
    except ValueError as e:
        if can_train(learn) or not any(True for _ in trained_parameters(learn)): raise
        raise _nothing_to_train() from e


def check_trained(learn: Any) -> None:
    "ValueError if the optimizer has nothing to train; a warning for parameters of a loss that no optimizer has."
    optimizers = [o for o in vars(learn).values() if hasattr(o, 'param_groups')]
    if learn.opt not in optimizers: return
    stepped = {p for opt in optimizers for g in opt.param_groups for p in g['params']}
    if not any(p.requires_grad for g in learn.opt.param_groups for p in g['params']): raise _nothing_to_train()
    lost = [nm for nm, p in loss_parameters(learn).items() if p not in stepped]
    if lost: warnings.warn(
        f"the optimizer does not have these parameters of the loss, so they will not train: {', '.join(lost)}. Let "
        f"opt_func(params, lr) use `params`, which holds them, or freeze them with requires_grad_(False)", stacklevel=2)


def _nothing_to_train() -> ValueError:
    return ValueError("nothing to train: no parameter of the optimizer requires a gradient. Thaw some of them, such as "
                      "with learn.unfreeze(), or call fit with train=False")
