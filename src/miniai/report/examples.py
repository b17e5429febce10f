"What a run's model gets right and wrong on validation data: figures of each class, confusion, and samples."
from typing import Any

from miniai.report.blocks import Block, Cell, Section, figures, number, percent, pictures, plural, table, text
from miniai.report.record import Run
from miniai.report.scales import Axis, short, span
from miniai.report.svg import Chart, bar

__all__ = ['examples']

MOST_CLASSES = 30  # of which all figures are shown; of more, those of the weakest


def examples(run: Run, name: str) -> Section:
    "The section about predictions."
    section, found = Section('examples', 'Examples and mistakes'), run.results
    if not found.get('kind'):
        why = found.get('why') or 'No predictions were recorded: the run ended before its first validation.'
        section.blocks.append(text(why))
        return section
    of_epoch = f" after epoch {found['epoch'] + 1}" if isinstance(found.get('epoch'), int) else ''
    section.blocks.append(text(f"Predictions for {plural(found['samples'], 'validation sample')}{of_epoch}."))
    section.blocks += _classes(found) if found['kind'] == 'classes' else _numbers(found, name)
    return section


def _classes(found: dict[str, Any]) -> list[Block]:
    blocks = [_pictures('The most confident mistakes', found['mistakes'])] if found['mistakes'] else \
             [text('There are no mistakes.')]
    if found.get('examples'): blocks.append(_pictures('The first samples', found['examples']))
    if found.get('confusion'): blocks.append(_confusion(found['classes'], found['confusion']))
    elif found.get('confused'):
        rows = [[f"{c['true']}", c['predicted'], number(c['count'])] for c in found['confused']]
        blocks.append(table('Most often confused', ['true class', 'taken for', 'samples'], rows))
    return [*blocks, _per_class(found['per_class'])]


def _per_class(rows: list[dict[str, Any]]) -> Block:
    weakest = rows
    if len(rows) > MOST_CLASSES: weakest = sorted(rows, key=lambda r: -1 if r['f1'] is None else r['f1'])[:MOST_CLASSES]
    caption = 'Figures of each class' if weakest is rows else f'The {MOST_CLASSES} weakest of {len(rows):,} classes'
    cells = [[row['class'], number(row['samples']), *(_share(row[nm])
                                                      for nm in ('precision', 'recall', 'f1'))] for row in weakest]
    return table(caption, ['class', 'samples', 'precision', 'recall', 'F1'], cells, kind='sparks')


def _share(v: float | None) -> Cell: return Cell('—' if v is None else f'{v:.3f}', v, bar(v))


def _confusion(classes: list[str], counts: list[list[int]]) -> Block:
    rows = []
    for true, row in zip(classes, counts, strict=True):
        total = max(sum(row), 1)
        rows.append([true, *(Cell(f'{n:,}' if n else '·', n, share=n/total) for n in row)])
    return table('Confusion: true classes down, predicted classes across', ['true \\ predicted', *classes], rows,
                 kind='confusion')


def _pictures(caption: str, items: list[dict[str, Any]]) -> Block:
    return pictures(caption, [_picture(item) for item in items]) if any(item.get('png') for item in items) else \
           table(caption, ['sample', 'predicted', 'probability', 'true'],
                 [[f"{item['index']:,}", item['predicted'], percent(item['probability']), item['true']]
                  for item in items])


def _picture(item: dict[str, Any]) -> dict[str, Any]:
    wrong = item['true'] != item['predicted']
    said = [(item['predicted'], percent(item['probability']))]
    return dict(png=item.get('png'), wrong=wrong, said=said, true=item['true'],
                alt=f"validation sample {item['index']:,}: {item['true']}, predicted as {item['predicted']}")


def _numbers(found: dict[str, Any], name: str) -> list[Block]:
    points = found.get('points') or []
    rows = [[f"{m['index']:,}", number(m['true']), number(m['predicted']), number(m['predicted'] - m['true'])]
            for m in found['mistakes']]
    blocks = [table('Errors', ['figure', 'value'], [
        ['root mean square error', number(found['rmse'])], ['mean absolute error', number(found['mae'])],
        ['R², the share of the variance that is explained', number(found['r2'])]])]
    if points: blocks.insert(0, figures(_scatter(points, name)))
    if rows: blocks.append(table('The largest errors', ['sample', 'true', 'predicted', 'difference'], rows))
    return blocks


def _scatter(points: list[list[float]], name: str) -> dict[str, Any]:
    low, high = span([v for point in points for v in point])
    chart = Chart(Axis(low, high, 0, 0, 'true value'), Axis(low, high, 0, 0))
    chart.line([low, high], [low, high], 'ideal')
    chart.dots([t for t, _ in points], [p for _, p in points], 's1 faint',
               [f'true {short(t, 4)}, predicted {short(p, 4)}' for t, p in points], 2.5)
    return dict(title='Predicted values', about='over the true ones', legend=[('s1', 'sample'), ('ideal', 'no error')],
                svg=chart.markup(f'{name}-scatter', 'Predicted over true values',
                                 f"{plural(len(points), 'sample')}; on the line a prediction has no error."))
