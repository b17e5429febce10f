"""Parameter groups: no decay where it does harm, rates that fall with depth, and a table to look at. Knows modules
alone."""
from collections.abc import Iterable
from typing import Any

from torch import nn

__all__ = ['no_decay_groups', 'depth_groups', 'groups_table']


def no_decay_groups(model: nn.Module, wd: float) -> list[dict[str, Any]]:
    "Two groups: weights that decay by `wd`; and biases, norms and all else of fewer than two dimensions, which do not."
    params = [p for p in model.parameters() if p.requires_grad]
    decay, rest = [p for p in params if p.ndim > 1], [p for p in params if p.ndim < 2]
    groups = dict(params=decay, weight_decay=wd, name='decay'), dict(params=rest, weight_decay=0., name='no decay')
    return [g for g in groups if g['params']]


def depth_groups(model: nn.Module, lr: float, fall: float = 0.75) -> list[dict[str, Any]]:
    """A group for each child of `model` that has parameters: the last learns at `lr`, each before it at `fall` times
    the rate of the next (Howard & Ruder 2018)."""
    if not 0 < fall <= 1:
        raise ValueError(f"fall, the rate of a layer over the next one's, must be in (0, 1], got {fall}")
    seen, layers = set(), []
    for nm, child in model.named_children():
        ps = [p for p in child.parameters() if p.requires_grad and id(p) not in seen]
        seen |= set(map(id, ps))
        if ps: layers.append((nm, ps))
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    if rest: layers.insert(0, ('own', rest))
    return [dict(params=ps, lr=lr * fall**(len(layers) - 1 - i), name=nm) for i, (nm, ps) in enumerate(layers)]


def groups_table(opt: Any) -> str:
    "The optimizer's groups as a table: number of tensors and elements, and every hyperparameter that is a number."
    rows = [_row(i, g) for i, g in enumerate(opt.param_groups)]
    head = list(dict.fromkeys(k for r in rows for k in r))
    table = [head, *([r.get(k, '') for k in head] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return '\n'.join('  '.join(f'{c:>{w}}' for c, w in zip(r, widths, strict=True)).rstrip() for r in table)


def _row(i: int, group: dict[str, Any]) -> dict[str, str]:
    ps = group['params']
    numbers = {k: _shown(v) for k, v in group.items() if k != 'params' and _is_plain(v)}
    elements = f'{sum(p.numel() for p in ps):,}'
    return dict(group=str(group.get('name', i)), tensors=str(len(ps)), elements=elements) | numbers


def _is_plain(v: Any) -> bool:
    return isinstance(v, int | float) or (isinstance(v, tuple | list) and all(map(_is_plain, v)))


def _shown(v: Any) -> str: return ', '.join(map(_shown, v)) if isinstance(v, Iterable) else f'{v:g}'
