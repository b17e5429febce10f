"The numbers that HealthCB has recorded: a row per sampled batch, as columns for rules and as plain values."
import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from torch import Tensor

from miniai.device import DeferredScalars
from miniai.diagnosis.layer_watch import LayerWatch, read
from miniai.diagnosis.parameter_watch import ParameterWatch
from miniai.diagnosis.verdict import Facts, known, mean_of, median_of
from miniai.optim.groups import rate_of

__all__ = ['HealthRecords']

LAYER_FIGURES = 'mean', 'std', 'near_zero', 'saturated', 'gradient'
FEW_LAYERS = 'dead', 'shift', 'stretch'  # figures of some kinds of layers
PARAMETER_FIGURES = 'norm', 'gradient', 'update', 'moved'
RUN_FIGURES = 'loss', 'gradient_norm', 'clipped_norm', 'weight_norm', 'noise_scale', 'lr', 'update', 'right'
DATA_FACTS = 'rows', 'repeats', 'valid_repeats', 'overlap'  # which the first passes show
FIRST_SAMPLES = 2  # are not thinned out
MOST_SAMPLES, MOST_NUMBERS = 400, 150_000


class HealthRecords:
    "Samples, losses and means of passes. Long fits are thinned out: every other sample goes when there are too many."
    def __init__(self) -> None:
        self.samples: list[dict[str, Any]] = []
        self.losses, self.rates, self.facts, self.passes = DeferredScalars(), [], Facts(), []
        self.waited = self.worked = 0.
        self.planned, self.ended, self.kinds = 0, False, {}

    def add(self, sample: dict[str, Any], layers: LayerWatch | None, parameters: ParameterWatch) -> None:
        "A sampled batch, with what was measured in it."
        sample |= dict(layers=layers.values if layers else {}, parameters=parameters.values)
        if layers: self.kinds = layers.kinds
        _read_all([sample, *sample['layers'].values(), *sample['parameters'].values()])
        of = sample['parameters'].values()
        sample |= dict(gradient_norm=_norm(v.get('gradient') for v in of), weight_norm=_norm(v.get('norm') for v in of),
                       clipped_norm=_norm(v.get('clipped', v.get('gradient')) for v in of))  # one may be dropped
        sample['update'] = median_of(v.get('update') for nm, v in sample['parameters'].items() if 'weight' in nm)
        self.samples.append(sample)
        numbers = 6*len(sample['layers']) + 3*len(sample['parameters']) + 10
        if len(self.samples) > max(32, min(MOST_SAMPLES, MOST_NUMBERS//numbers)):
            self.samples = self.samples[:FIRST_SAMPLES] + self.samples[FIRST_SAMPLES::2]

    def add_rate(self, groups: Sequence[dict[str, Any]]) -> None:
        "The rate of a batch, unless it is on an accelerator, which would have to be waited for."
        lr = groups[0]['lr'] if groups else None
        if lr is not None and getattr(lr, 'is_cpu', True): self.rates.append(rate_of(groups[0]))

    def add_noise(self, scale: float | None) -> None:
        "The gradient noise scale, which the batch after the last sample has shown."
        if self.samples: self.samples[-1]['noise_scale'] = scale

    def add_pass(self, losses: Sequence[float], weights: Sequence[float], training: bool, epoch: int) -> None:
        "The mean loss of a pass, not finite if the loss of a batch is not."
        total = sum(weights)
        mean = sum(x*w for x, w in zip(losses, weights, strict=True))/total if total else None
        if training: self.passes.append(dict(epoch=epoch, batch=len(self.losses), train=mean))
        elif self.passes and losses: self.passes[-1]['valid'] = mean

    def current(self) -> Facts:
        "The facts so far."
        done = 1. if self.ended else len(self.losses)/self.planned if self.planned else 0.
        data = self.facts.data | dict(waited=self.waited, worked=self.worked)
        return replace(self.facts, batches=[s['batch'] for s in self.samples], layers=self._layers(),
                       parameters=self._parameters(), run=self._run(), losses=self.losses.values,
                       epochs=self.passes, data=data, rate=mean_of(self.rates), done=done)

    def _run(self) -> dict[str, list]:
        return {nm: [s.get(nm) for s in self.samples] for nm in RUN_FIGURES}

    def _layers(self) -> dict[str, dict[str, Any]]:
        found = self._columns('layers', (*LAYER_FIGURES, *FEW_LAYERS))
        return {nm: dict(kind=self.kinds.get(nm, '')) | columns for nm, columns in found.items()}

    def _parameters(self) -> dict[str, dict[str, list]]:
        return self._columns('parameters', PARAMETER_FIGURES)

    def _columns(self, of: str, figures: Iterable[str]) -> dict[str, dict[str, list]]:
        names = dict.fromkeys(nm for s in self.samples for nm in s[of])
        rows = {nm: [s[of].get(nm, {}) for s in self.samples] for nm in names}
        return {nm: {f: [r.get(f) for r in found] for f in figures} for nm, found in rows.items()}

    def as_dict(self, every: int | None) -> dict[str, Any]:
        "All records as values that JSON has."
        batches = [s['batch'] for s in self.samples]
        gaps = [b - a for a, b in pairwise(batches)]
        layers = {nm: {k: v for k, v in columns.items() if k not in FEW_LAYERS or known(v)}
                  for nm, columns in self._layers().items()}
        return _plain(dict(every=every or round(median_of(gaps) or 1), batches=batches, layers=layers,
                           parameters=self._parameters(), run=self._run(), epochs=self.passes,
                           data={nm: self.facts.data[nm] for nm in DATA_FACTS if nm in self.facts.data},
                           seconds=dict(waited=self.waited, worked=self.worked)))

    # A run that resumes

    def state(self) -> dict[str, Any]:
        "What does not depend on which batches were sampled, as of the training so far."
        return dict(losses=list(self.losses.values), rates=list(self.rates), passes=[dict(p) for p in self.passes],
                    nonfinite=self.facts.nonfinite, nonfinite_valid=self.facts.nonfinite_valid, planned=self.planned)

    def load_state(self, state: dict[str, Any]) -> None:
        "Restore what `state` returned."
        self.losses, self.rates, self.passes = DeferredScalars(state['losses']), state['rates'], state['passes']
        self.facts.nonfinite, self.facts.nonfinite_valid = state['nonfinite'], state['nonfinite_valid']
        self.planned = state['planned']

    def take_over(self, records: dict[str, Any]) -> None:
        "Continue `records`, of `as_dict`, up to the batch of the run's state: later ones are trained again."
        before = records['batches'][:bisect_left(records['batches'], len(self.losses))]
        self.samples = [dict(batch=batch, layers=_row(records['layers'], i), parameters=_row(records['parameters'], i))
                        | {nm: values[i] for nm, values in records['run'].items()} for i, batch in enumerate(before)]
        self.kinds = {nm: columns['kind'] for nm, columns in records['layers'].items()}
        self.waited, self.worked = records['seconds']['waited'], records['seconds']['worked']


def _row(columns: dict[str, dict[str, Any]], i: int) -> dict[str, dict[str, Any]]:
    return {nm: {f: values[i] for f, values in of.items() if f != 'kind'} for nm, of in columns.items()}


def _read_all(rows: list[dict]) -> None:
    "Replace tensors in the rows by floats, with one wait for the device."
    places = [(row, k) for row in rows for k, v in row.items() if isinstance(v, Tensor)]
    by_device: dict[Any, list] = {}
    for row, k in places: by_device.setdefault(row[k].device, []).append((row, k))
    for found in by_device.values():
        for (row, k), x in zip(found, read([row[k].detach() for row, k in found]), strict=True): row[k] = x


def _norm(values: Iterable[float | None]) -> float | None:
    found = [v for v in values if v is not None]
    return math.sqrt(sum(v*v for v in found)) if found else None


def _plain(x: Any) -> Any:
    if isinstance(x, dict): return {k: _plain(v) for k, v in x.items()}
    if isinstance(x, list): return [_plain(v) for v in x]
    if isinstance(x, float): return float(f'{x:.6g}') if math.isfinite(x) else None
    return x
