"""The cost of HealthCB on the notebook's model: CPU time of training steps with and without it, interleaved.

    python bench/health_cost.py [--rounds N] [--batches N] [--batch N]

Sampled batches: in a fit with HealthCB(every=2), and in one with ActivationStats(every=2), every other batch is looked
at; the extra time is the median over pairs of neighbors of (looked at - not looked at). Fits: each round trains the
same batches with HealthCB() and without, in alternating order; the result is the median of (with - without) / without,
and how many batches were sampled. As fits vary by some percent, the share is also added up from the samples: their
number times the extra of one, of all steps. One thread and CPU time, which other load disturbs less than wall time.
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn

from machine import record
from miniai import ActivationStats, DataLoaders, HealthCB, TrainLearner
from miniai.init import GeneralRelu
from miniai.optim import AdamW
from profile_cost import mlp, notebooks_model, sample


class StampsCB:
    "The CPU time at the start of each batch, before HealthCB hears of it, and at the end of the last."
    order = -2e7
    def before_fit(self, learn): self.stamps = []
    def before_batch(self, learn): self.stamps.append(time.process_time())
    def after_epoch(self, learn): self.stamps.append(time.process_time())


def fit(model, batches, *cbs):
    TrainLearner(model, DataLoaders(batches, []), F.cross_entropy, 1e-3, list(cbs), AdamW).fit(1, valid=False)


def extra_of_a_sample(model, batches, cb):
    "Medians, in ms: a batch that is not looked at, and the extra of one that is."
    stamps = StampsCB()
    fit(model, batches, stamps, cb)
    took = [1000*(b - a) for a, b in zip(stamps.stamps, stamps.stamps[1:], strict=False)][4:]
    return statistics.median(took[1::2]), statistics.median(a - b for a, b in zip(took[::2], took[1::2], strict=False))


def share_of_a_fit(model, batches, rounds):
    "The median of (with - without) / without over rounds, and the number of sampled batches."
    shares = []
    for r in range(rounds):
        took, health = {}, HealthCB(quiet=True)
        for on in ((0, 1) if r % 2 else (1, 0)):
            started = time.process_time()
            fit(model, batches, *([health] if on else []))
            took[on] = time.process_time() - started
        shares.append(took[1]/took[0] - 1)
    return statistics.median(shares), len(health.records['batches'])


def is_activation(m): return isinstance(m, GeneralRelu | nn.ReLU)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--batches', type=int, default=120)
    ap.add_argument('--batch', type=int, default=1024)
    args = ap.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = {f"the notebook's model, batch {args.batch}": (notebooks_model, sample(args.batch, args.batches)),
             'MLP, batch 64': (mlp, sample(64, 40*args.batches))}
    table = ['| fit | ms per step | extra ms of a sampled batch | with ActivationStats | samples | extra %, added up '
             '| extra %, measured |',
             '|--|--:|--:|--:|--:|--:|--:|']
    for name, (model, batches) in cases.items():
        fit(model(), batches[:4], HealthCB(quiet=True))  # loads kernels
        step, extra = extra_of_a_sample(model(), batches[:60], HealthCB(every=2, quiet=True))
        _, stats = extra_of_a_sample(model(), batches[:60], ActivationStats(is_activation, every=2))
        share, samples = share_of_a_fit(model(), batches, args.rounds)
        sampled = f'{samples} of {len(batches)}'
        added_up = 100*samples*extra/(step*len(batches))
        table.append(f'| {name} | {step:.2f} | {extra:.2f} | {stats:.2f} | {sampled} | {added_up:.2f} '
                     f'| {100*share:.2f} |')
    record('health_cost', '\n'.join(table), f'{args.rounds} rounds of fits, 28 pairs of batches')


if __name__ == '__main__': main()
