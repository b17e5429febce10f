"""Every optimizer of `miniai train` against AdamW on the tasks of `miniai race`: bench/results/race_DATE.md.

    python bench/league.py [--trials 8] [--seeds 8] [--lengths 0.25] [--tasks NAME ...] [--rules NAME ...] [--out DIR]
    python bench/league.py --of league/race.json longer/race.json       # one table of several
    python bench/league.py --quick          # a few minutes: the two smallest tasks; prints and records nothing

Start the same command several times to share the work, one process per core; again after an interruption to resume.
Each rule is compared with AdamW alone, so that few comparisons share the chance of a false verdict. With other numbers,
use another folder."""
import argparse
import tempfile
from statistics import mean, median

import torch

from machine import record
from miniai import race
from miniai.jobs.registry import OPTIMIZERS
from miniai.racing.answer import Answer
from miniai.racing.race import LADDER

BASE = 'adamw'
QUICK = dict(tasks=LADDER[:2], trials=4, seeds=4, lengths=[0.25])
MARKS = {'better': '**{}**', 'worse': '{}✗', 'cannot tell': '{}'}


def row_of(answer, rule, verdicts):
    "A row of the summary: mean rank, how often better and worse than the baseline, and figures."
    mine = [verdicts.get((rule, cell)) for cell in answer.cells]
    figures = [MARKS[v or 'cannot tell'].format(f'{mean(answer.figures[cell][rule]):.4g}')
               for cell, v in zip(answer.cells, mine, strict=True)]
    told = ['', ''] if rule == BASE else [str(mine.count(v)) for v in ('better', 'worse')]
    return [rule, f'{answer.ranks[rule][0]:.1f}', *told, *figures]


def summary(answer):
    "The league as one table, best mean rank first."
    verdicts = {(c['a'], c['cell']): c['verdict'] for c in answer.comparisons}
    p, cells = answer.record['protocol'], [f'{task}, {steps}' for task, steps in answer.cells]
    head = ['rule', 'mean rank', 'better', 'worse', *cells]
    rows = [row_of(answer, nm, verdicts) for nm in sorted(answer.rules, key=lambda nm: answer.ranks[nm][0])]
    figures = ', '.join(f"{nm}: {task['figure']}" for nm, task in answer.record['tasks'].items())
    lines = [head, ['--', *['--:']*(len(head) - 1)], *rows]
    return '\n'.join([
        f"Each rule tried {p['trials']} configurations per task and length; the best one ran with {p['seeds']} other "
        f"seeds. Columns: mean test figures by task and steps, lower is better ({figures}); bold is better and ✗ worse "
        f"than {BASE}, the others cannot be told apart from it, at a level of {p['alpha']:.0%} for all "
        f"{len(answer.comparisons)} comparisons together. Ranks are means over tasks and seeds.\n",
        *('| ' + ' | '.join(line) + ' |' for line in lines)])


def title(answer):
    shares = ' and '.join(f'{share:g}' for share in answer.record['protocol']['lengths'])
    return f"{len(answer.rules)} optimizers, runs of {shares} of the steps"


def command(answer):
    "The command that repeats a race."
    p = answer.record['protocol']
    rules, tasks = sorted(answer.rules, key=[*OPTIMIZERS, *answer.rules].index), p['tasks']
    options = dict(rules=[] if rules == [*OPTIMIZERS] else rules, tasks=[] if tuple(tasks) == LADDER else tasks,
                   trials=[p['trials']], seeds=[p['seeds']], lengths=p['lengths'], seed=[p['seed']]*(p['seed'] != 0))
    words = [f'--{nm} {" ".join(map(str, given))}' for nm, given in options.items() if given]
    return ' '.join(['python bench/league.py', *words])


def seconds(answer):
    "Hours of training in all, and the median milliseconds of a step of the baseline by task."
    steps = [f"{cell[0]} {median(1000*r['result']['seconds']/cell[1] for r in answer.runs[cell, BASE]):.2g}"
             for cell in answer.cells if all(r['result']['seconds'] for r in answer.runs[cell, BASE])]
    hours = sum(r['result']['seconds'] or 0 for r in answer.record['runs'])/3600
    return f"{len(answer.record['runs']):,} runs, {hours:.1f} hours of training; milliseconds of a step of {BASE}: " \
           f"{', '.join(steps)}"


def table(answers):
    "The summaries of races, and then their whole answers."
    return '\n\n'.join([*(f'## {title(a)}\n\n`{command(a)}`\n\n{summary(a)}\n\n{seconds(a)}.' for a in answers),
                        *(f'## {title(a)}: the answer of the race\n\n{a.table()}\n\n{a.costs()}' for a in answers)])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--quick', action='store_true', help='a few minutes, on the smallest tasks')
    ap.add_argument('--rules', nargs='+', choices=OPTIMIZERS, default=list(OPTIMIZERS), metavar='NAME')
    ap.add_argument('--tasks', nargs='+', default=list(LADDER), metavar='NAME')
    ap.add_argument('--trials', type=int, default=8)
    ap.add_argument('--seeds', type=int, default=8)
    ap.add_argument('--lengths', type=float, nargs='+', default=[0.25])
    ap.add_argument('--seed', type=int, default=0)
    ap.add_argument('--threads', type=int, default=1, help='of this process')
    ap.add_argument('--out', default='league', help='the folder of the race')
    ap.add_argument('--of', nargs='+', metavar='FILE', help='the race.json files of finished races, for one table')
    args = ap.parse_args()
    torch.set_num_threads(args.threads)
    if args.of: return recorded([Answer.read(file) for file in args.of])
    options = QUICK if args.quick else {nm: getattr(args, nm) for nm in QUICK}
    answer = race(*(nm for nm in args.rules if nm != BASE), baselines=[BASE], compare='baselines', **options,
                  seed=args.seed, out=tempfile.mkdtemp() if args.quick else args.out,
                  tell=lambda text: print(text, flush=True))
    if args.quick: print(summary(answer))
    else: recorded([answer])


def recorded(answers):
    "Writes the table of these races."
    record('race', table(answers), 'One thread for each process', ['numba', 'scipy'])


if __name__ == '__main__': main()
