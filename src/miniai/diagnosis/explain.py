"One batch explained: every event in order, which callback acted, what it changed, and how long it took."
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from itertools import groupby
from time import perf_counter
from typing import Any

import torch

from miniai.callbacks.dry_run import dry_run, patch
from miniai.diagnosis.few_batches import FewBatchesCB, check_repeatable
from miniai.diagnosis.moment import Moment, change_text, changes
from miniai.events import EVENTS, PHASES, Callback, as_list

__all__ = ['Explanation', 'explain']

LOOP = 'the loop'
_PHASE_BEFORE = dict(after_predict='predict', after_loss='get_loss', after_backward='backward', after_step='step')


@dataclass
class Explanation:
    """What happened in a batch, in order. `rows` holds a plain dict for each callback that heard an event, each phase
    that ran, and each change that the loop made in between: `event`, `callback` (a class name; None for an event that
    nothing heard), `given` (False for the callbacks that every fit adds), `ms`, `changes`, a list of dicts with `name`,
    `before` and `after`, and `raised`, the name of an exception or None. str() leaves out callbacks that every fit adds
    if they changed nothing."""
    rows: list[dict[str, Any]]

    def __str__(self) -> str:
        rows = [r for _, group in groupby(self.rows, lambda r: r['event']) for r in _shown([*group])]
        table = [('event', 'by', 'ms', 'what changed')]
        for r in rows:
            lines = [change_text(c) for c in r['changes']] + [f"raised {r['raised']}"]*bool(r['raised'])
            took = '' if r['ms'] is None else f"{r['ms']:.2f}"
            table.append((r['event'], r['callback'] or '-', took, (lines or [''])[0]))
            table += [('', '', '', line) for line in lines[1:]]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        return '\n'.join(f'{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d}'.rstrip() for a, b, c, d in table)

    __repr__ = __str__


def _shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    "The rows of one event without those that say nothing; one without a name if that would be all."
    shown = [r for r in rows if r['given'] or r['changes'] or r['raised']]
    return shown if any(r['callback'] != LOOP for r in shown) else [*shown, _row(rows[0]['event'], None, True)]


def explain(self: Any, train: bool = True, valid: bool = False, cbs: Any = None,
            lr: float | None = None) -> Explanation:
    """Run one training batch, with `valid` a validation batch too, and tell what happened: every event in order, which
    callback acted, what it changed in the Learner, the batch, the weights and the gradients, and how long it took.
    `cbs` and `lr` are those of a fit. Afterwards everything is as it was. ValueError for a loader that can be used only
    once."""
    check_repeatable(self, 'explain')
    explaining = _ExplainCB(self, as_list(cbs))
    with dry_run(self, trains=True):
        self.fit(1, train=train, valid=valid, cbs=[FewBatchesCB(1, 1), *as_list(cbs), explaining], lr=lr)
    return Explanation(explaining.rows)


class _ExplainCB(Callback):
    "Records what each listener and each phase changes. It hears every event last, to note those that nothing heard."
    order, only_shows = math.inf, True

    def __init__(self, learn: Any, cbs: list) -> None:
        self.learn, self.given, self.rows = learn, [*learn.cbs, *cbs], []
        self._moment, self._undo, self._replaced = Moment(learn), ExitStack(), {}
        for event in EVENTS: setattr(self, event, self._noting(event))

    def _noting(self, event: str) -> Callable:
        def note(learn: Any) -> None:
            if event == 'before_fit': self._watch_phases()
            if event == 'cleanup_fit': self._undo.close()
            self._catch_up(event)
            if not any(callable(getattr(cb, event, None)) for cb in learn.cbs if not isinstance(cb, _ExplainCB)):
                self.rows.append(_row(event, None, True))
        return note

    def wrap_listener(self, cb: Any, event: str, method: Callable) -> Callable:
        "The method with a record of what it changes."
        if cb is self or isinstance(cb, FewBatchesCB): return method
        given = any(cb is o for o in self.given)
        return self._recording(method, event, type(cb).__name__, given)

    def _watch_phases(self) -> None:
        for phase in PHASES:
            method = getattr(self.learn, phase)
            patch(self._undo, self.learn, phase, self._recording(method, phase, self._owner(method), True))
        self._watched = {phase: vars(self.learn)[phase] for phase in PHASES}

    def _owner(self, method: Callable) -> str:
        "The class that a method is in, also of a function within a method, or that of the Learner."
        path = getattr(method, '__qualname__', '').split('.')[:-1]
        while path and path[-1] == '<locals>': path = path[:-2]
        return path[-1] if path else type(self.learn).__name__

    def _recording(self, f: Callable, event: str, name: str, given: bool) -> Callable:
        @wraps(f)
        def recorded(*args: Any) -> Any:
            self._catch_up(event)
            n, started, raised = len(self.rows), self._now(), None
            try: return f(*args)
            except BaseException as e:
                raised = type(e).__name__
                raise
            finally:
                took, found = 1000*(self._now() - started), self._changes()
                if found or len(self.rows) == n or (raised and not self.rows[-1]['raised']):
                    self.rows.append(_row(event, name, given, took, found, raised))
                self._note_replaced(name)
        return recorded

    def _note_replaced(self, name: str) -> None:
        "Remember who has put a phase of its own instead of the Learner's, as MixUpCB does."
        for phase, method in getattr(self, '_watched', {}).items():
            if vars(self.learn).get(phase, method) is not method: self._replaced.setdefault(phase, name)

    def _catch_up(self, event: str) -> None:
        "Record what changed since the last row: by a phase that a callback has replaced, or by the loop itself."
        found, phase = self._changes(), event if event in PHASES else _PHASE_BEFORE.get(event)
        if not found: return
        name = self._replaced.get(phase)
        self.rows.append(_row(phase if name else event, name or LOOP, True, None, found))

    def _now(self) -> float:
        "The time, when an accelerator has finished its work."
        if any(not p.is_cpu for p in self.learn.model.parameters()): torch.accelerator.synchronize()
        return perf_counter()

    def _changes(self) -> list[dict[str, Any]]:
        before, self._moment = self._moment, Moment(self.learn)
        return changes(before, self._moment)


def _row(event: str, name: str | None, given: bool, ms: float | None = None, found: list | None = None,
         raised: str | None = None) -> dict[str, Any]:
    return dict(event=event, callback=name, given=given, ms=ms, changes=found or [], raised=raised)
