"""A ward of sick networks: each fault that HealthCB knows, except shapes that broadcast, planted in three networks and
three tasks, must be found by name, and healthy runs must be silent.

    python bench/ward.py [--half dev | held] [--fault NAME …] [--healthy] [--seeds N] [--keep FILE]

There are two halves. No threshold was chosen by looking at the held-out half: of each fault, the four pairs of network
and task whose numbers in the lists of the fault add up to an odd one, with all seeds, and the last seed of the other
five pairs: 25 of 45 runs. Of the healthy runs each half has its own 30. The seeds of the held-out half begin at FRESH,
which is raised when rules or faults change after that half was looked at, so that its runs are new. A fault counts as
found if a verdict has its name; other verdicts of the same run are listed. A whole run is kept as a table in
bench/results/. With --keep outcomes are added to files of JSON lines, and runs in them are not repeated.
"""
import argparse
import contextlib
import io
import json
import time
import warnings
from collections import Counter
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch

import ward_healthy
from machine import record
from miniai import DataLoaders, TrainLearner
from miniai.diagnosis.health import HealthCB
from miniai.sgd import BatchSchedCB
from ward_faults import FAULTS, Patient
from ward_healthy import FRESH
from ward_networks import TASKS

HALVES = 'development', 'held-out'
SHORT = dict(zip(('dev', 'held'), HALVES, strict=True))
HEALTHY = 'healthy'


class Case(NamedTuple):
    "One run of the ward."
    fault: str
    network: str
    task: str
    seed: int
    half: str
    how: str = ''


def cases(fault, seeds=5):
    "The runs of a fault."
    networks, tasks = FAULTS[fault].networks, FAULTS[fault].tasks
    for (i, network), (j, task), seed in product(enumerate(networks), enumerate(tasks), range(seeds)):
        held = (i + j) % 2 or seed == 4
        yield Case(fault, network, task, seed + FRESH*held, HALVES[held])


def healthy_cases(half):
    for r in ward_healthy.runs(half):
        yield Case(HEALTHY, r.network, r.task, r.seed, half, f'{r.optimizer}, {r.schedule}')


def learner(case):
    "The Learner of a case, and how many epochs it trains."
    if case.fault == HEALTHY:
        return ward_healthy.learner(next(r for r in ward_healthy.runs(case.half) if r.seed == case.seed))
    p = Patient(case.network, TASKS[case.task](case.seed), case.seed)
    if case.fault in FAULTS: FAULTS[case.fault].plant(p)
    dls = DataLoaders(*p.loaders())
    learn = TrainLearner(p.net, dls, p.task.loss_func, p.lr, [*p.cbs, BatchSchedCB(p.schedule)], p.opt_func)
    return learn, max(1, p.steps//len(dls.train))


class Losses:
    "Losses of every training batch, and of every validation."
    def __init__(self): self.train, self.valid, self.parts = [], [], []

    def after_loss(self, learn):
        (self.train if learn.model.training else self.parts).append(learn.loss.item())

    def after_epoch(self, learn):
        if self.parts: self.valid.append(sum(self.parts)/len(self.parts))
        self.parts = []


def run(case, health=HealthCB):
    "A dict of what was found."
    learn, epochs = learner(case)
    cb, losses, error, started = health(quiet=True), Losses(), '', time.perf_counter()
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        try: learn.fit(epochs, cbs=[cb, losses])
        except (ValueError, RuntimeError, IndexError) as e:
            if case.fault == HEALTHY: raise
            error = f'{type(e).__name__}: {e}'.splitlines()[0][:150]
    verdicts = [{k: v if isinstance(v, int | float | None) else str(v) for k, v in found._asdict().items()}
                for found in cb.verdicts]
    return case._asdict() | dict(verdicts=verdicts, checked=[*cb.checked], error=error, train=losses.train,
                                 valid=losses.valid, seconds=time.perf_counter() - started)


def names(outcome): return {v['name'] for v in outcome['verdicts']}
def found(outcome): return outcome['fault'] in names(outcome)


def all_outcomes(todo, keep):
    "Run what is not kept yet; show each."
    lines = [line for file in keep if file.exists() for line in file.read_text().splitlines()]
    known = {case_of(o): o for o in map(json.loads, lines)}
    started = time.perf_counter()
    for i, case in enumerate(todo, 1):
        if case not in known:
            known[case] = outcome = run(case)
            if keep:
                with keep[0].open('a') as f: f.write(json.dumps(outcome) + '\n')
            print(f'{i}/{len(todo)} {time.perf_counter() - started:.0f} s  {shown(outcome)}', flush=True)
        yield known[case]


def case_of(outcome): return Case(*(outcome[nm] for nm in Case._fields))


def shown(o):
    right = not o['verdicts'] if o['fault'] == HEALTHY else found(o)
    where = f'{o["fault"]}: {o["network"]}, {o["task"]}, {o["how"]}{", " if o["how"] else ""}seed {o["seed"]}'
    said = '; '.join(f'{v["name"]} ({brief(v)})' for v in o['verdicts']) or 'silent'
    return f'{"ok  " if right else "MISS"} {where}: {said}' + (f'  [{o["error"]}]' if o['error'] else '')


def brief(verdict):
    value = verdict['value']
    return ': '.join(filter(None, (verdict['where'], f'{value:.3g}' if isinstance(value, int | float) else '')))


def rate(outcomes):
    n, right = len(outcomes), sum(map(found, outcomes))
    return f'{right} of {n} ({right/n:.1%})' if n else '-'


def table(outcomes):
    "Found by name, for each fault and half; what else was said; false alarms of healthy runs."
    lines = ['| fault | development | held-out | verdicts with it |', '|--|--|--|--|']
    sick = [o for o in outcomes if o['fault'] != HEALTHY]
    for fault in FAULTS:
        of = [o for o in sick if o['fault'] == fault]
        also = Counter(nm for o in of for nm in names(o) - {fault})
        others = ', '.join(f'{nm} {n}' for nm, n in also.most_common(4))
        if of: lines.append(f'| {fault} | ' + ' | '.join(rate(in_half(of, h)) for h in HALVES) + f' | {others} |')
    lines.append('| all | ' + ' | '.join(rate(in_half(sick, h)) for h in HALVES) + f' | both halves: {rate(sick)} |')
    for half in HALVES:
        well = [o for o in in_half(outcomes, half) if o['fault'] == HEALTHY]
        if not well: continue
        lines += ['', f'{len(well)} healthy runs, {half}: {sum(len(o["verdicts"]) for o in well)} false alarms, in '
                      f'{sum(bool(o["verdicts"]) for o in well)} runs.', '']
        lines += [f'- {shown(o)}' for o in well if o['verdicts']]
    missed = [o for o in sick if not found(o)]
    if missed: lines += ['', 'Not found by name:', '', *(f'- {shown(o)[5:]}' for o in missed)]
    return '\n'.join(lines)


def in_half(outcomes, half): return [o for o in outcomes if o['half'] == half]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--half', choices=SHORT, help='only the development half, or the held-out one')
    ap.add_argument('--fault', nargs='+', choices=FAULTS, metavar='NAME', help=', '.join(FAULTS))
    ap.add_argument('--healthy', action='store_true', help='only the healthy runs')
    ap.add_argument('--seeds', type=int, default=5, help='of each pair of network and task (%(default)s)')
    ap.add_argument('--keep', type=Path, nargs='+', default=(), metavar='FILE', help='new runs are added to the first')
    args = ap.parse_args()
    torch.set_num_threads(1)
    todo = [] if args.healthy else [c for f in args.fault or FAULTS for c in cases(f, args.seeds)]
    if not args.fault: todo += [c for h in HALVES for c in healthy_cases(h)]
    if args.half: todo = [c for c in todo if c.half == SHORT[args.half]]
    outcomes = [*all_outcomes(todo, args.keep)]
    whole = not (args.half or args.fault or args.healthy or args.seeds != 5)
    if whole: record('ward', table(outcomes), f'{len(outcomes)} runs', ('scikit-learn',))
    else: print(table(outcomes))


if __name__ == '__main__': main()
