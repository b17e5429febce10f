"Several runs side by side: their results, their curves in one picture, and the options in which they differ."
from collections.abc import Sequence
from typing import Any

from miniai.report.blocks import Cell, Section, figures, number, shown, table, text, time_of
from miniai.report.curves import epochs_figure
from miniai.report.record import STATES, Run
from miniai.report.story import best, figure, seconds_of, sign

__all__ = ['comparison']

MOST_LINES = 8  # runs in one picture, as many as there are colors


def comparison(runs: Sequence[Run]) -> list[Section]:
    "Sections that compare runs."
    names = _names(runs)
    metrics = list(dict.fromkeys(nm for run in runs for nm in run.metrics if best(run, nm)))
    metrics.sort(key=lambda nm: nm == 'loss')
    return [Section('compared', 'Side by side', [_results(runs, names, metrics), *_curves(runs, names, metrics)]),
            Section('differences', 'What differs', [
                _differences('Options', [run.config for run in runs], names),
                _differences('Environment', [_environment(run) for run in runs], names)])]


def _names(runs: Sequence[Run]) -> list[str]:
    "A name for each run; those with the same name get a number."
    names = [run.name for run in runs]
    return [nm if names.count(nm) == 1 else f'{nm} ({i})' for i, nm in enumerate(names, 1)]


def _results(runs: Sequence[Run], names: list[str], metrics: list[str]) -> Any:
    tops = {nm: [row[nm] if (row := best(run, nm)) else None for run in runs] for nm in metrics}
    winners = {nm: _winners(nm, vs, [_task(run) for run in runs]) for nm, vs in tops.items()}
    rows = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        cells = [_marked(figure(nm, tops[nm][i]), i in winners[nm]) for nm in metrics]
        done = 1 + max((row['epoch'] for row in run.rows('train')), default=-1)
        rows.append([name, STATES[run.state], *cells, number(done), time_of(seconds_of(run)), _verdicts(run)])
    return table('Best values of each run', ['run', 'state', *metrics, 'epochs', 'time in epochs', 'verdicts'], rows)


def _task(run: Run) -> str:
    "What two runs must share for their figures to be compared: the loss and the data of validation."
    return str([run.model.get('loss'), *(run.data.get(nm) for nm in ('source', 'kind', 'valid', 'classes'))])


def _winners(metric: str, values: list[float | None], tasks: list[str]) -> set[int]:
    "The places of the best values of each task that two runs or more have."
    found = set()
    for task in set(tasks):
        of = {i: v for i, (v, t) in enumerate(zip(values, tasks, strict=True)) if t == task and v is not None}
        if len(of) < 2: continue
        top = (max if sign(metric) > 0 else min)(of.values())
        found |= {i for i, v in of.items() if v == top}
    return found


def _verdicts(run: Run) -> str:
    found = run.health.get('verdicts')
    if not isinstance(found, list): return '—'
    return ', '.join(dict.fromkeys(str(v.get('name')) for v in found if isinstance(v, dict))) or 'none'


def _marked(cell: Cell, wins: bool) -> Cell:
    return Cell(f'{cell.text} ★', cell.value) if wins and cell.value is not None else cell


def _curves(runs: Sequence[Run], names: list[str], metrics: list[str]) -> list[Any]:
    drawn = []
    for i, metric in enumerate(metrics):
        series = []
        for k, (run, name) in enumerate(zip(runs[:MOST_LINES], names, strict=False), 1):
            rows = [r for r in run.rows('eval') or run.rows('train') if isinstance(r.get(metric), int | float)]
            if rows: series.append((f's{k}', name, [r['epoch'] + 1 for r in rows], [r[metric] for r in rows]))
        drawn.append(epochs_figure(metric, series, f'all-{i}'))
    blocks = [figures(*drawn)] if any(drawn) else []
    if len(runs) > MOST_LINES: blocks.append(text(f'The pictures show the first {MOST_LINES} runs.'))
    return blocks


def _differences(caption: str, found: Sequence[dict[str, Any]], names: list[str]) -> Any:
    "A table of the keys whose values differ."
    keys = dict.fromkeys(k for one in found for k in one)
    differ = [k for k in keys if any(one.get(k) != found[0].get(k) for one in found)]
    if not differ: return text(f'{caption}: no differences.' if keys else f'{caption}: nothing was recorded.')
    return table(caption, ['what', *names], [[k, *(_value(one, k) for one in found)] for k in differ])


def _value(found: dict[str, Any], key: str) -> Cell:
    return Cell('—') if key not in found else Cell('(none)') if found[key] == '' else shown(found[key])


def _environment(run: Run) -> dict[str, Any]:
    "What a run depends on beside its options, in one level, without its command."
    first = run.environments[0] if run.environments else {}
    versions = first.get('versions')
    flat = {k: v for k, v in first.items() if k not in ('versions', 'command', 'data') and not isinstance(v, dict)}
    return flat | (versions if isinstance(versions, dict) else {})
