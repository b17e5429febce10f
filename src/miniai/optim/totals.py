"Hyperparameters that a rule changes itself, from sums over all elements of all parameters."
from collections.abc import Callable, Iterable
from typing import Any

import torch

from miniai.distributed.dtensor import groups_of, local, placed_as, placement, total
from miniai.kernels.batched import wide
from miniai.optim.slot import Slot
from miniai.optim.spec import by_names
from miniai.optim.stages import prepared

__all__ = ['renewed']


@torch.no_grad()
def renewed(opt: Any, slots: Iterable[Slot], hypers: list[dict[str, float]], shared: tuple,
            everywhere: Iterable[tuple]) -> dict[int, dict[str, float]]:
    """For each group whose rule has `totals`, the new values of hyperparameters. `shared` are the processes that share
    the parameters, and `everywhere` all those that take part in sums."""
    found = {}
    for rule in dict.fromkeys(map(opt.rule_of, opt.param_groups)):
        if rule.spec.totals is None: continue
        update, functions = rule.spec.totals
        own = [s for s in slots if s.rule is rule]
        sums = [[(0., groups) for groups in everywhere] for _ in functions]
        for s in own:
            for k, x in enumerate(_sums(s, functions.values(), hypers[s.group])):
                sums[k].append((x, groups_of(placement(s.p)) or shared))
        groups = [i for i, g in enumerate(opt.param_groups) if opt.rule_of(g) is rule]
        values = hypers[groups[0]] | dict(zip(functions, map(total, sums), strict=True))
        found |= dict.fromkeys(groups, by_names(update, values))
    return found


def _sums(s: Slot, functions: Iterable[Callable], hypers: dict[str, float]) -> list[float]:
    "Each function summed over the elements of a parameter that are here."
    p, *states = (local(wide(x.detach())) for x in s.tensors)
    g = local(placed_as(wide(s.p.grad), placement(s.p)))
    p, g = prepared(s.program.spec, s.program.stages, p, g, hypers)
    values = hypers | dict(zip(s.program.states, states, strict=True)) | dict(p=p, g=g)
    return torch.stack([by_names(f, values).sum() for f in functions]).tolist()
