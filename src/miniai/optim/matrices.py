"Which parameters a rule for matrices steps, and which its companion does."
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ['ModelParameters', 'matrix_groups', 'outer_parameters', 'check_matrices']

_CONVOLUTIONS = nn.modules.conv._ConvNd
_EMBEDDINGS = nn.Embedding, nn.EmbeddingBag


class ModelParameters(Iterator):
    "The parameters of `model` and some more, one by one. Knows the model, which a rule for matrices asks for."
    def __init__(self, model: nn.Module, more: Iterable[nn.Parameter] = ()) -> None:
        self.model, self._params = model, chain(model.parameters(), more)

    def __next__(self) -> nn.Parameter: return next(self._params)


def outer_parameters(model: nn.Module) -> set[Tensor]:
    """The parameters of a model that are not hidden matrices or convolutions: embeddings, the weight of the last layer,
    and whatever has not two dimensions and is no convolution's weight."""
    hidden, outer = [], set()
    for m in model.modules():
        for nm, p in m.named_parameters(recurse=False):
            weight = p.ndim == 2 or (isinstance(m, _CONVOLUTIONS) and nm == 'weight')
            if isinstance(m, _EMBEDDINGS) or not weight: outer.add(p)
            else: hidden.append(p)
    return outer | set(hidden[-1:])


def matrix_groups(params: nn.Module | Iterable, rule: type, others: type | None = None) -> list[dict[str, Any]]:
    """Two groups of the parameters of a model: hidden matrices and convolutions, which `rule` steps, and all others,
    which `others` steps, by default the companion of `rule`: embeddings, the last layer, norms and biases. Without a
    model, all of `params` that have two or more dimensions are taken for hidden ones. Groups that name a rule stay.
    ValueError for a model whose lazy layers have no shape yet."""
    model = params if isinstance(params, nn.Module) else getattr(params, 'model', None)
    outer = outer_parameters(model) if isinstance(model, nn.Module) else ()
    given = list(ModelParameters(model) if params is model else params)
    groups = given if given and isinstance(given[0], dict) else [dict(params=given)]
    return [new for g in groups for new in ([g] if 'rule' in g else _split(g, outer, rule, others or rule.companion()))]


def _split(group: dict[str, Any], outer: Iterable, rule: type, others: type) -> list[dict[str, Any]]:
    params = [group['params']] if isinstance(group['params'], Tensor) else list(group['params'])
    hidden = [x for x in params if _fits(x[1] if isinstance(x, tuple) else x, rule, outer)]
    rest = [x for x in params if not any(x is h for h in hidden)]
    prefix = f"{group['name']}, " if 'name' in group else ''
    found = (hidden, rule, 'matrices'), (rest, others, 'others')
    return [group | dict(params=ps, rule=cls, name=prefix + nm) for ps, cls, nm in found if ps] or [group]


def _fits(p: Tensor, rule: type, outer: Iterable) -> bool:
    "Whether a parameter is a matrix or a convolution, not empty, hidden and not too large if the rule asks for it."
    if is_lazy(p): raise ValueError(f"{rule.__name__} needs to know which parameters are matrices, but those of a lazy "
                                    f"layer have no shape yet: run a batch through the model first, with model(xb)")
    if p.ndim < 2 or not p.numel() or (rule.spec.hidden and p in outer): return False
    return max(p.shape[0], p.shape[1:].numel()) <= rule.spec.longest


def check_matrices(rule: type, params: Any) -> None:
    "TypeError if a parameter of a group, which `rule` is to step, has no rows and columns."
    for x in [params] if isinstance(params, Tensor) else list(params):
        p = x[1] if isinstance(x, tuple) else x
        if p.ndim < 2: raise TypeError(
            f"{rule.__name__} steps matrices and convolutions, but a parameter of its group has the shape "
            f"{tuple(p.shape)}: use {rule.__name__}(model, …) or matrix_groups(model, {rule.__name__}), which give the "
            f"others to {rule.companion().__name__}")
