"""What statistics of activations cost: a training step of the notebook's model without, with ours, and with torch's.

    python bench/activation_stats.py [--rounds N] [--batch N] [--threads N]

Every round takes a step of each kind, in turn, on the same batch: plain; with our hooks on each activation (mean,
deviation and histogram in one pass); with hooks that call mean, std and histc, as one writes it first. A figure is the
median over rounds of a step's time less the plain one's in the same round.
"""
import argparse
import statistics
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from machine import record
from miniai.activations import Hooks, append_stats
from miniai.init import GeneralRelu, get_model, init_weights
from miniai.models.layers import act_gr
from miniai.optim import AdamW


def torchs_stats(hook, mod, inp, outp):
    if not hasattr(hook, 'stats'): hook.stats = ([], [], [])
    acts = outp.detach()
    for stat, value in zip(hook.stats, (acts.mean(), acts.std(), acts.abs().histc(40, 0, 10)), strict=True):
        stat.append(value)


def stepper(batch, hookfunc=None):
    torch.manual_seed(0)
    model = get_model(act_gr, norm=nn.BatchNorm2d).apply(partial(init_weights, leaky=0.1)).cpu()
    opt = AdamW(model.parameters(), lr=1e-3)
    if hookfunc: Hooks([m for m in model.modules() if isinstance(m, GeneralRelu)], hookfunc)
    def step():
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        opt.step()
        opt.zero_grad()
    return step


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=100)
    ap.add_argument('--batch', type=int, default=1024)
    ap.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    args = ap.parse_args()
    table = ['| threads | step | ms | over the plain step, ms | in percent |', '|--:|--|--:|--:|--:|']
    for threads in args.threads:
        torch.set_num_threads(threads)
        batch = torch.randn(args.batch, 1, 28, 28), torch.randint(10, (args.batch,))
        steps = dict(plain=stepper(batch), ours=stepper(batch, append_stats), torchs=stepper(batch, torchs_stats))
        times = {nm: [] for nm in steps}
        for r in range(args.rounds + 3):
            for nm, step in steps.items():
                started = time.perf_counter()
                step()
                if r >= 3: times[nm].append(time.perf_counter() - started)
        plain = statistics.median(times['plain'])
        over = {nm: statistics.median(t - p for t, p in zip(times[nm], times['plain'], strict=True)) for nm in steps}
        names = dict(plain='without statistics', ours="with ActivationStats' hooks", torchs='with mean, std and histc')
        for nm in steps:
            table.append(f'| {threads} | {names[nm]} | {statistics.median(times[nm])*1e3:.1f} | {over[nm]*1e3:.2f} | '
                         f'{over[nm]/plain:.1%} |')
        table.append(f'| {threads} | ours over torch\'s | | {over["ours"]/over["torchs"]:.2f} | |')
    record('activation_stats', '\n'.join(table), runs=f'{args.rounds} rounds, batches of {args.batch}, medians')


if __name__ == '__main__': main()
