"Parameter groups: no decay for biases and norms, lower rates for earlier layers, and a table of all groups."
from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ['no_decay_groups', 'depth_groups', 'groups_table', 'rate_of']


def no_decay_groups(params: nn.Module | Iterable, wd: float) -> list[dict[str, Any]]:
    """Two groups of the parameters of a model, or of `params`: weights, which decay by `wd`; and biases, norms and all
    others with fewer than two dimensions, which don't. Or two of each of the groups that `depth_groups` made, which
    keep their rates. A model's frozen parameters are left out."""
    if isinstance(params, nn.Module): params = [p for p in params.parameters() if p.requires_grad]
    given = list(params)
    groups = given if given and isinstance(given[0], dict) else [dict(params=given)]
    return [new for g in groups for new in _split(list(g['params']), wd, g)]


def _split(params: list, wd: float, group: dict[str, Any]) -> list[dict[str, Any]]:
    prefix = f"{group['name']}, " if 'name' in group else ''
    decay, rest = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
    found = (decay, wd, f'{prefix}decay'), (rest, 0., f'{prefix}no decay')
    return [group | dict(params=ps, weight_decay=decay, name=name) for ps, decay, name in found if ps]


def depth_groups(model: nn.Module, lr: float, fall: float = 0.75) -> list[dict[str, Any]]:
    """A group for each child of `model` that has parameters to train; of a model that only wraps another one, the
    children of that. The last learns at `lr`, each one before it at `fall` times the rate of the next (Howard & Ruder
    2018)."""
    if not 0 < fall <= 1:
        raise ValueError(f"fall, the ratio of a layer's rate to the next layer's, must be in (0, 1], got {fall}")
    seen, layers = set(), []
    for nm, child in _children(model):
        ps = [p for p in child.parameters() if p.requires_grad and id(p) not in seen]
        seen |= set(map(id, ps))
        if ps: layers.append((nm, ps))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    if rest: layers.insert(0, ('own', rest))
    return [dict(params=ps, lr=lr * fall**(len(layers) - 1 - i), name=nm) for i, (nm, ps) in enumerate(layers)]


def _children(model: nn.Module, prefix: str = '') -> list[tuple[str, nn.Module]]:
    "The children with their names, and those of an only child in its place if it has any."
    children = [(f'{prefix}{nm}', m) for nm, m in model.named_children()]
    only = len(children) == 1 and list(children[0][1].children())
    return _children(children[0][1], f'{children[0][0]}.') if only else children


def groups_table(opt: Any) -> str:
    "The optimizer's groups as a table: number of tensors and elements, and every hyperparameter that is a number."
    rows = []
    for i, g in enumerate(opt.param_groups):
        sizes = [p.numel() for p in g['params']]
        row = dict(group=str(g.get('name', i)), tensors=str(len(sizes)), elements=f'{sum(sizes):,}')
        if any('rule' in other for other in opt.param_groups): row['rule'] = opt.rule_of(g).__name__
        rows.append(row | {k: _shown(v) for k, v in g.items() if k != 'params' and _is_number(v)})
    head = list(dict.fromkeys(k for r in rows for k in r))
    table = [head, *([r.get(k, '') for k in head] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return '\n'.join('  '.join(f'{c:>{w}}' for c, w in zip(r, widths, strict=True)).rstrip() for r in table)


def rate_of(group: dict[str, Any]) -> float:
    "The rate of a group: `lr`, times `d` for optimizers that find their rate, such as Prodigy."
    return float(group['lr']) * group.get('d', 1)


def _is_number(v: Any) -> bool:
    return isinstance(v, int | float) or (isinstance(v, tuple | list) and all(map(_is_number, v)))


def _shown(v: Any) -> str: return ', '.join(map(_shown, v)) if isinstance(v, tuple | list) else f'{v:g}'
