"""Is cost proportional to work? Time of a fit when data, epochs or parameters double, and memory over 200 epochs.

    python bench/scaling.py [--rounds N]

Each pair, the work and twice the work, is fitted in turn; a ratio is the median over rounds of the second time divided
by the first. The fit has loss, accuracy, a recorder, a progress bar to a null device, activation statistics and our
AdamW. Memory is the resident memory after epochs 20, 110 and 200 of one fit, once without the statistics and once with
them: these keep every batch's statistics and histogram to draw them later."""
import argparse
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from loop_overhead import TerminalBarCB
from machine import record
from miniai import ActivationStats, Callback, DataLoaders, MetricsCB, RecorderCB, TrainLearner, accuracy
from miniai.optim import AdamW


def batches(n): return [(torch.randn(256, 256), torch.randint(10, (256,))) for _ in range(n)]


def learner(data, layers=8, cbs=()):
    blocks = [m for _ in range(layers) for m in (nn.Linear(256, 256), nn.ReLU())]
    model = nn.Sequential(*blocks, nn.Linear(256, 10))
    given = [MetricsCB(accuracy=accuracy), TerminalBarCB(), RecorderCB(lr=lambda cb: cb.pg['lr']), *cbs]
    return TrainLearner(model, DataLoaders(data, data[:4]), F.cross_entropy, 1e-3, given, AdamW)


def stats(): return ActivationStats(lambda m: isinstance(m, nn.ReLU))


def resident(): return int(next(ln for ln in Path('/proc/self/status').read_text().splitlines()
                                if ln.startswith('VmRSS')).split()[1]) / 1024


class MemoryCB(Callback):
    "Records the resident memory, in MiB, after some epochs."
    def __init__(self, *epochs): self.epochs, self.seen = epochs, {}
    def after_epoch(self, learn):
        if not learn.training and learn.epoch + 1 in self.epochs: self.seen[learn.epoch + 1] = resident()


def memory(data, cbs):
    noted = MemoryCB(20, 110, 200)
    learner(data, cbs=[*cbs, noted]).fit(200)
    return ', '.join(f'{m:.0f} after {e}' for e, m in noted.seen.items())


def ratio(once, twice, rounds):
    "The median ratio of the time of `twice` to that of `once`, run in turn, and the median time of `once`."
    def seconds(f):
        started = time.perf_counter()
        f()
        return time.perf_counter() - started
    once(), twice()
    pairs = [(seconds(once), seconds(twice)) for _ in range(rounds)]
    return statistics.median(b/a for a, b in pairs), statistics.median(a for a, _ in pairs)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=9)
    args = ap.parse_args()
    torch.set_num_threads(1)
    data = batches(80)
    small, large = learner(data[:40], cbs=[stats()]), learner(data, cbs=[stats()])
    deep = learner(data[:40], layers=16, cbs=[stats()])  # 1,055,242 parameters; eight layers have 528,906
    rows = {'twice the batches': (lambda: small.fit(2), lambda: large.fit(2)),
            'twice the epochs': (lambda: small.fit(2), lambda: small.fit(4)),
            'twice the parameters': (lambda: small.fit(2), lambda: deep.fit(2))}
    table = ['| work | time over that of half the work | at most | seconds, once |', '|--|--:|--:|--:|']
    for nm, (once, twice) in rows.items():
        r, s = ratio(once, twice, args.rounds)
        table.append(f'| {nm} | {r:.2f} | 2.10 | {s:.2f} |')
    table += ['', f'Resident memory over 200 epochs of 8 batches, in MiB: {memory(data[:8], [])}; with activation '
                  f'statistics {memory(data[:8], [stats()])}.']
    record('scaling', '\n'.join(table), runs=f'{args.rounds} rounds, medians; one thread')


if __name__ == '__main__': main()
