"A check before training: batches in both modes, learning one batch with and without its inputs, time and memory."
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from miniai.callbacks.accumulate import AccumulateCB
from miniai.callbacks.dry_run import dry_run
from miniai.callbacks.mix import CutMixCB, MixUpCB
from miniai.data.loaders import length_of
from miniai.diagnosis.few_batches import FewBatchesCB, check_repeatable
from miniai.diagnosis.memory import in_bytes, measured
from miniai.diagnosis.probe import OverfitCB, ProbeCB
from miniai.diagnosis.ranges import about_data, about_gradients, about_loss, about_outputs, data_text
from miniai.distributed.ranks import is_first
from miniai.events import as_list

__all__ = ['Check', 'CheckRow', 'check']

PROBED, VALIDATED = 6, 2
FELL, USES_INPUTS, WAITS, LEAST_WAIT = 0.5, 0.9, 0.3, 2e-3  # seconds, as in HealthCB's rule


class CheckRow(NamedTuple):
    "One thing that was checked: `ok` is True, False for what needs attention, or None for what only informs."
    name: str
    ok: bool | None
    text: str

    def __str__(self) -> str:
        return f"{'-' if self.ok is None else 'ok' if self.ok else 'attention':<9}  {self.name:<17}  {self.text}"


@dataclass
class Check:
    """What `learn.check()` found: `rows`, and the figures behind them in `values`. `ok` is whether nothing needs
    attention. str() is the table."""
    rows: list[CheckRow] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool: return all(row.ok is not False for row in self.rows)

    @property
    def attention(self) -> list[CheckRow]:
        "The rows that need attention."
        return [row for row in self.rows if row.ok is False]

    def __str__(self) -> str: return '\n'.join(map(str, self.rows))
    def __repr__(self) -> str: return f'<Check: {len(self.rows)} rows, {len(self.attention)} need attention>'

    def add(self, name: str, problem: str, text: str, judged: bool = True) -> None:
        "A row that needs attention if there is a `problem`; without being `judged` it only informs."
        self.rows.append(CheckRow(name, not problem if judged else None, f'{text}; {problem}' if problem else text))


def check(self: Any, epochs: int = 1, steps: int = 50, lr: float | None = None, cbs: Any = None) -> Check:
    """Look at what a fit of `epochs` would do, print it and return it: shapes and ranges of a few batches in training
    and validation, the loss before training, gradients, whether `steps` steps on one batch learn it by heart, whether
    they do better than with zeros for inputs, time and memory of a step, and the time of the fit. `cbs` and `lr` are
    those of the fit. For one batch schedules, MixUp, CutMix and accumulation are left out. Afterwards everything is as
    it was. ValueError for a loader that can be used only once."""
    check_repeatable(self, 'check')
    found = Check()
    probe = measured(lambda keeps: _probed(self, lr, as_list(cbs), keeps))
    _add_batches(found, self, probe)
    if math.isfinite(probe.seen['train'].get('loss', math.nan)):
        _add_overfit(found, self, probe, steps, lr, as_list(cbs))
    _add_costs(found, probe, epochs)
    if is_first(): print(found)
    return found


def _probed(learn: Any, lr: float | None, cbs: list, keeps: bool) -> ProbeCB:
    "A look at the first batches of both loaders."
    few, valid = FewBatchesCB(PROBED, VALIDATED), getattr(learn.dls, 'valid', None)
    probe = ProbeCB(few, keeps)
    with _untouched(learn):
        learn.fit(1, valid=valid is not None and length_of(valid) != 0, lr=lr, cbs=[few, *cbs, probe])
    return probe


@contextmanager
def _untouched(learn: Any) -> Iterator[None]:
    "A dry run in which a loss that is not finite is no error."
    with dry_run(learn, trains=True):
        learn.check_finite = False
        yield


def _add_batches(found: Check, learn: Any, probe: ProbeCB) -> None:
    found.values |= probe.seen
    for phase, name in (('train', 'training batch'), ('valid', 'validation batch')):
        seen = probe.seen.get(phase)
        if not seen: continue
        found.add(name, about_data(seen, probe.seen['train'] if phase == 'valid' else None), data_text(seen))
        if 'outputs' in seen: found.add('  outputs', about_outputs(seen), seen['outputs']['text'])
        if 'loss' in seen: found.add('  loss', about_loss(learn, seen, phase), f"{seen['loss']:.4g}")
    if probe.gradients:
        found.values['gradients'] = probe.gradients
        found.add('gradients', *about_gradients(probe.gradients))


def _add_overfit(found: Check, learn: Any, probe: ProbeCB, steps: int, lr: float | None, cbs: list) -> None:
    "Learn one batch by heart, then the same with zeros for inputs."
    losses = found.values['overfit'] = _losses_of_one_batch(learn, steps, lr, cbs, zeros=False)
    last = _end_of(losses)
    found.add('overfits a batch', _why_not_learned(losses), f'loss {losses[0]:.4g} → {last:.4g} in {len(losses)} steps')
    if not probe.inputs_known: return found.add(
        'uses its inputs', '', 'not checked: TrainCB(inputs=…, targets=…) says which part of a batch they are', False)
    blind = found.values['zeros'] = _losses_of_one_batch(learn, steps, lr, cbs, zeros=True)
    if not math.isfinite(_end_of(blind)) or not math.isfinite(last): return None
    problem = '' if last < USES_INPUTS*_end_of(blind) else (
        'the inputs do not help: are they in another order than the targets, or is the rate too low?')
    return found.add('uses its inputs', problem, f'loss {last:.4g}, and {_end_of(blind):.4g} with zeros for inputs')


def _losses_of_one_batch(learn: Any, steps: int, lr: float | None, cbs: list, zeros: bool) -> list[float]:
    overfit = OverfitCB(zeros)
    with _untouched(learn):
        learn.cbs = [cb for cb in learn.cbs if _stays(cb)]
        learn.fit(1, valid=False, lr=lr, cbs=[FewBatchesCB(steps, again=True), *filter(_stays, cbs), overfit])
    return overfit.losses


def _stays(cb: Any) -> bool:
    return not callable(getattr(cb, 'sched', None)) and not isinstance(cb, MixUpCB | CutMixCB | AccumulateCB)


def _end_of(losses: list[float]) -> float: return sum(losses[-5:])/len(losses[-5:])


def _why_not_learned(losses: list[float]) -> str:
    first, last = losses[0], _end_of(losses)
    if not math.isfinite(last): return f'the loss is not finite after {len(losses) - 1} steps: lower the rate'
    if last > first: return 'the loss rises: lower the rate, or look for an error in the loss'
    if last > FELL*abs(first): return (
        'it should fall to less than half: try learn.lr_find(), more `steps`, or look for an error in targets or loss')
    return ''


def _add_costs(found: Check, probe: ProbeCB, epochs: int) -> None:
    times = {phase: median(seconds) for phase, seconds in probe.seconds.items() if seconds}
    waits = {phase: median(probe.few.waits[phase][1:]) for phase in times}
    found.values |= dict(seconds=times, waits=waits, memory=probe.memory)
    if 'train' in times:
        share = waits['train']/(waits['train'] + times['train'])
        problem = f'{share:.0%} of the time goes to waiting for data: use workers, or keep the data in memory'
        found.add('time of a step', problem if share > WAITS and waits['train'] > LEAST_WAIT else '',
                  f"{1000*times['train']:.3g} ms, and {1000*waits['train']:.3g} ms to wait for its data")
    known = {nm: n for nm, n in probe.memory.items() if n is not None}
    parts = ', '.join(f'{nm} {in_bytes(n)}' for nm, n in known.items()) + (
        '' if probe.keeps else '; not activations, because of torch.func.grad in forward')
    if known: found.add('memory of a step', '', f'{in_bytes(sum(known.values()))}: {parts}', judged=False)
    found.add('time of the fit', '', _estimated(found, probe, epochs), judged=False)


def _estimated(found: Check, probe: ProbeCB, epochs: int) -> str:
    times, waits, lengths = found.values['seconds'], found.values['waits'], probe.lengths
    if None in lengths.values(): return 'unknown, because a loader has no length'
    if 'train' not in times: return 'unknown, because no step could be timed'
    seconds = sum(lengths[phase]*(times[phase] + waits[phase]) for phase in times)*epochs
    found.values['estimate'] = seconds
    return f'about {_duration(seconds)} for {epochs} epoch{"s"*(epochs != 1)} of {lengths["train"]:,} batches'


def _duration(seconds: float) -> str:
    if seconds < 100: return f'{seconds:.2g} s'
    if seconds < 6000: return f'{seconds/60:.0f} min'
    return f'{seconds/3600:.1f} h'
