"""The cost of ProfileCB: CPU time of a fit with it, compared with the same fit without it.

    python bench/profile_cost.py [--rounds N]

Two models on the sample of Fashion-MNIST, in memory: the notebook's with batches of 1024, and an MLP of 80,000
parameters with batches of 64; both with AdamW, DeviceCB, metrics and a progress bar. Uses one thread and CPU time,
which other load on the machine disturbs less than wall time. Each round fits with and without ProfileCB, in
alternating order. The result is the median over rounds of (with - without) / without.
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from loop_overhead import TerminalBarCB
from machine import record
from miniai import DataLoaders, DeviceCB, MetricsCB, TrainLearner, accuracy
from miniai.data import fashion_mnist
from miniai.diagnosis.profile import ProfileCB
from miniai.init import get_model
from miniai.optim import AdamW
from miniai.resnet import act_gr


def notebooks_model(): return get_model(act_gr, norm=nn.BatchNorm2d).cpu()
def mlp(): return nn.Sequential(nn.Flatten(), nn.Linear(784, 100), nn.ReLU(), nn.Linear(100, 10))


def sample(bs, n):
    "`n` batches of `bs` images, starting over at the end of the sample."
    data = fashion_mnist(source='sample', quiet=True)
    x, y = data.x_train.reshape(-1, 1, 28, 28).float()/255, data.y_train.long()
    starts = [i*bs % (len(x) - bs) for i in range(n)]
    return [(x[i:i + bs], y[i:i + bs]) for i in starts]


def timed_fit(model, batches):
    cbs = [DeviceCB('cpu'), MetricsCB(accuracy=accuracy), TerminalBarCB()]
    learn = TrainLearner(model, DataLoaders(batches, []), F.cross_entropy, 1e-3, cbs, AdamW)
    def seconds(cb):
        started = time.process_time()
        learn.fit(1, valid=False, cbs=cb)
        return time.process_time() - started
    return seconds


def compare(model, batches, rounds):
    "Medians: microseconds per batch without ProfileCB, and the extra with it, in microseconds and as a fraction."
    seconds, without, extra, share = timed_fit(model, batches), [], [], []
    for r in range(rounds + 2):
        took = {on: seconds(ProfileCB(quiet=True) if on else None) for on in ((0, 1) if r % 2 else (1, 0))}
        if r < 2: continue
        without.append(took[0]/len(batches)*1e6)
        extra.append((took[1] - took[0])/len(batches)*1e6)
        share.append(took[1]/took[0] - 1)
    return [statistics.median(xs) for xs in (without, extra, share)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=40)
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = {"the notebook's model, batch 1024": (notebooks_model(), sample(1024, 8), args.rounds),
             'MLP, batch 64': (mlp(), sample(64, 1000), args.rounds)}
    table = ['| fit | ms per batch | extra µs with ProfileCB | extra % |', '|--|--:|--:|--:|']
    for nm, case in cases.items():
        without, extra, share = compare(*case)
        table.append(f'| {nm} | {without/1000:.2f} | {extra:+.1f} | {share:+.2%} |')
    record('profile_cost', '\n'.join(table), runs=f'{args.rounds} rounds of 8 batches, and of 1000, medians')


if __name__ == '__main__': main()
