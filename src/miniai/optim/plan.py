"How an optimizer steps its parameters: in tables that one pass runs over, or one by one if none can."
import math
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch

from miniai.distributed.dtensor import groups_of, placement, summed, total
from miniai.kernels.python import host_values
from miniai.kernels.rounding import key_of
from miniai.optim.eager import eager_step, eager_sum_of_squares, eager_sums
from miniai.optim.paths import path_of
from miniai.optim.slot import Slot, slots_of, start_states
from miniai.optim.table import Table
from miniai.optim.totals import renewed
from miniai.optim.zero import zero_groups

__all__ = ['Plan', 'current_plan', 'hypers_of']


def current_plan(opt: Any) -> 'Plan':
    "The optimizer's plan, after it has read all addresses again, or a new plan if the old one no longer fits."
    if opt._plan is None or not opt._plan.refresh(opt): opt._plan = Plan(opt)
    return opt._plan


class Plan:
    "Which parameters are stepped together, in which table, and which are stepped one by one, and why."
    def __init__(self, opt: Any) -> None:
        _check_dense(opt)
        self.slots = slots = list(slots_of(opt))
        self.parts, self.rounding = _parts(opt), opt.rounding
        self.idle = [p for g in opt.param_groups for p in g['params'] if p.grad is None]
        self.places = [opt.rule_of(g).spec.places for g in opt.param_groups]
        self.eager, kinds = {}, {}
        for s in slots:
            path, why = path_of(s)
            if path is None: self.eager[s] = why
            else:
                kind = path, why, s.program, s.p.device, *(x.dtype for x in s.tensors), placement(s.p)
                kinds.setdefault(kind, []).append(s)
        self.tables = [Table(same, same[0].dither(opt.rounding), *kind[:2]) for kind, same in kinds.items()]
        self.shared, self.takes_totals = zero_groups(opt.zero), opt.takes_totals
        self.groups = dict.fromkeys([self.shared, *(groups_of(placement(s.p)) for s in slots)])
        self.unstarted = [s for s in slots if s.state['step'] == 0]
        self.changed = [p for t in self.tables for p in t.params]
        if not all(t.refresh() for t in self.tables):
            raise RuntimeError("parameters changed during a step: call an optimizer's step from one thread only")

    def refresh(self, opt: Any) -> bool:
        "Read all addresses again. False if parameters, gradients, states or groups are not those planned for."
        parts = _parts(opt)
        if len(parts) != len(self.parts) or not all(map(is_, parts, self.parts)): return False
        if any(p.grad is not None for p in self.idle): return False
        for s, why in self.eager.items():
            if s.p.grad is None or s.p.grad.layout is not torch.strided or path_of(s) != (None, why): return False
        return all(t.refresh() for t in self.tables)

    def step(self, opt: Any) -> None:
        """Step every parameter once. Everything that can fail, but for rules that have no trace, runs before any
        parameter or step count changes."""
        scale = self._gradient_scale(opt)
        if scale is None:
            opt.skipped += 1
            return
        common = dict(g_scale=scale, clip_value=opt.clip_value, ema_decay=opt.ema, tail_start=opt.tail)
        hypers = [hypers_of(g, places) | common for g, places in zip(opt.param_groups, self.places, strict=True)]
        for s in self.unstarted: start_states(s, hypers[s.group])
        changes = renewed(opt, self, hypers) if self.takes_totals else {}
        for t in self.tables: t.fill(hypers, opt.seed)
        numbers = self._eager_numbers(hypers, opt.seed) if self.eager else []
        for t in self.tables: t.launch()
        for s, given in zip(self.eager, numbers, strict=True): self._step_eagerly(s, given, opt.seed)
        for i, new in changes.items(): opt.param_groups[i].update(new)
        torch.autograd.graph.increment_version(self.changed)
        self.unstarted = []

    def _gradient_scale(self, opt: Any) -> float | None:
        "The factor that clips all gradients; None if the step must be skipped."
        if opt.clip_norm is None and not opt.skip_nonfinite: return 1.
        norm = math.sqrt(self.sum_of_squares())
        if opt.skip_nonfinite and not math.isfinite(norm): return None
        return 1. if opt.clip_norm is None else min(opt.clip_norm/(norm + 1e-6), 1.)

    def sum_of_squares(self) -> float:
        """The sum of squares of all gradients on all processes, in double precision; NaN or infinite if one of them
        is."""
        here = [(0., groups) for groups in self.groups]
        here += [(t.sum_of_squares(), t.groups or self.shared) for t in self.tables]
        here += [(eager_sum_of_squares(s.p), groups_of(placement(s.p)) or self.shared) for s in self.eager]
        return total(here)

    @torch.no_grad()
    def _eager_numbers(self, hypers: list[dict[str, float]], seed: int) -> list[dict[str, float]]:
        "For each parameter of the eager path, all numbers that it needs."
        given = []
        for s in self.eager:
            scalars = {nm: s.state[k] for nm, k in zip(s.program.scalars, s.number_keys, strict=True)}
            t = s.state['step'] + 1
            key = dict(key=key_of(seed, t, s.place)) if 'key' in s.program.spec.supplied else {}
            given.append(hypers[s.group] | dict(t=t) | scalars | key)
        for k in range(max((len(s.program.passes) for s in self.eager), default=0)): self._add_sums(k, given)
        for s, numbers in zip(self.eager, given, strict=True):
            if s.program.trace: host_values(s.program.trace, numbers)  # fails here, if at all
        return given

    def _add_sums(self, k: int, given: list[dict[str, float]]) -> None:
        "Add to the numbers of parameters of the eager path the sums that the `k`-th pass before their step finds."
        slots = {}
        for s, numbers in zip(self.eager, given, strict=True):
            if len(s.program.passes) > k: slots.setdefault(groups_of(placement(s.p)), []).append((s, numbers))
        for groups, pairs in slots.items():
            here = [eager_sums(s.program.passes[k], s.tensors, s.p.grad, numbers) for s, numbers in pairs]
            sums = iter(summed(list(chain.from_iterable(here)), groups))
            for s, numbers in pairs:
                numbers |= {nm: np.float64(next(sums)) for nm in s.program.passes[k].sums.values()}

    @torch.no_grad()
    def _step_eagerly(self, s: Slot, given: dict[str, float], seed: int) -> None:
        key = key_of(seed, given['t'], s.place)
        new = eager_step(s.program, s.tensors, s.p.grad, given, s.dither(self.rounding), key)
        s.state.update(zip(s.number_keys, new, strict=True))
        s.state['step'] += 1

    def path(self) -> str:
        "Which path steps how many parameters, and why, line by line."
        lines = [(t.slots[0].rule, str(t)) for t in self.tables]
        for rule in dict.fromkeys(s.rule for s in self.eager):
            reasons = [why for s, why in self.eager.items() if s.rule is rule]
            lines.append((rule, f"eager: {_count(reasons)}, because {'; '.join(sorted(set(reasons)))}"))
        several = len({rule for rule, _ in lines}) > 1
        return '\n'.join(f'{rule.__name__}, {line}' if several else line for rule, line in lines) or \
            'no parameter has a gradient'


def hypers_of(group: dict[str, Any], places: list[tuple[str, str, int | None]]) -> dict[str, float]:
    """A group's hyperparameters as Python floats, or words, each from its place: (name, key of the group, index or
    None)."""
    found = ((nm, group[key] if i is None else group[key][i]) for nm, key, i in places)
    return {nm: x if isinstance(x, str) else float(x) for nm, x in found}


def _parts(opt: Any) -> list:
    "The objects that a plan is made for, in order, to be compared by identity."
    groups = chain.from_iterable((g.get('rule'), *g['params']) for g in opt.param_groups)
    return [opt.stages, opt.state, *groups, *opt.state.values()]


def _count(xs: list) -> str: return f"{len(xs)} parameter{'s'*(len(xs) != 1)}"


def _check_dense(opt: Any) -> None:
    for p in chain.from_iterable(g['params'] for g in opt.param_groups):
        if p.grad is None or p.grad.layout is torch.strided: continue
        raise TypeError(f"a parameter of shape {tuple(p.shape)} has a sparse gradient, which rules cannot use: "
                        f"create its layer with sparse=False, or give it to torch.optim.SparseAdam")
