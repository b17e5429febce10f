"""The cost of activation statistics: a training step of the notebook's model without them, with ours, with torch's.

    python bench/activation_stats.py [--rounds N] [--batch N] [--threads N]

Each round takes one step of each kind on the same batch: without hooks; with our hooks on every activation function
(mean, deviation and histogram in one pass); with hooks that call mean, std and histc. The extra time is the median over
rounds of the difference to the step without hooks in the same round.
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


def append_torch_stats(hook, mod, inp, outp):
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
    table = ['| threads | step | ms | extra ms | extra % |', '|--:|--|--:|--:|--:|']
    for threads in args.threads:
        torch.set_num_threads(threads)
        batch = torch.randn(args.batch, 1, 28, 28), torch.randint(10, (args.batch,))
        steps = dict(plain=stepper(batch), ours=stepper(batch, append_stats), torch=stepper(batch, append_torch_stats))
        times = {nm: [] for nm in steps}
        for r in range(args.rounds + 3):
            for nm, step in steps.items():
                started = time.perf_counter()
                step()
                if r >= 3: times[nm].append(time.perf_counter() - started)
        plain = statistics.median(times['plain'])
        extra = {nm: statistics.median(t - p for t, p in zip(times[nm], times['plain'], strict=True)) for nm in steps}
        names = dict(plain='without statistics', ours="with ActivationStats' hooks", torch='with mean, std and histc')
        for nm in steps:
            table.append(f'| {threads} | {names[nm]} | {statistics.median(times[nm])*1e3:.1f} | {extra[nm]*1e3:.2f} | '
                         f'{extra[nm]/plain:.1%} |')
        table.append(f'| {threads} | ratio, ours to torch | | {extra["ours"]/extra["torch"]:.2f} | |')
    record('activation_stats', '\n'.join(table), runs=f'{args.rounds} rounds, batches of {args.batch}, medians')


if __name__ == '__main__': main()
