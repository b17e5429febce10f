"Where the time of an epoch goes: data, copying, phases, callbacks, as a table and a picture. Knows the loop's seams."
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch

from miniai.callbacks.dry_run import patch
from miniai.callbacks.progress import ProgressBar
from miniai.callbacks.train import DeviceCB
from miniai.diagnosis.activations import HooksCallback
from miniai.diagnosis.stopwatch import REST, Stopwatch
from miniai.events import PHASES, Callback

__all__ = ['ProfileCB']

DATA, COPYING, NOT_LOOKED_AT = 'waiting for data', 'copying', 'not looked at'
PARTS = dict(zip(PHASES, ('forward', 'loss', 'backward', 'optimizer', 'zero_grad'), strict=True))
FIRST, LAST = (DATA, COPYING, *PARTS.values()), (REST, NOT_LOOKED_AT)


def _seconds() -> defaultdict[str, float]: return defaultdict(float)


@dataclass
class _Phase:
    "Seconds by part of one phase's epochs: in the batches looked at, in the others (not by part), and around them all."
    inside: defaultdict[str, float] = field(default_factory=_seconds)
    skipped: defaultdict[str, float] = field(default_factory=_seconds)
    around: defaultdict[str, float] = field(default_factory=_seconds)
    batches: int = 0

    def parts(self) -> dict[str, float]:
        "Seconds by part, which sum to the whole: batches that were not looked at are taken to be like the others."
        seen, unseen = sum(self.inside.values()), sum(self.skipped.values())
        parts, scale = defaultdict(float, self.around), 1 + unseen/seen if seen else 1
        for part, s in self.inside.items(): parts[part] += s*scale
        if not seen and unseen: parts[NOT_LOOKED_AT] += unseen
        return {part: parts[part] for part in sorted(parts, key=lambda part: _place(part, parts[part]))}


    def rows(self, name: str) -> list[dict[str, Any]]:
        whole, n = self.seconds, max(self.batches, 1)
        return [dict(phase=name, part=part, seconds=s, ms_per_batch=1000*s/n, share=s/whole if whole else 0.)
                for part, s in self.parts().items()]

    def heading(self, name: str) -> str: return f'{name}: {self.batches} batches, {self.seconds:.1f} s'

    @property
    def seconds(self) -> float: return sum(sum(d.values()) for d in (self.inside, self.skipped, self.around))


def _place(part: str, seconds: float) -> tuple[float, float]:
    "Parts stand in the order of a batch, then callbacks by their time, then the rest."
    if part in FIRST: return FIRST.index(part), 0
    return len(FIRST) + (LAST.index(part) + 1 if part in LAST else 0), -seconds


class ProfileCB(Callback):
    """Where the time of training and of validation goes: waiting for data, copying (DeviceCB), forward, loss, backward,
    optimizer, zero_grad, every other callback by the name of its class, and the loop itself. The parts sum to the wall
    time of the epochs. What a callback does in hooks on modules counts as the callback's; what it does in hooks on
    tensors, such as ActivationStats with gradients, as the backward in which these run; what else it puts around the
    loader, but for ProgressCB's bar, as waiting for data.

    `rows`, `table()` and `plot()` have it; the table is also printed at the end of a fit that trained, unless `quiet`.
    `every` k-th batch is looked at, from the second on, and the others are taken to be like it: 1 is every batch, which
    costs about 10 µs each. An accelerator works while Python goes on, so it is waited for after each part of a batch
    that is looked at; there `every` is 10 unless given, so that the others are not held up."""
    order = float('-inf')

    def __init__(self, every: int | None = None, quiet: bool = False) -> None:
        if every is not None and every < 1: raise ValueError(f"every must be 1 or more, got {every}")
        self.every, self.quiet = every, quiet
        self._watch, self._phases, self._phase, self._undo = Stopwatch(), {}, None, ExitStack()

    def _log(self, text: str) -> None: print(text)

    def before_fit(self, learn: Any) -> None:
        if sum(isinstance(cb, ProfileCB) for cb in learn.cbs) > 1: raise ValueError("two ProfileCBs in cbs: keep one")
        self._phases, self._phase, self._undo = {}, None, ExitStack()
        patch(self._undo, learn, 'one_epoch', partial(self._epoch, learn, learn.one_epoch))

    def after_fit(self, learn: Any) -> None:
        if learn.trains and self._phases and not self.quiet: self._log(self.table())

    def cleanup_fit(self, learn: Any) -> None: self._undo.close()

    def wrap_listener(self, cb: Any, event: str, method: Callable) -> Callable:
        "The method with a timer around it; a phase stays as it is, as the Learner's phase around it is timed."
        if event in PHASES or cb is self: return method
        return self._watch.timed(method, COPYING if isinstance(cb, DeviceCB) else type(cb).__name__)

    def _epoch(self, learn: Any, one_epoch: Callable, training: bool) -> None:
        if not any(cb is self for cb in learn.cbs): self._undo.close()
        elif self._phase is None: return self._timed_epoch(learn, one_epoch, training)
        with self._watch.paused(): one_epoch(training)

    def _timed_epoch(self, learn: Any, one_epoch: Callable, training: bool) -> None:
        self._phase = self._phases.setdefault('train' if training else 'eval', _Phase())
        with ExitStack() as undo:
            self._put_timers(learn, undo)
            self._every, now = self._how_to_look(learn.model)
            undo.callback(self._end)
            self._watch.start(self._phase.around, now)
            one_epoch(training)

    def _end(self) -> None:
        self._watch.stop()
        self._phase = None

    def _put_timers(self, learn: Any, undo: ExitStack) -> None:
        timed = self._watch.timed
        for phase, part in PARTS.items(): patch(undo, learn, phase, timed(getattr(learn, phase), part))
        for cb in learn.cbs:
            if isinstance(cb, HooksCallback): patch(undo, cb, 'hookfunc', timed(cb.hookfunc, type(cb).__name__))
        patch(undo, learn, '_batches', partial(self._batches, learn, learn._batches, undo))

    def _how_to_look(self, model: Any) -> tuple[int, Callable[[], float]]:
        "At every how many batches, and on what clock."
        device = _device_of(model)
        if device.type == 'cpu': return self.every or 1, perf_counter
        return self.every or 10, partial(_time_when_done, device)

    def _batches(self, learn: Any, batches: Callable, undo: ExitStack) -> Iterator:
        if not self._watch.on: return batches()
        if not isinstance(learn.dl, ProgressBar): return self._looked_at(batches, DATA)
        patch(undo, learn.dl, 'dl', _TimedLoader(learn.dl.dl, self._watch))
        owner = next((cb for cb in learn.cbs if getattr(cb, 'bar', None) is learn.dl), learn.dl)
        return self._looked_at(batches, type(owner).__name__)

    def _looked_at(self, batches: Callable, part: str) -> Iterator:
        phase, take = self._phase, _taking(batches, part, self._watch)
        try:
            while True:
                self._turn(phase)
                try: batch = take()
                except StopIteration: break
                phase.batches += 1
                yield batch
        finally:  # a cancelled epoch closes this too
            if self._phase is phase: self._watch.turn_to(phase.around)

    def _turn(self, phase: _Phase) -> None:
        "A batch begins: is it one to look at?"
        if phase.batches % self._every == 1 % self._every: self._watch.turn_to(phase.inside)
        else: self._watch.turn_to(phase.skipped, in_parts=False)

    @property
    def rows(self) -> list[dict[str, Any]]:
        "A dict a phase and part: `phase`, `part`, `seconds`, `ms_per_batch`, and `share` of the phase's time, 0 to 1."
        return [row for nm, phase in self._phases.items() for row in phase.rows(nm)]

    def table(self) -> str:
        "The rows as text, a block a phase. ValueError where nothing was profiled yet."
        return '\n\n'.join('\n'.join([phase.heading(nm), *_lines(phase.rows(nm))]) for nm, phase in self._profiled())

    def plot(self, fig: Any = None) -> Any:
        """Draw the milliseconds a batch of each part, a panel a phase, on `fig`, by default a new one of pyplot's;
        return the axes. ValueError where nothing was profiled yet."""
        phases = self._profiled()
        axs = (fig or _new_figure(len(phases))).subplots(1, len(phases), sharey=True, squeeze=False)[0]
        for (nm, phase), ax in zip(phases, axs, strict=True): _draw(ax, phase.heading(nm), phase.rows(nm))
        axs[0].invert_yaxis()
        return axs

    def _profiled(self) -> list[tuple[str, _Phase]]:
        if self._phases: return list(self._phases.items())
        raise ValueError("nothing profiled yet: train with this callback first, learn.fit(1, cbs=...)")


def _device_of(model: Any) -> torch.device: return next((p.device for p in model.parameters()), torch.device('cpu'))


def _time_when_done(device: torch.device) -> float:
    "The time at which an accelerator has done all that it was given."
    torch.accelerator.synchronize(device)
    return perf_counter()


def _taking(batches: Callable[[], Iterable], part: str, watch: Stopwatch) -> Callable[[], Any]:
    "A function that gives the next of what `batches()` gives, or raises StopIteration; its time is put down to `part`."
    return watch.timed(watch.timed(lambda: iter(batches()), part)().__next__, part)


class _TimedLoader:
    "What a progress bar is put around: waiting for its batches is waiting for data."
    def __init__(self, dl: Iterable, watch: Stopwatch) -> None: self.dl, self.watch = dl, watch
    def __len__(self) -> int: return len(self.dl)
    def __iter__(self) -> Iterator:
        self._take = _taking(lambda: self.dl, DATA, self.watch)
        return self

    def __next__(self) -> Any: return self._take()


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    cells = [(r['part'], f"{r['seconds']:.3f}", f"{r['ms_per_batch']:.3f}", f"{r['share']:.1%}") for r in rows]
    table = [('part', 'seconds', 'ms/batch', 'share'), *cells]
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    return ['  '.join([f'{c[0]:<{first}}', *(f'{x:>{w}}' for x, w in zip(c[1:], others, strict=True))]) for c in table]


def _new_figure(panels: int) -> Any:
    import matplotlib.pyplot as plt
    return plt.figure(figsize=(6*panels, 4.5), layout='constrained')


def _draw(ax: Any, title: str, rows: list[dict[str, Any]]) -> None:
    ms = [r['ms_per_batch'] for r in rows]
    bars = ax.barh([r['part'] for r in rows], ms)
    ax.bar_label(bars, [f"{r['ms_per_batch']:.2f} ms, {r['share']:.1%}" for r in rows], padding=4)
    ax.set(title=title, xlabel='ms a batch', xlim=(0, 1.4*max(ms)))
    ax.spines[['top', 'right']].set_visible(False)
