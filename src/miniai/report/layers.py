"The layers of a run over time: a row for each, with a small line and the last value of everything that was recorded."
from typing import Any

from miniai.report.blocks import Block, Cell, Section, percent, plural, table, text
from miniai.report.record import Run
from miniai.report.scales import finite, short
from miniai.report.svg import sparkline

__all__ = ['layers']

MOST_ROWS, MOST_POINTS = 80, 60
LAYERS = {  # what HealthCB records of layers, and whether it is a share, or drawn on a logarithmic scale
    'mean': ('mean', ''), 'std': ('spread', ''), 'near_zero': ('near zero', 'share'),
    'saturated': ('saturated', 'share'), 'gradient': ('gradient', 'log')}
PARAMETERS = {'norm': ('norm', ''), 'gradient': ('gradient', 'log'), 'update': ('update / weight', 'log')}


def layers(run: Run, name: str) -> Section:
    "The section about layers, from what HealthCB recorded."
    section = Section('layers', 'Layers over time')
    records = run.health.get('records') or {}
    batches = records.get('batches') or []
    if not batches:
        section.blocks.append(text('Nothing was recorded about the layers: HealthCB does it.'))
        return section
    section.blocks.append(text(f"Sampled {plural(len(batches), 'time')}, from batch {batches[0]:,} to {batches[-1]:,}. "
                               'The line goes over the whole run, and the number is the last one.'))
    section.blocks += _of('Activations and their gradients', records.get('layers') or {}, LAYERS, batches)
    section.blocks += _of('Parameters', records.get('parameters') or {}, PARAMETERS, batches)
    return section


def _of(caption: str, found: dict[str, dict[str, Any]], columns: dict[str, tuple[str, str]],
        batches: list[int]) -> list[Block]:
    if not found: return []
    there = {nm: column for nm, column in columns.items() if any(finite(one.get(nm) or ()) for one in found.values())}
    rows = [[nm + (f" ({one['kind']})" if one.get('kind') else ''),
             *(_cell(one.get(column) or [], batches, how) for column, (_, how) in there.items())]
            for nm, one in list(found.items())[:MOST_ROWS]]
    blocks = [table(caption, ['layer' if columns is LAYERS else 'parameter', *(words for words, _ in there.values())],
                    rows, kind='sparks')]
    if len(found) > MOST_ROWS: blocks.append(text(f'{len(found) - MOST_ROWS:,} more are in health.json.'))
    return blocks


def _cell(values: list[float | None], batches: list[int], how: str) -> Cell:
    step = max(1, -(-len(values)//MOST_POINTS))
    kept = sorted({*range(0, len(values), step), len(values) - 1}) if values else []
    drawing = sparkline([batches[i] for i in kept if i < len(batches)], [values[i] for i in kept], log=how == 'log')
    last = values[-1] if values else None
    cell = percent(last) if how == 'share' else Cell(short(last), last)
    return Cell(cell.text, last, drawing)
