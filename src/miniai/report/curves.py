"The curves of a run: loss and metrics with the learning rate, as figures and as a table. Batches count from 0."
import math
from collections.abc import Sequence
from typing import Any

from miniai.report.blocks import Block, Cell, Section, figures, number, plural, shown, table, text
from miniai.report.record import Run
from miniai.report.scales import Axis, finite, short, span
from miniai.report.svg import Chart

__all__ = ['curves', 'epochs_figure', 'loss_span']

TRAIN, VALID = ('s1', 'training'), ('s2 dotted', 'validation')
MOST_HOVERS, OPEN_ROWS, FAR_APART = 160, 24, 30


def curves(run: Run, name: str) -> Section:
    "The section with all curves. `name` makes identifiers unique on the page."
    section = Section('curves', 'Curves')
    if not run.history and not run.batches.get('loss'):
        section.blocks.append(text('No batch was recorded.'))
        return section
    by_batch = _loss_of_batches(run, name) if run.batches.get('loss') else None
    drawn = [by_batch or _epochs(run, 'loss', name)]
    drawn += [_epochs(run, metric, name) for metric in run.metrics if metric != 'loss']
    if finite(run.batches.get('lr') or ()): drawn.append(_rates(run, name))
    section.blocks += [figures(*drawn), *_table(run)]
    return section


def loss_span(values: Sequence[float | None]) -> tuple[float, float]:
    "The range of an axis for losses, from 0: a few losses that are far above all others do not flatten the rest."
    found = sorted(finite(values))
    if not found: return 0., 1.
    usual = found[int(0.97*(len(found) - 1))]
    return span([found[0], found[-1] if found[-1] <= 2.5*usual else 1.6*usual], zero=True)


def _places(run: Run) -> list[float]:
    "The middle of the batches of each recorded value. Batch 0 is from 0 to 1."
    every, n = run.batches['every'], run.batches['batches']
    return [(i*every + min((i + 1)*every, n))/2 for i in range(len(run.batches['loss']))]


def _loss_of_batches(run: Run, name: str) -> dict[str, Any]:
    b, xs = run.batches, _places(run)
    valid = [(b['ends'][row['epoch']], row) for row in run.rows('eval') if row['epoch'] < len(b['ends'])]
    chart = Chart(Axis(0, b['batches'], 0, 0, 'batch', whole=True),
                  Axis(*loss_span([*b['loss'], *(row.get('loss') for _, row in valid)]), 0, 0))
    if len(b['ends']) <= 40: chart.marked(b['ends'][:-1], 'epoch')
    if b['every'] > 1: chart.band(xs, b['low'], b['high'], 's1')
    chart.line(xs, b['loss'], 's1')
    chart.line([x for x, _ in valid], [row.get('loss') for _, row in valid], 's2 dotted')
    _hover(chart, xs, b['loss'], b.get('lr'))
    titles = [f"epoch {row['epoch'] + 1}: validation loss {short(row.get('loss'), 4)}" for _, row in valid]
    chart.dots([x for x, _ in valid], [row.get('loss') for _, row in valid], 's2', titles)
    about = f"{_from_to('Training loss', b['loss'])} over {plural(b['batches'], 'batch', 'batches')}."
    if valid: about += f" {_from_to('Validation loss', [row.get('loss') for _, row in valid])}."
    of_each = f"mean and range of every {b['every']} batches" if b['every'] > 1 else 'of every batch'
    return dict(title='Loss', about=of_each, legend=[TRAIN, VALID] if valid else [TRAIN],
                svg=chart.markup(f'{name}-loss', 'Loss over the batches', about))


def _hover(chart: Chart, xs: list[float], losses: list, rates: list | None) -> None:
    "Titles for the columns of a chart, at most `MOST_HOVERS`."
    at = range(0, len(xs), -(-len(xs)//MOST_HOVERS))
    rate = [f', lr {short(rates[i])}' if rates else '' for i in at]
    chart.hover([xs[i] for i in at], [f'batch {math.floor(xs[i]):,}: loss {short(losses[i], 4)}{r}'
                                      for i, r in zip(at, rate, strict=True)])


def _from_to(what: str, values: Sequence[float | None]) -> str:
    found = finite(values)
    if not found: return f'{what}: no finite value'
    return f'{what} from {short(found[0])} to {short(found[-1])}, lowest {short(min(found))}'


def _epochs(run: Run, metric: str, name: str) -> dict[str, Any]:
    "A metric over the epochs, in training and validation."
    series = []
    for phase, (kind, words) in (('train', TRAIN), ('eval', VALID)):
        rows = [row for row in run.rows(phase) if _is_number(row.get(metric))]
        if rows: series.append((kind, words, [row['epoch'] + 1 for row in rows], [row[metric] for row in rows]))
    return epochs_figure(metric, series, f'{name}-m{run.metrics.index(metric)}')


def _is_number(v: Any) -> bool: return isinstance(v, int | float)


def epochs_figure(metric: str, series: list[tuple], name: str) -> dict[str, Any] | None:
    "Lines over the epochs, each with its class, words, epochs and values; None without any."
    if not series: return None
    values = [v for *_, ys in series for v in ys]
    epochs = [x for *_, xs, _ in series for x in xs]
    chart = Chart(Axis(min(epochs) - .2, max(epochs) + .2, 0, 0, 'epoch', whole=True), _epochs_axis(metric, values))
    for kind, _, xs, ys in series: chart.line(xs, ys, kind)
    for kind, words, xs, ys in series:
        titles = [f'{words}, epoch {x}: {metric} {short(y, 4)}' for x, y in zip(xs, ys, strict=True)]
        chart.dots(xs, ys, kind.split()[0], titles, 3.5 if len(xs) <= 60 else 1.5)
    about = ' '.join(f'{_from_to(words, ys)}.' for _, words, _, ys in series)
    how = 'after each epoch' + ', logarithmic'*chart.y.log
    return dict(title=metric[:1].upper() + metric[1:], about=how, legend=[s[:2] for s in series],
                svg=chart.markup(name, f'{metric} over the epochs', about))


def _epochs_axis(metric: str, values: list[float]) -> Axis:
    "The axis of a metric; a logarithmic one for losses of very different size, as of runs of which one exploded."
    found = finite(values)
    if metric == 'loss' and found and min(found) > 0 and max(found) > FAR_APART*min(found):
        return Axis(min(found)/1.2, max(found)*1.2, 0, 0, log=True)
    return Axis(*(loss_span(values) if metric == 'loss' else span(values)), 0, 0)


def _rates(run: Run, name: str) -> dict[str, Any]:
    b = run.batches
    xs = [min((i + 1)*b['every'], b['batches']) - 0.5 for i in range(len(b['lr']))]  # that of the last batch
    chart = Chart(Axis(0, b['batches'], 0, 0, 'batch', whole=True), Axis(*span(b['lr'], zero=True), 0, 0))
    if len(b['ends']) <= 40: chart.marked(b['ends'][:-1], 'epoch')
    chart.line(xs, b['lr'], 's3')
    _hover(chart, xs, b['loss'], b['lr'])
    found = finite(b['lr'])
    about = f'Starts at {short(found[0])}, is highest at {short(max(found))} and ends at {short(found[-1])}.'
    schedule = run.config.get('schedule')
    return dict(title='Learning rate', about=f'schedule {schedule}' if schedule else 'of every batch', legend=[],
                svg=chart.markup(f'{name}-lr', 'Learning rate over the batches', about))


def _table(run: Run) -> list[Block]:
    "A row for each epoch, and a column for each figure of each phase."
    if not run.history: return []
    names = [nm for nm in [*run.metrics, 'seconds'] if any(nm in row for row in run.history)]
    phases = dict.fromkeys(row['phase'] for row in run.history)
    columns = [(nm, phase) for nm in names for phase in phases if any(nm in row for row in run.rows(phase))]
    found = {(row['epoch'], row['phase']): row for row in run.history}
    rows = [[Cell(str(epoch + 1)), *(_figure(found.get((epoch, phase), {}).get(nm)) for nm, phase in columns)]
            for epoch in sorted({epoch for epoch, _ in found})]
    words = dict(train='training', eval='validation')
    head = ['epoch', *(f'{nm}, {words.get(phase, phase)}' for nm, phase in columns)]
    return [table('Figures of every epoch', head, rows,
                  '' if len(rows) <= OPEN_ROWS else f'All figures of {plural(len(rows), "epoch")}')]


def _figure(v: Any) -> Cell: return number(v) if _is_number(v) else shown(v)
