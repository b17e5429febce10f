"The layers of a run over time: a row for each, with a small line and the last value of everything that was recorded."
from typing import Any

from miniai.report.blocks import Block, Cell, Section, figures, percent, plural, table, text
from miniai.report.record import Run
from miniai.report.scales import Axis, finite, short
from miniai.report.svg import Chart, sparkline

__all__ = ['layers']

MOST_ROWS, MOST_POINTS = 80, 60
LAYERS = {  # what HealthCB records of layers, and whether it is a share, or drawn on a logarithmic scale
    'mean': ('mean', ''), 'std': ('spread', ''), 'near_zero': ('near zero', 'share'), 'dead': ('dead units', 'share'),
    'saturated': ('saturated', 'share'), 'gradient': ('gradient', 'log')}
PARAMETERS = {'norm': ('norm', ''), 'gradient': ('gradient', 'log'), 'update': ('update / weight', 'log')}
RUN = {'gradient_norm': 'Gradient norm', 'update': 'Update / weight', 'noise_scale': 'Gradient noise scale'}


def layers(run: Run, name: str) -> Section:
    "The section about layers, from what HealthCB recorded."
    section = Section('layers', 'Layers over time')
    records = run.health.get('records') or {}
    batches = records.get('batches') or []
    if not batches:
        section.blocks.append(text('Nothing was recorded about the layers: HealthCB does it.'))
        return section
    section.blocks.append(text(f"{plural(len(batches), 'sampled batch', 'sampled batches')}, from {batches[0]:,} to "
                               f"{batches[-1]:,}. In the tables, the number is that of the last one."))
    of_run = records.get('run') or {}
    drawn = [_of_run(words, of_run.get(nm), batches, f'{name}-run-{nm}') for nm, words in RUN.items()]
    if any(drawn): section.blocks.append(figures(*drawn))
    section.blocks += _of('Activations and their gradients', records.get('layers') or {}, LAYERS, batches)
    section.blocks += _of('Parameters', records.get('parameters') or {}, PARAMETERS, batches)
    return section


def _of(caption: str, found: dict[str, dict[str, Any]], columns: dict[str, tuple[str, str]],
        batches: list[int]) -> list[Block]:
    if not found: return []
    found = {nm: one for nm, one in found.items() if any(finite(one.get(figure) or ()) for figure in columns)}
    there = {nm: column for nm, column in columns.items() if any(finite(one.get(nm) or ()) for one in found.values())}
    rows = [[nm + (f" ({one['kind']})" if one.get('kind') else ''),
             *(_cell(one.get(column) or [], batches, how) for column, (_, how) in there.items())]
            for nm, one in list(found.items())[:MOST_ROWS]]
    blocks = [table(caption, ['layer' if columns is LAYERS else 'parameter', *(words for words, _ in there.values())],
                    rows, kind='sparks')]
    if len(found) > MOST_ROWS: blocks.append(text(f'{len(found) - MOST_ROWS:,} more are in health.json.'))
    return blocks


def _of_run(title: str, values: list[float | None] | None, batches: list[int], name: str) -> dict[str, Any] | None:
    "A figure of the whole model over the sampled batches, on a logarithmic scale; None without two values above 0."
    kept = [(x, y) for x, y in zip(batches, values or (), strict=False) if finite([y]) and y > 0]
    if len(kept) < 2: return None
    xs, ys = zip(*kept, strict=True)
    chart = Chart(Axis(0, batches[-1], 0, 0, 'batch', whole=True), Axis(min(ys)/1.2, max(ys)*1.2, 0, 0, log=True))
    chart.line(xs, ys, 's4')
    chart.dots(xs, ys, 's4', [f'batch {x:,}: {short(y)}' for x, y in kept], 2)
    return dict(title=title, about='logarithmic', legend=[], svg=chart.markup(
        name, f'{title} over the batches', f'From {short(ys[0])} to {short(ys[-1])}.'))


def _cell(values: list[float | None], batches: list[int], how: str) -> Cell:
    step = max(1, -(-len(values)//MOST_POINTS))
    kept = sorted({*range(0, len(values), step), len(values) - 1}) if values else []
    drawing = sparkline([batches[i] for i in kept if i < len(batches)], [values[i] for i in kept], log=how == 'log')
    last = values[-1] if values else None
    cell = percent(last) if how == 'share' else Cell(short(last), last)
    return Cell(cell.text, last, drawing)
