"""What a step of each built-in optimizer costs, beside the fastest of torch.optim, schedulefree, pytorch_optimizer and
heavyball that has the same rule, of Prodigy also its authors', and beside torch's fused AdamW.

    python bench/optim_strong.py [--quick] [--only NAME ...] [--sizes 1M 25M] [--threads N]

Packages that are not installed, and peers that fail, are skipped; the table says which. Each optimizer has a process of
its own, in which it and its peers step in turn, in rotating order, over the matrices and vectors of a transformer of 1M
or 25M parameters, or over its matrices alone if the rule is for matrices. Rules that compute bases or roots at every
`every`-th step do so at each tenth, as do their peers, and are timed by ten steps. A time is the median over rounds.
Without --quick the table is recorded, and the column of times in docs/rules.md is filled from the one of 1M."""
import argparse
import json
import re
import subprocess
import sys
import warnings
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path

import torch
from torch import nn

from machine import record
from miniai.jobs.registry import OPTIMIZERS
from optim_step import interleaved, transformer

SIZES = {'1M': transformer(d=128, layers=5), '25M': transformer()}
PAGE = Path(__file__).parent.parent/'docs'/'rules.md'
BASE = "torch's fused AdamW"


def peer(package, name, **options):
    "What makes a peer's step from parameters; ImportError if its package is not installed."
    def made(ps):
        module = import_module(package)
        if package == 'heavyball': module.utils.compile_mode = 'default'  # its own tries kernels for minutes
        opt = getattr(module, name)(ps, lr=1e-4, **options)
        if package == 'schedulefree': opt.train()
        return opt.step
    return f'{package}.{name}', made


def torchs(name, **options): return peer('torch.optim', name, **options)
def theirs(name, **options): return peer('pytorch_optimizer', name, **options)
def heavy(name, **options): return peer('heavyball', name, consume_grad=False, **options)  # others keep gradients, too


def muon_groups(name):
    "Muon and its kind in pytorch_optimizer, which want to be told that they may step all parameters."
    def made(ps):
        cls = getattr(import_module('pytorch_optimizer'), name)
        return cls([dict(params=ps, use_muon=True)], lr=1e-4).step
    return f'pytorch_optimizer.{name}', made


PEERS = dict(
    SGD=[torchs('SGD', fused=True), heavy('SGD', beta=0.)],
    Momentum=[torchs('SGD', momentum=0.9, dampening=0.1, fused=True), heavy('SGD')],
    HeavyBall=[torchs('SGD', momentum=0.9, fused=True), heavy('SGD')],
    Nesterov=[torchs('SGD', momentum=0.9, nesterov=True, fused=True)],
    RMSProp=[torchs('RMSprop', foreach=True), heavy('RMSprop')],
    Adagrad=[torchs('Adagrad', fused=True)],
    Adam=[torchs('Adam', fused=True)],
    AdamW=[torchs('AdamW', fused=True), heavy('AdamW')],
    NAdamW=[torchs('NAdam', decoupled_weight_decay=True, foreach=True), heavy('NAdam')],
    RAdam=[torchs('RAdam', foreach=True)],
    ADOPT=[theirs('ADOPT'), heavy('ADOPT')],
    AdEMAMix=[theirs('AdEMAMix'), heavy('AdEMAMix')],
    MARS=[theirs('MARS', optimize_1d=True)],
    LAMB=[theirs('Lamb')],
    Lion=[theirs('Lion')],
    Muon=[torchs('Muon'), muon_groups('Muon'), heavy('Muon')],
    NorMuon=[muon_groups('NorMuon')],
    SOAP=[theirs('SOAP', precondition_frequency=10), heavy('SOAP', precondition_frequency=10)],
    Shampoo=[theirs('ScalableShampoo', preconditioning_compute_steps=10, start_preconditioning_step=10)],
    Scion=[theirs('SCION'), heavy('Scion')],
    Adafactor=[torchs('Adafactor', foreach=True), theirs('AdaFactor')],
    ScheduleFreeSGD=[peer('schedulefree', 'SGDScheduleFree'), theirs('ScheduleFreeSGD')],
    ScheduleFreeAdamW=[peer('schedulefree', 'AdamWScheduleFree'), theirs('ScheduleFreeAdamW'), heavy('SFAdamW')],
    Prodigy=[theirs('Prodigy'), peer('prodigyopt', 'Prodigy')],
    Kron=[theirs('Kron'), heavy('PSGDKron')])


def classes(): return {row.build.__name__: row.build for row in OPTIMIZERS.values()}


def params_of(size, matrices):
    torch.manual_seed(0)
    ps = [nn.Parameter(torch.randn(s)*0.02) for s in SIZES[size] if len(s) > 1 or not matrices]
    for p in ps: p.grad = torch.randn_like(p)*0.01
    return ps


def contenders(name, size):
    "Steps by name, ours first, and why others are missing. Each has stepped, so what can fail has failed."
    cls, skipped = classes()[name], []
    fresh = partial(params_of, size, bool(cls.spec.others))
    options = dict(every=10) if 'every' in cls.spec.hypers else {}
    steps = {'ours': cls(fresh(), lr=1e-4, **options).step, BASE: torchs('AdamW', fused=True)[1](fresh())}
    for label, made in PEERS.get(name, []):
        try:
            step = made(fresh())
            for _ in range(2): step()
        except Exception as e: skipped.append(f'{label} ({type(e).__name__}: {str(e)[:80]})')
        else: steps[label] = step
    return steps, 10 if options else 1, skipped


def row(name, size, quick):
    "A row of the table: our time, the fastest peer's, and that of torch's fused AdamW."
    warnings.simplefilter('ignore')
    steps, inner, skipped = contenders(name, size)
    slow = bool(classes()[name].spec.others)
    rounds = 3 if quick else {'1M': 30 if slow else 200, '25M': 5 if slow else 40}[size]
    took = interleaved(steps, rounds, inner)
    rivals = {nm: s for nm, s in took.items() if nm not in ('ours', BASE)}
    best = min(rivals, key=rivals.get, default=None)
    return dict(name=name, size=size, ours=took['ours'], base=took[BASE], best=best, other=rivals.get(best),
                skipped=skipped)


def shown(r):
    ours, fastest = r['ours'], ['', '', '']
    if r['best']:
        mark = '**' if ours > r['other'] else ''
        fastest = [r['best'], f"{r['other']*1e3:.3f}", f"{mark}{ours/r['other']:.2f}{mark}"]
    cells = [r['name'], r['size'], f'{ours*1e3:.3f}', *fastest, f"{ours/r['base']:.2f}"]
    return f"| {' | '.join(cells)} |"


def fill_page(rows):
    "Write the times relative to torch's fused AdamW at 1M parameters into the last column of docs/rules.md."
    text = PAGE.read_text()
    for r in (r for r in rows if r['size'] == '1M'):
        row, time = rf"^(\| `{r['name']}` \|[^|]*\| \d+ \|) [^|]* \|$", f"{r['ours']/r['base']:.2f}"
        text = re.sub(row, rf'\1 {time} |', text, flags=re.M)
    PAGE.write_text(text)


def child(*words):
    "Standard output of this file, run in a new process."
    out = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True)
    return out.stdout.splitlines()[-1]  # peers may print


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--quick', action='store_true', help='three rounds: does it run?')
    ap.add_argument('--only', nargs='+', choices=classes(), default=list(classes()), metavar='NAME')
    ap.add_argument('--sizes', nargs='+', choices=SIZES, default=list(SIZES))
    ap.add_argument('--threads', type=int, default=torch.get_num_threads())
    ap.add_argument('--child', nargs=2, help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.child:
        torch.set_num_threads(args.threads)
        return print(json.dumps(row(*args.child, args.quick)))
    quick, rows = ['--quick']*args.quick, []
    table = ["| rule | parameters | ms | fastest peer | its ms | ratio to it | ratio to torch's fused AdamW |",
             '|--|--|--:|--|--:|--:|--:|']
    for size, name in product(args.sizes, args.only):
        rows.append(json.loads(child('--threads', str(args.threads), *quick, '--child', name, size)))
        table.append(shown(rows[-1]))
        print(table[-1], *rows[-1]['skipped'], flush=True)
    if args.quick: return
    skipped = sorted({f'{x}, for {r["name"]}' for r in rows for x in r['skipped']})
    notes = 'Bold: slower than the fastest peer.' + ('\n\nSkipped: ' + '; '.join(skipped) + '.')*bool(skipped)
    record('optim_strong', '\n'.join(table) + '\n\n' + notes, f'{args.threads} threads, medians of 5 to 200 rounds',
           ['numba', 'schedulefree', 'pytorch_optimizer', 'heavyball', 'prodigyopt'])
    fill_page(rows)


if __name__ == '__main__': main()
