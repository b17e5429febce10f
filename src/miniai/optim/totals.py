"Hyperparameters that a rule changes itself, from sums over all elements of all parameters."
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from miniai.distributed.dtensor import groups_of, local, placed_as, placement, total
from miniai.kernels.batched import wide
from miniai.optim.slot import Slot
from miniai.optim.spec import by_names
from miniai.optim.stages import prepared

__all__ = ['renewed']


@torch.no_grad()
def renewed(opt: Any, plan: Any, hypers: list[dict[str, float]]) -> dict[int, dict[str, float]]:
    "For each group whose rule has `totals`, the new values of hyperparameters."
    found = {}
    for rule in dict.fromkeys(map(opt.rule_of, opt.param_groups)):
        if rule.spec.totals is None: continue
        update, functions = rule.spec.totals
        parts = [([0.]*len(functions), groups) for groups in plan.groups]  # all processes know of all groups
        parts += _parts([t for t in plan.tables if t.slots[0].rule is rule], plan, hypers)
        parts += [(_sums(s, functions.values(), hypers[s.group]), groups_of(placement(s.p)) or plan.shared)
                  for s in plan.eager if s.rule is rule]
        sums = [total((xs[k], groups) for xs, groups in parts) for k in range(len(functions))]
        groups = [i for i, g in enumerate(opt.param_groups) if opt.rule_of(g) is rule]
        found |= dict.fromkeys(groups, by_names(update, hypers[groups[0]] | dict(zip(functions, sums, strict=True))))
    return found


def _parts(tables: Iterable[Any], plan: Any, hypers: list[dict[str, float]]) -> Iterator[tuple[list[float], tuple]]:
    "Sums of what tables have here, with the processes that have the rest."
    for t in tables:
        trace, groups = t.program.totals, t.groups or plan.shared
        if trace: yield t.sums(trace, hypers, {}).sum(0).tolist(), groups
        else: yield from ((_sums(s, t.program.spec.totals[1].values(), hypers[s.group]), groups) for s in t.slots)


def _sums(s: Slot, functions: Iterable[Callable], hypers: dict[str, float]) -> list[float]:
    "Each function summed over the elements of a parameter that are here."
    p, *states = (local(wide(x.detach())) for x in s.tensors)
    g = local(placed_as(wide(s.p.grad), placement(s.p)))
    p, g = prepared(s.program.spec, s.program.stages, p, g, hypers)
    values = hypers | dict(zip(s.program.states, states, strict=True)) | dict(p=p, g=g)
    found = (torch.as_tensor(by_names(f, values), device=p.device) for f in functions)  # numbers, if of hyperparameters
    return torch.stack([x.expand(p.shape).sum() for x in found]).tolist()
