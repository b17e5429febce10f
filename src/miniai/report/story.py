"The sections of one run that are facts and tables: result, verdicts, time, data, model, options, commands."
import shlex
from bisect import bisect_right
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from miniai.metrics.direction import direction
from miniai.report.blocks import (
    Block,
    Cell,
    Section,
    commands,
    facts,
    number,
    percent,
    shown,
    table,
    text,
    time_of,
)
from miniai.report.curves import curves
from miniai.report.examples import examples
from miniai.report.layers import layers
from miniai.report.record import Run
from miniai.report.svg import bar

__all__ = ['best', 'figure', 'machine', 'sections', 'seconds_of', 'sign']

_FILES = dict(verdicts='health.json', curves='batches.json or metrics.jsonl', layers='health.json', data='data.json',
              examples='results.json', time='profile.json or metrics.jsonl', model='model.json',
              configuration='config.toml', environment='environment.json')
MOST_CLASSES = 100
SMALL = 0.005  # parts of an epoch with a smaller share of its time share a row


def sections(run: Run, name: str) -> list[Section]:
    """All sections of a run. One whose record has unexpected content says so, and `run.problems` too. `name` makes
    identifiers unique on the page."""
    made = [_safely(run, *about, build) for about, build in {
        ('result', 'Result'): lambda: _result(run), ('verdicts', 'Verdicts'): lambda: _verdicts(run),
        ('curves', 'Curves'): lambda: curves(run, name), ('layers', 'Layers over time'): lambda: layers(run, name),
        ('examples', 'Examples and mistakes'): lambda: examples(run, name),
        ('time', 'Where the time went'): lambda: _time(run), ('data', 'Data'): lambda: _data(run),
        ('model', 'Model'): lambda: _model(run), ('configuration', 'Configuration'): lambda: _configuration(run),
        ('environment', 'Environment'): lambda: _environment(run), ('repeat', 'Repeat it'): lambda: _repeat(run),
    }.items()]
    return made


def _safely(run: Run, name: str, title: str, build: Callable[[], Section]) -> Section:
    try: return build()
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as e:
        file = _FILES.get(name, 'metrics.jsonl')
        run.problems.append(f'{file} has unexpected content for {title!r}: {type(e).__name__}: {e}')
        return Section(name, title, [text('This part of the record is damaged.', 'warning')])


def sign(metric: str) -> int:
    "1 if higher is better, -1 if lower is, as far as the name says."
    try: return direction(metric)[1]
    except ValueError: return -1


def best(run: Run, metric: str) -> dict[str, Any] | None:
    "The row of the history with the best value in validation, or in training without validation."
    rows = [row for row in run.rows('eval') or run.rows('train') if isinstance(row.get(metric), int | float)]
    return max(rows, key=lambda row: sign(metric)*row[metric]) if rows else None


def figure(metric: str, value: Any) -> Cell:
    "A metric as text: an accuracy as a percentage."
    if not isinstance(value, int | float): return shown(value)
    as_percent = metric.rsplit('_', 1)[-1] in ('accuracy', 'acc') and 0 <= value <= 1
    return percent(value, 2) if as_percent else number(value)


def seconds_of(run: Run) -> float | None:
    "The seconds of all recorded epochs."
    found = [row['seconds'] for row in run.history if isinstance(row.get('seconds'), int | float)]
    return sum(found) if found else None


def _result(run: Run) -> Section:
    items, phase = [], 'validation' if run.rows('eval') else 'training'
    last = (run.rows('eval') or run.rows('train') or [{}])[-1]
    for metric in sorted(run.metrics, key=lambda nm: nm == 'loss'):
        if not isinstance(last.get(metric), int | float): continue
        top = best(run, metric)
        note = f"best {figure(metric, top[metric]).text} in epoch {top['epoch'] + 1}"
        if top is last: note = 'the best epoch'
        items.append(dict(name=f'{phase} {metric}', cell=figure(metric, last[metric]), note=note))
    done, planned = 1 + max((row['epoch'] for row in run.rows('train')), default=-1), run.status.get('epochs')
    items.append(dict(name='epochs', cell=number(done), note=f'of {planned:,}' if planned not in (None, done) else ''))
    if (seconds := seconds_of(run)) is not None:
        items.append(dict(name='time in epochs', cell=time_of(seconds), note='training and validation'))
    if run.model.get('parameters'):
        items.append(dict(name='parameters', cell=number(run.model['parameters']), note=run.model.get('name', '')))
    blocks = [] if run.history else [text('No epoch was finished.', 'warning')]
    if resumed := _resumed(run): blocks.append(text(f"Resumed {', '.join(resumed)}."))
    if run.status.get('error'): blocks.append(text(f"It ended with {run.status['error']}", 'error'))
    return Section('result', 'Result', [Block('result', dict(items=items)), *blocks])


def _resumed(run: Run) -> list[str]:
    "In words, where each process after the first one continued the run."
    ends, found = run.batches.get('ends') or [], []
    for n in (e['resumed_at'] for e in run.environments[1:] if isinstance(e.get('resumed_at'), int)):
        done = bisect_right(ends, n)
        where = f'after epoch {done}' if done and ends[done - 1] == n else f'in epoch {done + 1}'
        found.append(f'at batch {n:,}, {where}' if n else 'from the start, without a checkpoint')
    return found


def _verdicts(run: Run) -> Section:
    found, checked = run.health.get('verdicts'), run.health.get('checked') or []
    if found is None: blocks = [text('Nothing was checked: HealthCB records what verdicts need.')]
    else: blocks = [Block('verdicts', dict(verdicts=[_verdict(v) for v in found]))] if found else []
    checked = [nm for nm in checked if nm not in {v['name'] for v in found or ()}]
    if checked:
        words = 'Also checked' if found else 'Nothing found. Checked'
        blocks.append(text(f"{words}: {', '.join(map(str, checked))}.", 'note' if found else 'good'))
    return Section('verdicts', 'Verdicts', blocks)


def _verdict(v: dict[str, Any]) -> dict[str, Any]:
    since = f"since batch {v['since']:,}" if isinstance(v.get('since'), int) else v.get('since')
    sure = v.get('certain')
    if isinstance(sure, int | float) and not isinstance(sure, bool): sure = f'certain to {sure:.0%}'
    return dict(name=v['name'], where=v.get('where'), says=v['says'], do=v.get('do'), source=v.get('source'),
                details=[shown(x) for x in (since, sure) if x], value=shown(v.get('value')),
                threshold=shown(v.get('threshold')))


def _time(run: Run) -> Section:
    by_phase = {phase: sum(row['seconds'] for row in run.rows(key) if isinstance(row.get('seconds'), int | float))
                for phase, key in (('training', 'train'), ('validation', 'eval'))}
    whole = sum(by_phase.values())
    if not whole: return Section('time', 'Where the time went', [text('No epoch was finished.')])
    total = run.status.get('seconds') if len(run.environments) < 2 else None
    if total and total > whole: by_phase['start, checkpoints and the rest'], whole = total - whole, total
    rows = [[what, time_of(s), _share(s/whole)] for what, s in by_phase.items()]
    blocks = [table('Time by phase', ['phase', 'time', 'share'], rows, kind='sparks')]
    for phase in dict.fromkeys(row['phase'] for row in run.profile):
        parts = [r for r in run.profile if r['phase'] == phase]
        rows = [[r['part'], time_of(r['seconds']), number(r['ms_per_batch'], 3, unit='ms'), _share(r['share'])]
                for r in parts if r['share'] >= SMALL]
        small = [r for r in parts if r['share'] < SMALL]
        seconds, ms, share = (sum(r[nm] for r in small) for nm in ('seconds', 'ms_per_batch', 'share'))
        if small: rows.append([f'{len(small)} others, less than {SMALL:.1%} each', time_of(seconds),
                               number(ms, 3, unit='ms'), _share(share)])
        blocks.append(table(f'Parts of {"training" if phase == "train" else "validation"}',
                            ['part', 'time', 'per batch', 'share'], rows, kind='sparks'))
    if run.profile and len(run.environments) > 1: blocks.append(text('The parts are those of the last process.'))
    if not run.profile: blocks.append(text('The parts of a batch are measured with --profile, or by ProfileCB.'))
    return Section('time', 'Where the time went', blocks)


def _share(share: float) -> Cell: return Cell(percent(share).text, share, bar(share))


def _data(run: Run) -> Section:
    d = run.data
    if not d: return Section('data', 'Data', [text('Nothing was recorded about the data.')])
    classes, counts = d.get('classes') or [], d.get('counts') or {}
    blocks = [facts({'source': d.get('source') or run.config.get('data'), 'training samples': d.get('train'),
                     'validation samples': d.get('valid'), 'batch size': d.get('batch_size'),
                     'shape of a sample': ' x '.join(map(str, d['shape'])) if d.get('shape') else None,
                     'classes': len(classes) or None, 'kind': d.get('kind')})]
    if counts:
        most = max(max(column) for column in counts.values()) or 1
        rows = [[nm, *(Cell(f'{column[i]:,}', column[i], bar(column[i]/most)) for column in counts.values())]
                for i, nm in enumerate(classes[:MOST_CLASSES])]
        head = ['class', *({'train': 'training', 'valid': 'validation'}.get(nm, nm) for nm in counts)]
        blocks.append(table('Samples of each class', head, rows, 'Samples of each class' if len(rows) > 30 else '',
                            kind='sparks'))
        if len(classes) > MOST_CLASSES: blocks.append(text(f'{len(classes) - MOST_CLASSES:,} more are in data.json.'))
    return Section('data', 'Data', blocks)


def _model(run: Run) -> Section:
    m = run.model
    if not m: return Section('model', 'Model', [text('Nothing was recorded about the model.')])
    blocks = [facts({'network': m.get('name'), 'class': m.get('class'), 'parameters': m.get('parameters'),
                     'of them trained': m.get('trained'), 'optimizer': m.get('optimizer'), 'loss': m.get('loss'),
                     **_step(m.get('step') or {})})]
    if rows := m.get('modules'):
        cells = [[r['name'] or '(the model)', r['type'], ' x '.join(map(str, r['shape'])), number(r['parameters'])]
                 for r in rows]
        folded = f'All {len(rows)} layers with parameters' if len(rows) > 16 else ''
        blocks.append(table('Layers with parameters', ['name', 'layer', 'weight', 'parameters'], cells, folded))
    return Section('model', 'Model', blocks)


def _step(step: dict[str, Any]) -> dict[str, Any]:
    "What one training step takes, as facts."
    parts = {nm: n for nm, n in (step.get('memory') or {}).items() if n is not None}
    memory = ', '.join(f'{nm} {_megabytes(n).text}' for nm, n in parts.items())
    mflops = step.get('mflops')
    count = None if mflops is None else number(mflops, unit='million') if mflops >= 1 else number(round(1e6*mflops))
    return {'multiply-adds per sample': count,
            f"memory of a step with {step.get('samples')} samples": Cell(
                f'{_megabytes(sum(parts.values())).text} ({memory})') if parts else None}


def _megabytes(n: float) -> Cell: return number(n/1e6, 3, unit='MB')


def _configuration(run: Run) -> Section:
    if not run.config: return Section('configuration', 'Configuration', [text('No configuration was recorded.')])
    found = {k: Cell('(none)') if v == '' else shown(v) for k, v in run.config.items()}
    return Section('configuration', 'Configuration', [facts(found)])


def _environment(run: Run) -> Section:
    blocks = []
    for i, e in enumerate(run.environments, 1):
        if not e: continue
        if len(run.environments) > 1: blocks.append(text('The first process' if i == 1 else f'Resumed by process {i}'))
        ended = run.status if i == len(run.environments) else {}
        command = e.get('command')
        blocks.append(facts(machine(e) | {
            'started': ended.get('started'), 'ended': ended.get('ended'),
            'started by': shlex.join(map(str, command)) if isinstance(command, list) else None,
            **dict(e.get('versions') or {})}))
    return Section('environment', 'Environment', blocks or [text('No environment was recorded.')])


def machine(e: dict[str, Any]) -> dict[str, Any]:
    "What an environment says about the machine, by names for readers."
    return {'device': e.get('gpu') or e.get('device'), 'machine': e.get('machine'), 'platform': e.get('platform'),
            'processors': e.get('cpus'), 'threads': e.get('threads'), 'processes': e.get('processes'),
            'Python': e.get('python')}


def _repeat(run: Run) -> Section:
    if run.status.get('from_python') or not run.config:
        words = 'config.toml is missing, so that the run cannot be repeated.'
        if run.config: words = 'The run was started from Python, so that there is no command for it.'
        return Section('repeat', 'Repeat it', [text(words)])
    path, found = shlex.quote(str(run.path)), {}
    if run.state in ('killed', 'stopped'): found['Continue it'] = f'miniai train --resume --out {path}'
    found['The same run again'] = f"miniai train --config {shlex.quote(str(PurePath(run.path)/'config.toml'))}"
    if (run.path/'model.safetensors').is_file():
        found |= {'As a Python script': f'miniai script {path} script.py',
                  'Evaluate the model': f'miniai evaluate {path}',
                  'Use the model in Python': f'import miniai\npredictor = miniai.load({str(run.path)!r})'}
    return Section('repeat', 'Repeat it', [commands(found)])
