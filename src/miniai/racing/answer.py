"The answer of a race: from the record of its runs alone, the verdicts, ranks, costs and notes, as text and as data."
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, median_low, stdev
from typing import Any

from miniai.racing.plan import steps_in
from miniai.racing.verdict import compare_all, pairs_of, ranks, with_worst

__all__ = ['PROTOCOL', 'Answer', 'best_configuration', 'spread', 'verdict_of']


def best_configuration(runs: Sequence[Mapping], task: str, steps: int, rule: str) -> dict[str, Any]:
    "Of the runs that tuned, the configuration with the lowest figure; the first of equals, and if all failed."
    tuned = [r for r in runs if r['tunes'] and (r['task'], r['steps'], r['rule']) == (task, steps, rule)]
    return min(tuned, key=lambda r: math.inf if r['result']['final'] is None else r['result']['final'])['config']


class Answer:
    """The answer of a race, computed from `record`, what race.json holds. `comparisons` are dicts, one for each pair of
    rules, task and length; `ranks` maps rules to their mean rank with an interval; `str(answer)` is race.md."""
    def __init__(self, record: dict[str, Any]) -> None:
        self.record, p = record, record['protocol']
        self.rules = [*p['entrants'], *p['baselines']]
        pairs = pairs_of(p['entrants'], p['baselines'], p.get('compare', 'all'))
        self.cells = list(dict.fromkeys((r['task'], r['steps']) for r in record['runs'] if not r['tunes']))
        self.runs, self.tuned = ({(cell, nm): [] for cell in self.cells for nm in self.rules} for _ in range(2))
        for r in record['runs']: (self.tuned if r['tunes'] else self.runs)[(r['task'], r['steps']), r['rule']].append(r)
        self.runs = {key: _by_seed(runs) for key, runs in self.runs.items()}
        self.figures = {cell: with_worst({nm: [r['result']['final'] for r in self.runs[cell, nm]] for nm in self.rules},
                                         [r['result']['start'] for nm in self.rules for r in self.runs[cell, nm]
                                          if r['result']['start'] is not None]) for cell in self.cells}
        comparable = {cell: {nm: [x if math.isfinite(x) else 0. for x in xs] for nm, xs in figures.items()}
                      for cell, figures in self.figures.items()}  # without any figure all rules are equal
        self.comparisons = [c | dict(figures=math.isfinite(self.figures[c['cell']][c['a']][0]))
                            for c in compare_all(comparable, pairs, p['alpha'], p['power'])]
        self.ranks = ranks(comparable)
        self.on_gpu = any(r['result'].get('peak_bytes') for r in record['runs'])

    @classmethod
    def read(cls, path: str | Path) -> 'Answer':
        "The answer of a race.json. ValueError if it is none, or damaged."
        try: record = json.loads(Path(path).read_text('utf-8'))
        except ValueError as e: raise ValueError(f"{path} is damaged: {e}") from e
        except OSError as e: raise ValueError(f"{path} cannot be read: {e.strerror}") from e
        if not (isinstance(record, dict) and {'protocol', 'runs', 'rules', 'tasks'} <= record.keys()):
            raise ValueError(f"{path} is not the race.json of a race")
        try:
            if wrong := _wrong(record): raise ValueError(f"{path} is damaged: {wrong}")
            return cls(record)
        except (KeyError, TypeError, AttributeError, IndexError) as e:
            raise ValueError(f"{path} is damaged: {type(e).__name__}: {e}") from e

    def table(self) -> str:
        "Verdicts, figures and ranks: what is the same whenever and wherever the same runs are made."
        tables = [_table(['rule', 'mean rank', '95 % interval'],
                         [[nm, f'{r:.2f}', f'{low:.2f} to {high:.2f}'] for nm, (r, low, high) in
                          sorted(self.ranks.items(), key=lambda item: item[1][0])]),
                  _table(['task', 'steps', 'rule', 'test figure', 'spread', 'failed', 'tuned to'],
                         [row for cell in self.cells for row in self._figure_rows(cell)]),
                  _table(['task', 'steps', 'comparison', 'difference', '95 % interval', 'p', 'verdict'],
                         [_comparison_row(c) for c in self.comparisons])]
        return '\n\n'.join([*tables, *self.notes()])

    def _figure_rows(self, cell: tuple[str, int]) -> list[list[str]]:
        rows = []
        for nm in self.rules:
            xs, runs = self.figures[cell][nm], self.runs[cell, nm]
            failed = sum(r['result']['final'] is None for r in runs)
            tuned = ' '.join(f'{k}={_value(v)}' for k, v in runs[0]['config'].items())
            rows.append([cell[0], str(cell[1]), nm, _number(mean(xs)), _number(spread(xs), 2),
                         f'{failed} of {len(runs)}', tuned])
        return rows

    def cost(self, cell: tuple[str, int], nm: str) -> dict[str, float | None]:
        """What a rule costs: `ms` for each step, bytes of state, `peak_bytes` of a GPU, and the steps and seconds to a
        target, which is the median final figure of the first baseline on the validation part; infinite if fewer than
        half of the runs reach it."""
        results, target = [r['result'] for r in self.runs[cell, nm]], self.target(cell)
        reached = [_reached(r['curve'], target) for r in results]
        times = [1000*r['curve'][-1][1]/r['curve'][-1][0] for r in results if r['curve']]
        steps, seconds = (median_low(x[i] for x in reached) for i in (0, 1))
        return dict(steps=steps, seconds=seconds, ms=median(times) if times else math.inf,
                    state_bytes=max(r['state_bytes'] for r in results),
                    peak_bytes=max((r.get('peak_bytes') or 0 for r in results), default=0) or None)

    def costs(self) -> str:
        "What rules cost, with a dash for what was not reached."
        head = ['task', 'steps', 'rule', 'target', 'steps to it', 'seconds to it', 'ms a step', 'state bytes']
        rows = []
        for cell in self.cells:
            for nm in self.rules:
                c = self.cost(cell, nm)
                rows.append([cell[0], str(cell[1]), nm, _number(self.target(cell)), _number(c['steps']),
                             _number(c['seconds']), _number(c['ms'], 3), f"{c['state_bytes']:,}",
                             *([f"{c['peak_bytes'] or 0:,}"] if self.on_gpu else [])])
        return _table([*head, *(['peak bytes'] if self.on_gpu else [])], rows)

    def target(self, cell: tuple[str, int]) -> float:
        "The median final figure on the validation part of the first baseline, or of the first rule; infinite if none."
        reference = (self.record['protocol']['baselines'] or self.rules)[0]
        ends = [r['result']['curve'][-1][2] for r in self.runs[cell, reference] if r['result']['curve']]
        return median([math.inf if x is None else x for x in ends]) if ends else math.inf

    def notes(self) -> list[str]:
        "What the numbers alone do not say: failures in tuning, spaces that are too small, and what was not tested."
        p, notes = self.record['protocol'], []
        for nm in self.rules:
            tuned = [r for r in self.record['runs'] if r['tunes'] and r['rule'] == nm]
            failed = [r for r in self.record['runs'] if r['rule'] == nm and r['result']['failed']]
            if failed: notes.append(f"{nm}: {sum(r['tunes'] for r in failed)} of {len(tuned)} runs of tuning and "
                                    f"{sum(not r['tunes'] for r in failed)} of the comparison failed, and count as the "
                                    f"worst; the first: {_sentence(failed[0]['result']['failed'])}")
            notes += self._at_the_end(nm)
        left = self.record.get('left_out', ())
        tasks = f"the task{'s'*(len(left) > 1)} {', '.join(left)}; " if left else ''
        notes.append(f"not tested: {tasks}other schedules, batch sizes and lengths")
        if any(0 < c['more_seeds'] < 1000 for c in self.comparisons):
            notes.append("a number of more seeds assumes that the difference seen is the true one; make them a new "
                         "race, with another seed")
        notes.append(f"each rule had {p['trials']} configurations for each task and length; a rule that was given a "
                     f"better space has an advantage")
        return notes

    def _at_the_end(self, nm: str) -> list[str]:
        "Where the best learning rate is the lowest or the highest that was tried."
        places, notes = {}, []
        for task, steps in self.cells:
            tried = [r['config']['lr'] for r in self.tuned[(task, steps), nm]]
            best = self.runs[(task, steps), nm][0]['config']['lr']
            for end, value in (('lowest', min(tried)), ('highest', max(tried))):
                if best == value and len(set(tried)) > 2: places.setdefault(end, []).append(f'{task} at {steps} steps')
        for end, cells in places.items():
            notes.append(f"{nm}: the best lr is the {end} that was tried on {', '.join(cells)}: a space that reaches "
                         f"further may be better")
        return notes

    def summary(self) -> str:
        "The verdicts in one sentence."
        won = {v: sum(c['verdict'] == v for c in self.comparisons) for v in ('better', 'worse', 'cannot tell')}
        return (f"{len(self.comparisons):,} comparisons with {self.record['protocol']['seeds']} seeds: {won['better']} "
                f"better, {won['worse']} worse, {won['cannot tell']} cannot be told apart. Lower figures are better.")

    def __str__(self) -> str:
        p = self.record['protocol']
        return '\n\n'.join([
            f"# Race: {', '.join(p['entrants'])}",
            self.summary(), self.table(), self.costs(), 'Protocol. ' + PROTOCOL.format(**p)]) + '\n'


PROTOCOL = """For each task and length each rule tried {trials} configurations of its space, points of one
Sobol sequence, with one tuning seed on the tuning part of the data. The best one ran with {seeds} other seeds, the same
for all rules: initial weights and the order of batches are equal, so that differences are paired. Every run was tested
once, at its end. All rules had the same schedule: the rate warms up for a tenth of the steps and falls along a cosine.
p-values are corrected by Holm's method for all comparisons together: the chance of one or more false verdicts is at
most {alpha:.0%}."""


PARTS = dict(protocol=['entrants', 'baselines', 'tasks', 'trials', 'seeds', 'lengths', 'seed', 'alpha', 'power'],
             machine=['versions'])
RUN = {'task', 'steps', 'rule', 'tunes', 'seed', 'config', 'result'}
RESULT = {'start', 'final', 'failed', 'curve', 'state_bytes'}


def _wrong(record: Mapping) -> str:
    "What is wrong with the record of a race: parts that it lacks, or runs."
    for part, names in PARTS.items():
        missing = [nm for nm in names if nm not in record.get(part, {})]
        if missing: return f"its {part} lacks {', '.join(missing)}"
    for i, r in enumerate(record['runs']):
        missing = sorted((RUN - r.keys()) | (RESULT - r.get('result', {}).keys()))
        if missing: return f"run {i} lacks {', '.join(missing)}"
    p = record['protocol']
    cells = [(nm, steps, rule) for nm in p['tasks'] for steps in steps_in(record['tasks'][nm]['steps'], p['lengths'])
             for rule in [*p['entrants'], *p['baselines']]]
    seeds, tuned = {cell: set() for cell in cells}, dict.fromkeys(cells, 0)
    for r in record['runs']:
        cell = r['task'], r['steps'], r['rule']
        if cell not in seeds: return f"its protocol has no runs of {_named(cell)}"
        if r['tunes']: tuned[cell] += 1
        else: seeds[cell].add(r['seed'])
    for cell in cells:
        if tuned[cell] < p['trials']: return f"{_named(cell)} has {tuned[cell]} of {p['trials']} runs of tuning"
        if len(seeds[cell]) != p['seeds']: return f"{_named(cell)} has {len(seeds[cell])} of {p['seeds']} seeds"
        if seeds[cell] != seeds[cells[0]]: return f"{_named(cell)} has other seeds than the first rule"
    return ''


def _named(cell: tuple[str, int, str]) -> str: return f'{cell[2]} on {cell[0]} at {cell[1]} steps'


def _by_seed(runs: Sequence[Mapping]) -> list[Mapping]:
    "One run for each seed, in their order: rules are compared at the same seeds."
    found = {r['seed']: r for r in runs}
    return [found[seed] for seed in sorted(found)]


def spread(xs: Sequence[float]) -> float:
    "The standard deviation of figures; infinite without any figure."
    return stdev(xs) if all(map(math.isfinite, xs)) else math.inf


def _comparison_row(c: Mapping) -> list[str]:
    low, high = c['interval']
    verdict = '; '.join(filter(None, verdict_of(c)))
    if not c['figures']: return [c['cell'][0], str(c['cell'][1]), f"{c['a']} - {c['b']}", '-', '-', '-', verdict]
    return [c['cell'][0], str(c['cell'][1]), f"{c['a']} - {c['b']}", f"{c['difference']:+.3g}",
            f'{low:+.3g} to {high:+.3g}', f"{c['p']:.3g}", verdict]


def verdict_of(c: Mapping) -> tuple[str, str]:
    "The verdict of a comparison in words, and what would tell rules apart that it does not."
    if c['verdict'] != 'cannot tell': return c['verdict'], ''
    if not c['figures']: more = 'no run has a figure'
    elif not c['difference'] and not c['spread']: more = 'the same at every seed'
    elif 0 < c['more_seeds'] < 1000: more = f"about {c['more_seeds']:,} more seeds"
    else: more = f"a difference of {c['detectable']:.2g} would be seen"
    return 'cannot be told apart', more


def _reached(curve: Sequence[Sequence], target: float) -> tuple[float, float]:
    "Steps and seconds at which a curve is at most `target`; infinite if it never is."
    return next(((step, s) for step, s, figure in curve if figure is not None and figure <= target < math.inf),
                (math.inf, math.inf))


def _sentence(text: str) -> str: return text.splitlines()[0].partition('. ')[0]
def _value(x: Any) -> str: return f'{x:.3g}' if isinstance(x, float) else str(x)
def _number(x: float, digits: int = 4) -> str: return f'{x:.{digits}g}' if math.isfinite(x) else '-'


def _table(header: list[str], rows: list[list[str]]) -> str:
    "A table of Markdown whose columns are aligned."
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ['-'*w for w in widths], *rows]
    return '\n'.join('| ' + ' | '.join(x.ljust(w) for x, w in zip(line, widths, strict=True)) + ' |' for line in lines)
