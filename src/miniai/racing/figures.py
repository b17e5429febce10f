"Figures of a race, of a few rules each: curves with bands over seeds, and tuning over the learning rate."
import math
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

from miniai.racing.answer import Answer
from miniai.report.scales import Axis, finite, short, span
from miniai.report.svg import Chart

__all__ = ['curves_figure', 'groups', 'quartiles', 'rates_figure', 'title_of']

MOST = 8      # rules in one figure, as many as there are colors
ALWAYS = 3    # baselines that are in every figure of a race with more rules
STEEP = 5     # an axis is logarithmic if its highest value is so many times the lowest

Where = tuple[str, int]  # a task and a length


def groups(answer: Answer) -> list[list[str]]:
    "The rules of each figure, at most `MOST`: the best mean ranks first, and in all of them the first baselines."
    order = sorted(answer.rules, key=lambda nm: answer.ranks[nm][0])
    if len(order) <= MOST: return [order]
    shared = answer.record['protocol']['baselines'][:ALWAYS]
    rest, size = [nm for nm in order if nm not in shared], MOST - len(shared)
    return [[*shared, *rest[i:i + size]] for i in range(0, len(rest), size)]


def title_of(where: Where) -> str:
    "A task and a length in words."
    return f'{where[0]}, {where[1]:,} steps'


def quartiles(answer: Answer, where: Where, nm: str) -> list[tuple[int, float, float, float]]:
    "Of the curves of a rule: (step, median, lower and upper quartile) over seeds. A run that failed is infinite."
    curves = [{step: figure for step, _, figure in r['result']['curve']} for r in answer.runs[where, nm]]
    rows = []
    for step in sorted({step for curve in curves for step in curve}):
        xs = sorted(math.inf if (x := curve.get(step)) is None else x for curve in curves)
        rows.append((step, *(_quantile(xs, q) for q in (.5, .25, .75))))
    return rows


def _quantile(xs: Sequence[float], q: float) -> float:
    "Of sorted values, which may be infinite."
    at = q*(len(xs) - 1)
    low, high = xs[math.floor(at)], xs[math.ceil(at)]
    return low if low == high else low + (at - math.floor(at))*(high - low)


def _upright(answer: Answer, where: Where, values: Iterable[float | None]) -> Axis:
    "The axis of figures, up to the one before training, so that runs that diverged do not flatten the others."
    found, starts = finite(values) or [0., 1.], (r['result']['start'] for nm in answer.rules
                                                 for r in answer.runs[where, nm])
    low, high = min(found), min(max(found), median(finite(starts) or [math.inf]))
    if high <= low: high = max(found)
    return Axis(low/1.08, high*1.08, 0, 0, log=True) if 0 < STEEP*low < high else Axis(*span([low, high]), 0, 0)


def _about(answer: Answer, where: Where, part: str, y: Axis) -> str:
    return f"{answer.record['tasks'][where[0]]['figure']} on the {part} part{', logarithmic'*y.log}"


def _said(x: float) -> str: return short(x, 4) if math.isfinite(x) else 'failed'


def curves_figure(answer: Answer, where: Where, names: Sequence[str], name: str) -> dict[str, Any]:
    "The curves of rules on a task at a length: medians over seeds and bands between quartiles; baselines are dashed."
    found = {nm: quartiles(answer, where, nm) for nm in names}
    y = _upright(answer, where, [x for rows in found.values() for row in rows for x in row[1:]])
    chart, dashed = Chart(Axis(0, where[1], 0, 0, 'step', whole=True), y), answer.record['protocol']['baselines']
    kinds = {nm: f's{i}{" dotted" if nm in dashed else ""}' for i, nm in enumerate(names, 1)}
    for nm, rows in found.items():
        if rows: chart.band(*zip(*((step, low, high) for step, _, low, high in rows), strict=True), kinds[nm])
    for nm, rows in found.items(): chart.line([row[0] for row in rows], [row[1] for row in rows], kinds[nm])
    by_step = {}
    for nm, rows in found.items():
        for step, figure, *_ in rows: by_step.setdefault(step, []).append((figure, nm))
    chart.hover(sorted(by_step), [f'step {step:,}: ' + ', '.join(f'{nm} {_said(x)}' for x, nm in sorted(by_step[step]))
                                  for step in sorted(by_step)])
    ends = [f'{nm} {_said(rows[-1][1]) if rows else "failed"}' for nm, rows in found.items()]
    return dict(title=title_of(where), about=_about(answer, where, 'validation', y),
                legend=[(kind, _named(answer, where, nm)) for nm, kind in kinds.items()],
                svg=chart.markup(name, f'Curves of {title_of(where)}', f'Medians at the end: {", ".join(ends)}.'))


def _named(answer: Answer, where: Where, nm: str) -> str:
    "The name of a rule, with what became of it if half of its runs or more failed."
    runs = answer.runs[where, nm]
    failed = sum(r['result']['final'] is None for r in runs)
    return f'{nm} ({failed} of {len(runs)} failed)' if 2*failed >= len(runs) else nm


def rates_figure(answer: Answer, where: Where, names: Sequence[str], name: str) -> dict[str, Any]:
    "What the configurations of tuning came to, over their learning rates: a cross at the top failed, a ring is best."
    tuned = {nm: sorted((r['config']['lr'], _upward(r['result']['final'])) for r in answer.tuned[where, nm]
                        if r['config']['lr'] > 0) for nm in names}
    rates = [lr for rows in tuned.values() for lr, _ in rows] or [1.]
    y = _upright(answer, where, [x for rows in tuned.values() for _, x in rows])
    chart = Chart(Axis(min(rates)/1.2, max(rates)*1.2, 0, 0, 'learning rate', log=True), y)
    about = []
    for i, (nm, rows) in enumerate(tuned.items(), 1):
        lrs, xs = [lr for lr, _ in rows], [x for _, x in rows]
        failed = [lr for lr, x in rows if x == math.inf]
        if len(answer.rules) <= MOST: chart.line(lrs, xs, f'thin s{i}')
        chart.points(lrs, xs, f's{i}')
        chart.points(failed, [y.high]*len(failed), f's{i}', crossed=True)
        about.append(f'{nm}: {len(failed)} of {len(rows)} failed' if failed else f'{nm}: {len(rows)} tried')
        best, lr = min(xs, default=math.inf), answer.runs[where, nm][0]['config']['lr']
        if best == math.inf: continue
        about[-1] += f', best {short(best, 4)} at {short(lr)}'
        chart.dots([lr], [best], f's{i} best', [about[-1]], 5)
    return dict(title=title_of(where), about=_about(answer, where, 'tuning', y),
                legend=[(f's{i}', nm) for i, nm in enumerate(names, 1)],
                svg=chart.markup(name, f'Tuning on {title_of(where)}, over the learning rate', f'{"; ".join(about)}.'))


def _upward(x: float | None) -> float: return math.inf if x is None else x
