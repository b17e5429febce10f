"""What the loop costs: time per batch over a bare PyTorch loop's, on a net so small that little else is left.

    python bench/loop_overhead.py [--rounds N] [--batches N]

One thread, a 2-layer MLP of 500 parameters, batches of 32 ready in memory, SGD. Every round runs all variants, in turn,
for one epoch each; the figure is the median over rounds of (variant - bare) / batches. The bar is drawn as in a
terminal, to a null device.
"""
import argparse
import os
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from machine import record
from miniai import DataLoaders, DeviceCB, MetricsCB, ProgressCB, TrainLearner, accuracy
from miniai.display import Terminal


def model(): return nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10))


def bare(batches, with_accuracy=False):
    net = model()
    opt = torch.optim.SGD(net.parameters(), 0.01)
    def epoch():
        net.train()
        hits = total = 0.
        for xb, yb in batches:
            preds = net(xb)
            loss = F.cross_entropy(preds, yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            if with_accuracy:
                hits += accuracy(preds, yb).item()*len(xb)
                total += loss.item()*len(xb)
    return epoch


def miniai(batches, cbs):
    def opt_func(params, lr): return torch.optim.SGD(params, lr)
    learn = TrainLearner(model(), DataLoaders(batches, []), F.cross_entropy, 0.01, cbs, opt_func)
    return lambda: learn.fit(1, valid=False)


class TerminalBarCB(ProgressCB):
    "Progress as a terminal shows it, whatever this process's own output is."
    null = Path(os.devnull).open('w')  # noqa: SIM115
    def before_fit(self, learn):
        super().before_fit(learn)
        self.mbar.face = Terminal(self.null)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=40)
    ap.add_argument('--batches', type=int, default=1000)
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = [(torch.randn(32, 20), torch.randint(10, (32,))) for _ in range(args.batches)]
    full = [DeviceCB('cpu'), MetricsCB(accuracy=accuracy), TerminalBarCB()]
    variants = {'bare loop': bare(batches), 'bare loop, loss and accuracy': bare(batches, with_accuracy=True),
                'miniai, no callbacks': miniai(batches, []),
                'miniai, device, loss, accuracy, bar': miniai(batches, full)}
    times = {nm: [] for nm in variants}
    for r in range(args.rounds + 2):
        for nm, epoch in variants.items():
            started = time.perf_counter()
            epoch()
            if r >= 2: times[nm].append((time.perf_counter() - started) / args.batches * 1e6)
    bare_times = times['bare loop']
    rows = [(nm, statistics.median(ts), statistics.median(t - b for t, b in zip(ts, bare_times, strict=True)))
            for nm, ts in times.items()]
    table = ['| loop | µs a batch | over the bare loop |', '|--|--:|--:|']
    table += [f'| {nm} | {t:.1f} | {over:+.1f} |' for nm, t, over in rows]
    record('loop_overhead', '\n'.join(table), runs=f'{args.rounds} rounds of {args.batches} batches, medians')


if __name__ == '__main__': main()
