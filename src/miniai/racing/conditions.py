"What a race was: its configurations, the code of its rules, its protocol and machine, and how to repeat it."
import shlex
from typing import Any

from miniai.racing.answer import PROTOCOL, Answer
from miniai.report import story
from miniai.report.blocks import (
    Block,
    Cell,
    Section,
    commands,
    facts,
    folded,
    number,
    percent,
    plural,
    shown,
    table,
    text,
)

__all__ = ['configurations', 'machine', 'protocol', 'repeat', 'sources']

MOST_CODE = 30_000  # characters of a file


def configurations(answer: Answer) -> Section:
    "A table for each rule: a row for each configuration, and what it came to on each task at each length."
    n = sum(map(len, answer.tuned.values()))
    return Section('configurations', 'Every configuration', [
        text('What every configuration came to on the tuning part. ★ marks those that were compared.'),
        folded(f'{plural(n, "run")} of tuning', (_tuned(answer, nm) for nm in answer.rules))])


def _tuned(answer: Answer, nm: str) -> Block:
    "Rows are points of one sequence; what differs between tasks, such as rates with factors, is beside the figure."
    points = list(zip(*(answer.tuned[where, nm] for where in answer.cells), strict=True))
    hypers = list(dict.fromkeys(k for runs in points for r in runs for k in r['config']))
    shared = [k for k in hypers if all(r['config'].get(k) == runs[0]['config'].get(k) for runs in points for r in runs)]
    best = [answer.runs[where, nm][0]['config'] for where in answer.cells]
    rows = [[str(i), *(shown(runs[0]['config'].get(k)).text for k in shared),
             *(_came_to(r, shared, r['config'] == chosen) for r, chosen in zip(runs, best, strict=True))]
            for i, runs in enumerate(points, 1)]
    return table(nm, ['no.', *shared, *(f'{task}, {steps:,}' for task, steps in answer.cells)], rows,
                 kind='numbered')


def _came_to(run: dict[str, Any], shared: list[str], best: bool) -> Cell:
    x = run['result']['final']
    where = ', '.join(f'{k} {shown(v).text}' for k, v in run['config'].items() if k not in shared)
    words = ('failed' if x is None else number(x).text) + (where and f' at {where}') + ' ★'*best
    return Cell(words.replace(' ', '\u00a0'))


def sources(answer: Answer) -> Section:
    "The code of the rules; those of the library have a name only."
    files, named = {}, []
    for nm, rule in answer.record['rules'].items():
        title, _, code = rule['code'].partition('\n')
        if ' ' in title: title, code = nm, rule['code']  # the source of a rule that is in no file
        if code: files.setdefault(code, []).append(f'{nm} ({title})' if title != nm else nm)
        else: named.append(f'{nm} ({title})' if title != nm else nm)
    blocks = [folded(', '.join(names), [commands({plural(len(code), 'character'): _cut(code)})])
              for code, names in files.items()]
    versions = answer.record['machine']['versions']
    if named: blocks.append(text(f"Rules of miniai {versions.get('miniai-torch')} or torch {versions.get('torch')}, by "
                                 f"name: {', '.join(named)}."))
    return Section('rules', 'The code of the rules', blocks)


def _cut(code: str) -> str:
    return code if len(code) <= MOST_CODE else f'{code[:MOST_CODE]}\n… race.json has the rest'


def protocol(answer: Answer) -> Section:
    "What was done, on which tasks, with which spaces."
    p, rules = answer.record['protocol'], answer.record['rules']
    hypers = list(dict.fromkeys(k for rule in rules.values() for k in rule['space']))
    return Section('protocol', 'Protocol', [
        text(PROTOCOL.format(**p)),
        facts({'configurations of each rule': p['trials'], 'seeds of the comparison': p['seeds'],
               'lengths, as shares of the steps': p['lengths'], 'seed': p['seed'],
               'chance of one or more false verdicts': percent(p['alpha'], 0)}),
        facts({nm: _task(t) for nm, t in answer.record['tasks'].items()}),
        table('Spaces that were tuned', ['rule', *hypers],
              [[nm, *(_space(rule['space'].get(k)) for k in hypers)] for nm, rule in rules.items()])])


def _task(task: dict[str, Any]) -> str:
    return f"{task['about'] or 'a task'}; {task['figure']}, {task['steps']:,} steps"


def _space(values: Any) -> Cell:
    "A range, values to choose from, or one value."
    if not isinstance(values, dict): return shown(values)
    return Cell(f"{number(values['low'], 3).text} to {number(values['high'], 3).text}")


def machine(answer: Answer) -> Section:
    "Where the race ran, and with which versions."
    m = answer.record['machine']
    return Section('machine', 'Machine and versions', [facts(story.machine(m) | m['versions'])])


def repeat(answer: Answer) -> Section:
    "Commands that repeat the race, or its verdict."
    return Section('repeat', 'Repeat it', [commands({
        'The verdict again, from the runs alone': 'miniai race --verdict race.json',
        **({'The same race again': command} if (command := _command(answer)) else
           {'The same race again, in Python': _call(answer)})})])


def _given(answer: Answer) -> list[list[tuple[str, str | None]]]:
    "Entrants, baselines and tasks: the name of each, and what a command calls it."
    r, p = answer.record, answer.record['protocol']
    return [[(nm, r[kind][nm].get('given')) for nm in names] for kind, names in (
        ('rules', p['entrants']), ('rules', p['baselines']), ('tasks', p['tasks']))]


def _command(answer: Answer) -> str:
    "The command of the race; '' if it was started from Python with what no option can name."
    p = answer.record['protocol']
    entrants, baselines, tasks = ([given for _, given in found] for found in _given(answer))
    if not all([*entrants, *baselines, *tasks]): return ''
    return shlex.join(['miniai', 'race', *entrants, '--baselines', ','.join(baselines), '--task', ','.join(tasks),
                       '--compare', p.get('compare', 'all'),
                       *(['--lengths', ','.join(map(str, p['lengths']))] if p['lengths'] != [.25, 1.] else []),
                       '--trials', str(p['trials']), '--seeds', str(p['seeds']),
                       '--seed', str(p['seed'])])


def _call(answer: Answer) -> str:
    "The call of the race. Rules and tasks that were objects have their names."
    p = answer.record['protocol']
    entrants, baselines, tasks = (', '.join(repr(given) if given else nm for nm, given in found)
                                  for found in _given(answer))
    options = {k: p[k] for k in ('trials', 'seeds', 'lengths', 'seed', 'compare') if k in p}
    return f'miniai.race({entrants}, tasks=[{tasks}], baselines=[{baselines}], ' \
           f'{", ".join(f"{k}={v!r}" for k, v in options.items())})'
