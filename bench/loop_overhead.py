"""What the loop costs: time per batch over a bare PyTorch loop's, on a net so small that little else is left.

    python bench/loop_overhead.py [--rounds N] [--batches N]

One thread, a 2-layer MLP of 500 parameters, batches of 32 ready in memory, SGD. Every round runs all variants, in an
order that rotates, for one epoch each; the figure is the median over rounds of (variant - bare) / batches. Bars are
drawn as in a terminal, to a null device. Of the peers in peers.py, each with loss, accuracy and its own bar, those that
are installed take part; `make bench` installs them.
"""
import argparse
import contextlib
import os
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import peers
from machine import record
from miniai import DataLoaders, DeviceCB, MetricsCB, ProgressCB, TrainLearner, accuracy
from miniai.show.displays import TerminalDisplay

BARE, BARE_WITH = 'bare loop', 'bare loop, loss and accuracy'


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
        self.mbar.face = TerminalDisplay(self.null)


def installed_peers(batches):
    "The peers that can be imported here, set up, by name."
    found = {}
    for nm, peer in peers.PEERS.items():
        try: found[f'{nm}, loss, accuracy, bar'] = peer(model(), batches)
        except ImportError as e: print(f'{nm} takes no part: {e}')
    return found


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=40)
    ap.add_argument('--batches', type=int, default=1000)
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batches = [(torch.randn(32, 20), torch.randint(10, (32,))) for _ in range(args.batches)]
    full = [DeviceCB('cpu'), MetricsCB(accuracy=accuracy), TerminalBarCB()]
    variants = {BARE: bare(batches), BARE_WITH: bare(batches, with_accuracy=True),
                'miniai, no callbacks': miniai(batches, []),
                'miniai, device, loss, accuracy, bar': miniai(batches, full)}
    epochs = {nm: peers.timed(epoch) for nm, epoch in variants.items()} | installed_peers(batches)
    names, times = list(epochs), {nm: [] for nm in epochs}
    for r in range(args.rounds + 2):
        for nm in names[r % len(names):] + names[:r % len(names)]:
            with contextlib.redirect_stdout(TerminalBarCB.null), contextlib.redirect_stderr(TerminalBarCB.null):
                seconds = epochs[nm]()
            if r >= 2: times[nm].append(seconds / args.batches * 1e6)
    def over(nm, base):
        return statistics.median(t - b for t, b in zip(times[nm], times[base], strict=True))
    table = ['| loop | µs a batch | over the bare loop | over it with loss and accuracy |', '|--|--:|--:|--:|']
    table += [f'| {nm} | {statistics.median(ts):.1f} | {over(nm, BARE):+.1f} | {over(nm, BARE_WITH):+.1f} |'
              for nm, ts in times.items()]
    record('loop_overhead', '\n'.join(table), runs=f'{args.rounds} rounds of {args.batches} batches, medians',
           packages=('pytorch-ignite', 'lightning', 'fastai', 'skorch'))


if __name__ == '__main__': main()
