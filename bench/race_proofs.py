"""Is a race what it says? Rules of known rank race, and races are killed: bench/results/race_proofs_DATE.md.

    python bench/race_proofs.py [--only NAME ...] [--out DIR] [--save]

same       10 races of AdamW against AdamW with its operations in another order, so that roundings differ
simulated  thousands of races of equal rules, and of rules with a difference that is said to be detectable
worse      AdamW without some of its steps, in races with as many seeds as are said to detect that
untuned    a rule against itself at a rate that is far too low, and against itself tuned
killed     races killed at 50 moments, and resumed
together   10 races, each in two processes at once
broken     rules that fail in five ways, in one race
--out keeps the races and what they prove, so that a second call resumes. A proof that fails ends with an error."""
import argparse
import os
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]/'tests')]

import numpy as np
import torch

import killed_race
import race_rules as rules
from machine import record
from miniai.racing.answer import Answer
from miniai.racing.race import race
from miniai.racing.verdict import compare, compare_all, detectable, seeds_needed

QUIET = dict(tell=lambda text: None)


def table(head, rows):
    return '\n'.join('| ' + ' | '.join(map(str, row)) + ' |' for row in [head, ['--']*len(head), *rows])


def check(holds, text):
    if not holds: raise SystemExit(f'a proof fails: {text}')


# Rules of known rank

def same(out, races=10, tasks=('mlp', 'diffusion'), trials=3, seeds=6):
    "Races of equal rules: in how many is one called better or worse?"
    names = [getattr(task, 'name', task) for task in tasks]
    rows, told, pairs, differ = [], 0, 0, 0
    for seed in range(1, races + 1):
        answer = race(rules.one, rules.other, tasks=tasks, baselines=[], trials=trials, seeds=seeds, lengths=[0.5],
                      seed=seed, out=out/f'same{seed}', **QUIET)
        unequal = [sum(a != b for a, b in zip(answer.figures[cell]['one'], answer.figures[cell]['other'], strict=True))
                   for cell in answer.cells]
        verdicts = [c['verdict'] for c in answer.comparisons]
        tuned = sum(answer.runs[cell, 'one'][0]['config'] != answer.runs[cell, 'other'][0]['config']
                    for cell in answer.cells)
        told += any(v != 'cannot tell' for v in verdicts)
        pairs, differ = pairs + seeds*len(answer.cells), differ + sum(unequal)
        rows.append([seed, *(f'{n} of {seeds}, p {c["p"]:.2g}, {c["verdict"]}' for n, c in
                             zip(unequal, answer.comparisons, strict=True)), tuned])
        print(*rows[-1], sep=' | ', flush=True)
    return table(['--seed', *(f'{task}: seeds whose figures differ, p, verdict' for task in names),
                  'tasks on which another configuration was chosen'], rows) + \
        f'\n\nIn {told} of {races} races equal rules were told apart; {differ} of {pairs} pairs of figures differ.'


def simulated_race(rng, seeds, effect, cells, noise):
    out = {}
    for cell in range(cells):
        shared = 3*rng.normal(size=seeds)
        a, b = (shared + noise(rng, seeds)/2**.5 for _ in 'ab')
        out[cell] = dict(a=a + effect, b=b)
    return out


NOISE = {'normal': lambda rng, n: rng.normal(size=n), 'exponential': lambda rng, n: rng.exponential(size=n),
         'Cauchy': lambda rng, n: rng.standard_cauchy(size=n)}


def simulated(out, races=1000, sizes=((5, 2), (8, 2), (12, 2), (20, 2), (10, 42), (11, 42), (12, 42))):
    "False verdicts of equal rules, and the share of detectable differences that is detected."
    rows = []
    for seeds, m in sizes:
        rng, normal = np.random.default_rng(seeds), NOISE['normal']
        found = {nm: sum(any(r['verdict'] != 'cannot tell' for r in
                             compare_all(simulated_race(rng, seeds, 0, m, noise), [('a', 'b')]))
                         for _ in range(races)) for nm, noise in NOISE.items() if m == 2}
        for nm, n in found.items(): check(n/races <= .05 + 4*(.05*.95/races)**.5, f'{n} false verdicts, {seeds}, {nm}')
        effect = detectable(1., seeds, .05/m, .8)
        right = sum(compare(*simulated_race(rng, seeds, effect, 1, normal)[0].values(), .05, m)['p_alone'] <= .05/m
                    for _ in range(races))
        check(abs(right/races - .8) <= .04 + 4*(.8*.2/races)**.5, f'power {right}, {seeds}, {m}')
        rows.append([seeds, m, *(f'{found[nm]/races:.1%}' if nm in found else '' for nm in NOISE), f'{effect:.2f}',
                     f'{right/races:.1%}'])
        print(*rows[-1], sep=' | ', flush=True)
    return table(['seeds', 'comparisons', *(f'false verdicts, {nm} noise' for nm in NOISE),
                  'difference said to be detectable, in standard deviations', 'detected'], rows) + \
        f'\n\n{races:,} races for each number; stated: at most 5 % of races with a false verdict, and 80 % of single ' \
        f'differences detected at the level of one comparison.'


def skipping(one_in):
    def skips(params, lr, one_in): return rules.skips(params, lr, one_in)
    skips.space = dict(lr=5e-3, one_in=one_in)
    return skips


def worse(out, races=40, pilot=60, task='logistic'):
    "AdamW without some steps: as often detected as said, with the seeds that are said to be needed?"
    options = dict(tasks=[task], trials=1, lengths=[0.25], **QUIET)
    for one_in in (97, 95, 92, 90, 80, 50):  # the later, the less is lost: the rate falls to 0 at step 100
        answer = race(skipping(one_in), baselines=[whole()], seeds=pilot, seed=500, out=out/f'pilot{one_in}', **options)
        c, = answer.comparisons
        needed = seeds_needed(c['difference'], c['spread'], .05, .8)
        seeds = max(5, needed)
        print(f'one step in {one_in}: {c["difference"]:.4g}, {c["spread"]:.4g}, {seeds} seeds', flush=True)
        if seeds <= 30 and c['difference'] > 0: break
    found = Counter(race(skipping(one_in), baselines=[whole()], seeds=seeds, seed=seed, out=out/f'worse{seed}',
                         **options).comparisons[0]['verdict'] for seed in range(1, races + 1))
    check(not found['better'], f'called better: {found}')
    check(found['worse']/races >= .8 - 3*(.8*.2/races)**.5, f'detected too rarely: {found}')
    return f"AdamW that leaves out one step in {one_in}, at a fixed rate, on the task {task}: in {pilot} seeds it is " \
           f"worse by {c['difference']:.3g}, with a standard deviation of {c['spread']:.3g} between seeds. The race " \
           f"says that {needed} seeds detect that in 80 % of races. Of {races} races with {seeds} other seeds each, " \
           f"{found['worse']} call it worse ({found['worse']/races:.0%}), {found['better']} better, and " \
           f"{found['cannot tell']} cannot tell.\n\n{shifted(answer)}"


def shifted(answer, draws=2000):
    "The real differences of a race, moved so that their mean is what some seeds are said to detect: do they?"
    figures, shares = answer.figures[answer.cells[0]], []
    d, rng = np.subtract(figures[answer.rules[0]], figures[answer.rules[1]]), np.random.default_rng(0)
    for n in (5, 8, 12):
        a = d - d.mean() + detectable(float(d.std(ddof=1)), n, .05, .8)
        found = Counter(compare_all(dict(cell=dict(a=rng.choice(a, n, replace=False), b=[0.]*n)), [('a', 'b')])[0]
                        ['verdict'] for _ in range(draws))
        check(found['worse']/draws >= .8 - 4*(.8*.2/draws)**.5, f'detected too rarely: {found}, {n} seeds')
        shares.append(f'{n} seeds {found["worse"]/draws:.0%}')
    return f'The {len(d)} real differences, moved so that their mean is the amount that n seeds are said to detect ' \
           f'in 80 % of races, were called worse in {draws:,} draws of n of them by {", ".join(shares)}.'


def whole():
    def every_step(params, lr): return rules.skips(params, lr, 0)
    every_step.space = dict(lr=5e-3)
    return every_step


def untuned(out, tasks=('mlp', 'diffusion'), trials=6, seeds=8):
    "The verdict on a baseline at a wrong rate, and on the same one tuned, against a rule that is no better."
    rows = []
    for new, bad, name in ((rules.one, rules.untuned_adamw, 'adamw'),
                           (rules.nesterov_again, rules.untuned_nesterov, 'nesterov')):
        for baseline, how in ((bad, f"one rate, {bad.space['lr']:g}"), (name, 'tuned, as the new rule')):
            answer = race(new, tasks=tasks, baselines=[baseline], trials=trials, seeds=seeds, lengths=[0.25],
                          out=out/f'untuned {name} {how[:3]}', **QUIET)
            for c in answer.comparisons:
                said = dict(better='worse', worse='better').get(c['verdict'], 'cannot be told apart')
                check((said == 'worse') == (baseline is bad), f'{name}, {how}: {said}')
                rows.append([name, how, f"{c['cell'][0]}, {c['cell'][1]} steps",
                             f"{np.mean(answer.figures[c['cell']][c['b']]):.4g}",
                             f"{np.mean(answer.figures[c['cell']][c['a']]):.4g}", f"{c['p']:.2g}", said])
                print(*rows[-1], sep=' | ', flush=True)
    return table(['baseline', 'its rates', 'task', 'its figure', 'figure of the new rule', 'p',
                  'verdict on the baseline'], rows) + \
        '\n\nThe new rule is the baseline itself, with its operations in another order: it is no better.'


# Races that are interrupted

def child(folder, last=0, part='racing'):
    "A race of a moment in a forked process, killed at its line `last` in files whose path has `part`: how it ended."
    pid = os.fork()
    if not pid:
        ended = 1
        try:
            killed_race.run(folder, last, part)
            ended = 0
        finally: os._exit(ended)
    return pid


def ended(pid): return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
def result(folder): return Answer.read(folder/'race.json').table()


def killed(out, moments=50):
    "Races killed at lines spread over their whole course, resumed: the table, and runs that were made twice."
    killed_race.run(out/'warm')  # so that the processes below need not compile
    folder = out/'uninterrupted'
    check(ended(child(folder, -1)) == 0, 'a race ends with an error')
    whole, runs, lines = result(folder), len(killed_race.executed(folder)), killed_race.lines_of(folder)
    places, twice, finished = Counter(), 0, []
    lines = {part: lines[part] for part in killed_race.PARTS}
    for k in range(moments):
        part = [*lines][k % len(lines)]
        folder, last = out/f'killed{k}', max(1, round((k + .5)/moments*lines[part]))
        code = ended(child(folder, last, part))
        check(code == -signal.SIGKILL, f'the race was not killed at line {last} in {part}: {code}')
        finished.append(len([*(folder/'trials').glob('*.json')]) if (folder/'trials').exists() else 0)
        place = (folder/'killed').read_text()
        places[place if place.startswith('store.') else place.partition('.')[0]] += 1
        check(ended(child(folder)) == 0, f'the race killed at line {last} in {part} does not resume')
        check(result(folder) == whole, f'another table after a kill at line {last} in {part}')
        again = len(killed_race.executed(folder)) - runs
        check(0 <= again <= 1, f'{again} runs more after a kill at line {last} in {part}')
        twice += again
    spread = ', '.join(f'{sum(a <= n < b for n in finished)} with {a} to {min(b, runs + 1) - 1}'
                       for a, b in ((0, 1), (1, 5), (5, 10), (10, 15), (15, runs + 1)))
    where = ', '.join(f'{nm} {n}' for nm, n in places.most_common())
    return f'{moments} of {moments} races of {runs} runs that were killed with SIGKILL gave, resumed, the table of ' \
           f'an uninterrupted race to the last digit. {twice} runs were begun twice: those in which the process ' \
           f'was killed. Finished runs at the kill: {spread}. Killed in: {where}.'


def together(out, times=10):
    "Races in two processes at once: the tables, and runs that were made twice."
    alone, shares = None, []
    for k in range(times + 1):
        folder = out/f'together{k}'
        pids = [child(folder) for _ in range(2 if k else 1)]
        check(all(ended(pid) == 0 for pid in pids), 'a process of two ends with an error')
        if not k: alone, runs = result(folder), len(killed_race.executed(folder))
        check(result(folder) == alone, 'two processes make another table')
        made = killed_race.executed(folder)
        check(len(made) == len({run for _, run in made}) == runs, 'a run was made twice')
        if k: shares.append(min(sum(int(pid) == each for pid, _ in made) for each in pids))
    return f'{times} of {times} races of {runs} runs in two processes at once gave the table of one process, and ' \
           f'made no run twice. The process with fewer runs made {min(shares)} to {max(shares)} of them.'


def broken(out, tasks=('logistic',)):
    "Rules that fail in a race with one that does not: what is said of them."
    answer = race(*rules.FAIL, rules.needs_1000, tasks=list(tasks), baselines=['nesterov'], trials=4, seeds=5,
                  lengths=[0.25], out=out/'broken', **QUIET)
    cell, rows = answer.cells[0], []
    for nm in answer.rules:
        runs = [r for r in answer.record['runs'] if r['rule'] == nm]
        failed = [r['result']['failed'] for r in runs if r['result']['failed']]
        c = next((c for c in answer.comparisons if (c['a'], c['b']) == (nm, 'nesterov')), dict(verdict=''))
        rows.append([nm, f'{len(failed)} of {len(runs)}', failed[0].split(' (')[0].split('. ')[0] if failed else '',
                     f'{np.mean(answer.figures[cell][nm]):.4g}',
                     f"{answer.runs[cell, nm][0]['config']['lr']:.3g}", c['verdict']])
    check([row[1] for row in rows[:5]] == ['9 of 9']*4 + ['0 of 9'], str(rows))
    return table(['rule', 'failed', 'the first failure', 'figure', 'tuned to', 'against nesterov'], rows)


PROOFS = dict(same=same, simulated=simulated, worse=worse, untuned=untuned, killed=killed, together=together,
              broken=broken)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--only', nargs='+', choices=PROOFS, default=list(PROOFS), metavar='NAME')
    ap.add_argument('--out', type=Path, help='keep the races in this folder')
    ap.add_argument('--save', action='store_true', help='write bench/results/race_proofs_DATE.md')
    args = ap.parse_args()
    torch.set_num_threads(1)
    out = args.out or Path(tempfile.mkdtemp())
    for nm in sorted(args.only, key=lambda nm: nm not in ('killed', 'together')):  # forks come before threads
        file, proof = out/f'{nm}.md', PROOFS[nm]
        if not file.exists():
            out.mkdir(exist_ok=True)
            found = proof(out)
            file.write_text(f'## {nm}: {proof.__doc__}\n\n{found}')
        print(file.read_text() + '\n', flush=True)
    text = '\n\n'.join((out/f'{nm}.md').read_text() for nm in args.only)
    if args.save: record('race_proofs', text, 'one thread', ['scipy', 'filelock'])


if __name__ == '__main__': main()
