"Where the time of an epoch goes: data, copying, the phases of a batch, callbacks; as a table and a picture."
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Any

import torch

from miniai.callbacks.dry_run import patch
from miniai.callbacks.train import DeviceCB
from miniai.callbacks.wrapped import WrappedLoader
from miniai.diagnosis.activations import HooksCallback
from miniai.diagnosis.stopwatch import REST, Stopwatch
from miniai.distributed.callback import DistributedCB
from miniai.distributed.ranks import is_first
from miniai.events import PHASES, Callback

__all__ = ['ProfileCB']

DATA, COPYING, NOT_TIMED = 'waiting for data', 'copying', 'not timed'
PARTS = dict(zip(PHASES, ('forward', 'loss', 'backward', 'optimizer', 'zero_grad'), strict=True))
FIRST, LAST = (DATA, COPYING, *PARTS.values()), (REST, NOT_TIMED)


def _seconds() -> defaultdict[str, float]: return defaultdict(float)


@dataclass
class _Times:
    "Seconds by part, of the epochs of one phase: in timed batches, in the others (not by part), and around batches."
    timed: defaultdict[str, float] = field(default_factory=_seconds)
    untimed: defaultdict[str, float] = field(default_factory=_seconds)
    around: defaultdict[str, float] = field(default_factory=_seconds)
    batches: int = 0

    @property
    def seconds(self) -> float: return sum(sum(d.values()) for d in (self.timed, self.untimed, self.around))

    def rows(self, phase: str) -> list[dict[str, Any]]:
        """A row per part. They sum to the total: untimed batches are assumed to be like timed ones. Order: the
        parts of a batch, then callbacks from slow to fast, then the rest."""
        timed, untimed = sum(self.timed.values()), sum(self.untimed.values())
        parts, scale = defaultdict(float, self.around), 1 + untimed/timed if timed else 1
        for part, s in self.timed.items(): parts[part] += s*scale
        if not timed and untimed: parts[NOT_TIMED] += untimed
        def place(part: str) -> tuple[float, float]:
            if part in FIRST: return FIRST.index(part), 0
            return len(FIRST) + (LAST.index(part) + 1 if part in LAST else 0), -parts[part]
        whole, n = self.seconds, max(self.batches, 1)
        return [dict(phase=phase, part=part, seconds=parts[part], ms_per_batch=1000*parts[part]/n,
                     share=parts[part]/whole if whole else 0.) for part in sorted(parts, key=place)]

    def heading(self, phase: str) -> str: return f'{phase}: {self.batches} batches, {self.seconds:.1f} s'


class ProfileCB(Callback):
    """Where the time of training and validation goes: waiting for data, copying (DeviceCB), forward, loss, backward,
    optimizer, zero_grad, every other callback by class name, and the loop itself. The parts sum to the wall time of the
    epochs. `rows`, `table()` and `plot()` show them; the table is printed after a fit that trained, unless `quiet`.

    Hooks on modules count for the callback that set them, hooks on tensors for the backward they run in. Every
    `every`-th batch is timed, from the second on; 1 times all, at about 10 µs each. On an accelerator timing has to
    wait for the device, so the default there is 10."""
    only_shows = True
    order = float('inf')  # so that it times the loader as all other callbacks leave it

    def __init__(self, every: int | None = None, quiet: bool = False) -> None:
        if every is not None and every < 1: raise ValueError(f"every must be 1 or more, got {every}")
        self.every, self.quiet = every, quiet
        self._watch, self._phases, self._times, self._undo = Stopwatch(), {}, None, ExitStack()

    def _log(self, text: str) -> None:
        if is_first(): print(text)

    def before_fit(self, learn: Any) -> None:
        if sum(isinstance(cb, ProfileCB) for cb in learn.cbs) > 1: raise ValueError("two ProfileCBs in cbs: keep one")
        self._phases, self._times, self._undo = {}, None, ExitStack()
        patch(self._undo, learn, 'one_epoch', partial(self._epoch, learn, learn.one_epoch))

    def after_fit(self, learn: Any) -> None:
        if getattr(learn, 'trains', True) and self._phases and not self.quiet: self._log(self.table())

    def cleanup_fit(self, learn: Any) -> None: self._undo.close()

    def wrap_listener(self, cb: Any, event: str, method: Callable) -> Callable:
        "The method with a timer around it. A phase stays as it is: the Learner's method that calls it is timed."
        if event in PHASES or cb is self: return method
        return self._watch.timed(method, COPYING if isinstance(cb, DeviceCB | DistributedCB) else type(cb).__name__)

    def _epoch(self, learn: Any, one_epoch: Callable, training: bool) -> None:
        "`one_epoch`, timed; untimed if this callback has been removed, or within an epoch that is timed already."
        if not any(cb is self for cb in learn.cbs): self._undo.close()
        elif self._times is None: return self._timed_epoch(learn, one_epoch, training)
        with self._watch.paused(): one_epoch(training)

    def _timed_epoch(self, learn: Any, one_epoch: Callable, training: bool) -> None:
        self._times = self._phases.setdefault('train' if training else 'valid', _Times())
        device = _device_of(learn.model)
        on_cpu = device.type == 'cpu'
        self._every = self.every or (1 if on_cpu else 10)
        timed = self._watch.timed
        with ExitStack() as undo:
            for phase, part in PARTS.items(): patch(undo, learn, phase, timed(getattr(learn, phase), part))
            for cb in learn.cbs:
                if isinstance(cb, HooksCallback): patch(undo, cb, 'hookfunc', timed(cb.hookfunc, type(cb).__name__))
            undo.callback(self._stop)
            self._watch.start(self._times.around, perf_counter if on_cpu else partial(_time_when_done, device))
            one_epoch(training)

    def _stop(self) -> None:
        self._watch.stop()
        self._times = None

    def before_epoch(self, learn: Any) -> None:
        if self._watch.on: learn.dl = _TimedLoader(learn.dl, self._batches)

    def _batches(self, dl: Iterable) -> Iterator:
        "The batches of `dl`. Getting one is timed as waiting for data; the rest of the batch only if it is due."
        times, timed = self._times, self._watch.timed
        take = timed(timed(lambda: iter(dl), DATA)().__next__, DATA)
        try:
            while True:
                if times.batches % self._every == 1 % self._every: self._watch.turn_to(times.timed)
                else: self._watch.turn_to(times.untimed, in_parts=False)
                try: batch = take()
                except StopIteration: break
                times.batches += 1
                yield batch
        finally:  # a cancelled epoch closes this too
            if self._times is times: self._watch.turn_to(times.around)

    @property
    def rows(self) -> list[dict[str, Any]]:
        "A dict per phase and part: `phase`, `part`, `seconds`, `ms_per_batch`, `share` of the phase's time (0 to 1)."
        return [row for phase, times in self._phases.items() for row in times.rows(phase)]

    def table(self) -> str:
        "The rows as text, a block per phase. ValueError if nothing was profiled yet."
        return '\n\n'.join('\n'.join([times.heading(phase), *_lines(times.rows(phase))])
                           for phase, times in self._profiled())

    def plot(self, fig: Any = None) -> Any:
        """Draw the milliseconds per batch of each part, a panel per phase, on `fig`, by default a new one of pyplot's;
        return the axes. ValueError if nothing was profiled yet."""
        profiled = self._profiled()
        if fig is None:
            import matplotlib.pyplot as plt
            fig = plt.figure(figsize=(6*len(profiled), 4.5), layout='constrained')
        axs = fig.subplots(1, len(profiled), sharey=True, squeeze=False)[0]
        for (phase, times), ax in zip(profiled, axs, strict=True): _draw(ax, times.heading(phase), times.rows(phase))
        axs[0].invert_yaxis()
        return axs

    def _profiled(self) -> list[tuple[str, _Times]]:
        if self._phases: return list(self._phases.items())
        raise ValueError("nothing profiled yet: train with this callback first, learn.fit(1, cbs=...)")


class _TimedLoader(WrappedLoader):
    def __init__(self, dl: Iterable, batches: Callable[[Iterable], Iterator]) -> None:
        super().__init__(dl)
        self.batches = batches

    def __iter__(self) -> Iterator: return self.batches(self.dl)


def _device_of(model: Any) -> torch.device: return next((p.device for p in model.parameters()), torch.device('cpu'))


def _time_when_done(device: torch.device) -> float:
    "The time when an accelerator has finished all its work."
    torch.accelerator.synchronize(device)
    return perf_counter()


def _lines(rows: list[dict[str, Any]]) -> list[str]:
    cells = [(r['part'], f"{r['seconds']:.3f}", f"{r['ms_per_batch']:.3f}", f"{r['share']:.1%}") for r in rows]
    table = [('part', 'seconds', 'ms/batch', 'share'), *cells]
    first, *others = (max(map(len, column)) for column in zip(*table, strict=True))
    return ['  '.join([f'{c[0]:<{first}}', *(f'{x:>{w}}' for x, w in zip(c[1:], others, strict=True))]) for c in table]


def _draw(ax: Any, title: str, rows: list[dict[str, Any]]) -> None:
    ms = [r['ms_per_batch'] for r in rows]
    bars = ax.barh([r['part'] for r in rows], ms)
    ax.bar_label(bars, [f"{r['ms_per_batch']:.2f} ms, {r['share']:.1%}" for r in rows], padding=4)
    ax.set(title=title, xlabel='ms per batch', xlim=(0, 1.4*max(ms)))
    ax.spines[['top', 'right']].set_visible(False)
