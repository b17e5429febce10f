"The answer of a race as one HTML page: verdicts, ranks, figures, costs, and all that it takes to check or repeat it."
import math
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median
from typing import Any

from miniai.racing.answer import Answer, spread, verdict_of
from miniai.racing.conditions import configurations, machine, protocol, repeat, sources
from miniai.racing.figures import curves_figure, groups, quartiles, rates_figure, title_of
from miniai.report.blocks import Block, Cell, Section, figures, folded, listed, number, plural, shown, table, text
from miniai.report.page import fitting
from miniai.report.scales import Axis, short
from miniai.report.svg import bar, interval

__all__ = ['RACE_PAGE', 'race_page']

RACE_PAGE = 'race.html'
OPEN_ROWS = 100  # of tables of one kind: more are behind lines, and have no drawings
MOST_ROWS = 2000 # comparisons: of more, those among the entrants are counted only
OPEN_NOTES = 12
KINDS = {'better': 'better', 'worse': 'worse', 'cannot tell': 'open'}
_LEFT_OUT = (), ('configurations',), ('rules',), ('rates',), ('curves',), ('comparisons', 'figures', 'costs')


def race_page(answer: Answer) -> str:
    "The page of a race, below 2 MB. ImportError without Jinja2."
    p = answer.record['protocol']
    sections = [*_verdicts(answer), _ranks(answer), _figures(answer), _curves(answer), _rates(answer), _costs(answer),
                _notes(answer), configurations(answer), sources(answer), protocol(answer), machine(answer),
                repeat(answer)]
    rules, others = (', '.join(nms) if len(nms) <= 3 else plural(len(nms), 'rule')
                     for nms in (p['entrants'], p['baselines']))
    about = dict(title=f'{rules} against {others}' if others else rules, kind='race', brand='race of update rules',
                 lead=answer.summary(), runs=[], sections=sections)
    return fitting(about, sections, _LEFT_OUT, 'race.json has it.')


def _by_place(answer: Answer, head: Sequence[str], rows: Callable[[Any], list[list]],
              caption: Callable[[Any], str] = title_of) -> list[Block]:
    "A table for each task and length, behind a line if they have many rows together."
    found = {where: rows(where) for where in answer.cells}
    n = sum(map(len, found.values()))
    return [_folded_if(n, caption(where), head, rows) for where, rows in found.items() if rows]


def _folded_if(n: int, caption: str, head: Sequence[str], rows: list[list]) -> Block:
    "A table, behind a line and without drawings if there are many rows, `n`."
    if n > OPEN_ROWS: rows = [[Cell(c.text, c.value) if isinstance(c, Cell) else c for c in row] for row in rows]
    return table(caption, head, rows, caption if n > OPEN_ROWS else '', kind='sparks')


def _verdicts(answer: Answer) -> list[Section]:
    "How often each rule was better or worse, and every comparison."
    every, baselines = Section('comparisons', 'Every comparison'), answer.record['protocol']['baselines']
    every.blocks = [text('Left of the line, the first rule has the lower figure. Intervals are for one comparison '
                         'each; p-values are corrected for all comparisons together. A number of more seeds assumes '
                         'that the difference seen is the true one.'),
                    *_by_place(answer, ['rules', 'verdict', 'difference', '95 % interval', 'p', 'what would tell'],
                               lambda where: _compared(answer, where))]
    if len(answer.cells) < 2: return [Section('verdicts', 'Verdicts', every.blocks)]
    pairs = {}
    for c in answer.comparisons: pairs.setdefault((c['a'], c['b']), []).append(c['verdict'])
    blocks, tasks = [], len({task for task, _ in answer.cells})
    for words, rows in (('Against the baselines', [x for x in pairs.items() if x[0][1] in baselines]),
                        ('Among the entrants', [x for x in pairs.items() if x[0][1] not in baselines])):
        rows.sort(key=lambda x: x[1].count('worse') - x[1].count('better'))
        caption = f'{words}, on {plural(tasks, "task")} at {plural(len(answer.cells)//tasks, "length")}'
        if rows: blocks.append(_folded_if(len(rows), caption, ['rules', 'better', 'worse', 'cannot be told apart'],
                                          [[f'{a} against {b}', *_counted(vs)] for (a, b), vs in rows]))
    return [Section('verdicts', 'Verdicts', blocks), every]


def _counted(verdicts: list[str]) -> list[Cell]:
    found = {v: verdicts.count(v) for v in KINDS}
    return [Cell(str(n), n, bar(n/len(verdicts), KINDS[v])) for v, n in found.items()]


def _compared(answer: Answer, where: tuple[str, int]) -> list[list]:
    "Rows of the comparisons on a task at a length. Their axis has 0 in its middle; very large differences are cut."
    few, baselines = len(answer.comparisons) <= MOST_ROWS, answer.record['protocol']['baselines']
    found = [c for c in answer.comparisons if c['cell'] == where and (few or c['b'] in baselines)]
    if not found: return []
    widest = max(abs(x) for c in found for x in c['interval'])
    limit = min(widest, 3*median(abs(c['difference']) for c in found)) or widest or 1.
    rows = []
    for c in found:
        drawn = interval(c['difference'], *c['interval'], Axis(-limit, limit, 0, 0), 0., KINDS[c['verdict']])
        verdict, more = (_unbroken(words) for words in verdict_of(c))
        if not c['figures']:
            rows.append([f"{c['a']} against {c['b']}", verdict, '—', '—', '—', more])
            continue
        rows.append([f"{c['a']} against {c['b']}", verdict, Cell(f"{c['difference']:+.3g}", c['difference'], drawn),
                     _unbroken('{:+.3g} to {:+.3g}'.format(*c['interval'])), number(c['p'], 3), more or '—'])
    return rows


def _unbroken(words: str) -> str: return words.replace(' ', '\u00a0')


def _ranks(answer: Answer) -> Section:
    "Mean ranks with intervals, the best first."
    rows = []
    for nm, (rank, low, high) in sorted(answer.ranks.items(), key=lambda item: item[1][0]):
        drawn = interval(rank, low, high, Axis(1, len(answer.rules), 0, 0))
        rows.append([nm, Cell(f'{rank:.2f}', rank, drawn), _unbroken(f'{low:.2f} to {high:.2f}'),
                     'baseline' if nm in answer.record['protocol']['baselines'] else 'entrant'])
    return Section('ranks', 'Mean ranks', [
        table('Mean rank over all tasks, lengths and seeds; 1 is the best',
              ['rule', 'mean rank', '95 % interval', 'role'], rows, kind='sparks'),
        text('The interval is over seeds. It says nothing of other tasks.')])


def _figures(answer: Answer) -> Section:
    def rows(where: Any) -> list[list]:
        found = []
        for nm in answer.rules:
            xs, runs = answer.figures[where][nm], answer.runs[where, nm]
            failed = sum(r['result']['final'] is None for r in runs)
            tuned = ', '.join(f'{k}\u00a0{shown(v).text}' for k, v in runs[0]['config'].items())
            middle, wide = (x if math.isfinite(x) else None for x in (mean(xs), spread(xs)))
            found.append([nm, number(middle), number(wide, 2), _unbroken(f'{failed} of {len(runs)}'), tuned])
        return found
    return Section('figures', 'Figures on the test part', _by_place(
        answer, ['rule', 'mean', 'spread', 'failed', 'tuned to'], rows,
        lambda where: f"{title_of(where)}: {answer.record['tasks'][where[0]]['figure']}"))


def _curves(answer: Answer) -> Section:
    words = f"Medians and quartiles of {answer.record['protocol']['seeds']} seeds. Baselines are dashed. What is " \
            f"worse than before training is at the upper edge."
    def medians(where: Any) -> Block:
        found = {nm: {row[0]: row[1] for row in quartiles(answer, where, nm)} for nm in answer.rules}
        steps = sorted({step for rows in found.values() for step in rows})
        return table(f'{title_of(where)}: medians', ['rule', *(f'{step:,}' for step in steps)],
                     [[nm, *(_figure(rows.get(step)) for step in steps)] for nm, rows in found.items()])
    return Section('curves', 'Learning curves', [text(words), *_grouped(answer, curves_figure, 'curves'), folded(
        'The medians as tables', map(medians, answer.cells))])


def _figure(x: float | None) -> Cell: return Cell(short(x, 4) if x is not None and math.isfinite(x) else 'failed')


def _rates(answer: Answer) -> Section:
    words = 'Each dot is a configuration that was tried, a ring the best one, a cross at the upper edge one that ' \
            'failed. The other hyperparameters differ, too: the tables of all configurations have them.'
    return Section('rates', 'Sensitivity to the learning rate', [text(words), *_grouped(answer, rates_figure, 'rates')])


def _grouped(answer: Answer, drawn: Callable[..., dict], name: str) -> Iterable[Block]:
    "Figures of all tasks and lengths: those of the best rules, and behind lines those of the others."
    for i, names in enumerate(groups(answer)):
        block = figures(*(drawn(answer, where, names, f'{name}-{i}-{k}') for k, where in enumerate(answer.cells)))
        yield folded(', '.join(names), [block]) if i else block


def _costs(answer: Answer) -> Section:
    def rows(where: Any) -> list[list]:
        found = {nm: answer.cost(where, nm) for nm in answer.rules}
        slowest = max((c['ms'] for c in found.values() if c['ms'] < math.inf), default=1.) or 1.
        largest = max(c['state_bytes'] for c in found.values()) or 1
        return [[nm, Cell(number(c['ms'], 3).text, c['ms'], bar(c['ms']/slowest)) if c['ms'] < math.inf else '—',
                 *(number(c[k]) if c[k] < math.inf else _unbroken('not reached') for k in ('steps', 'seconds')),
                 Cell(f"{c['state_bytes']:,}", c['state_bytes'], bar(c['state_bytes']/largest)),
                 *([number(c['peak_bytes'])] if answer.on_gpu else [])] for nm, c in found.items()]
    head = ['rule', 'ms a step', 'steps to target', 'seconds to target', 'bytes of state',
            *(['peak bytes of the GPU'] if answer.on_gpu else [])]
    reference = (answer.record['protocol']['baselines'] or answer.rules)[0]
    return Section('costs', 'Time and memory', [
        text(f'The target is the median figure of {reference} on the validation part, at its end.'),
        *_by_place(answer, head, rows, lambda where: f'{title_of(where)}: target {number(answer.target(where)).text}')])


def _notes(answer: Answer) -> Section:
    notes = answer.notes()
    block = listed(notes)
    return Section('notes', 'What to keep in mind, and what was not tested', [
        folded(plural(len(notes), 'note'), [block]) if len(notes) > OPEN_NOTES else block])
