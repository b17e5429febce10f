"""What each tracker costs per training step, in microseconds, when every batch is recorded.

    python bench/tracker_cost.py [--batches N] [--runs N] [--trackers csv tensorboard ...]

A fit trains a linear model of 8 numbers on N batches, without a tracker and then with one: once recording loss and rate
of every batch, once of at most 1000, as is the default. The figure is the difference of the lowest times over the
number of batches, and includes opening and closing the tracker. All are processor time, of all threads, so other
programs hardly matter; waiting for a disk or a server is not in it. Trackers that do not work on this machine are left
out.
"""
import argparse
import contextlib
import io
import tempfile
import time
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from machine import record
from miniai import DataLoaders, MetricsCB, TrainLearner
from miniai.callbacks.track import TrackCB


def seconds(batches, *cbs):
    "The processor time of a fit of one epoch."
    learn = TrainLearner(nn.Linear(8, 1), DataLoaders(batches, []), F.mse_loss, 1e-3, [MetricsCB(), *cbs],
                         opt_func=torch.optim.SGD)
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()): learn.fit(1, valid=False)
    return time.process_time() - start


def row(kind, batches, runs, folder, plain):
    "A row of the table, beside `plain`, the lowest time without a tracker; None if the tracker does not work here."
    def tracked(every): return seconds(batches, TrackCB(kind, folder, every=every, model=False))
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)  # a tracker that is missing
        try: tracked(1)
        except UserWarning as e: return print(e)
    lowest = {every: min(tracked(every) for _ in range(runs)) for every in (1, None)}
    return f'| {kind} | ' + ' | '.join(f'{(x - plain)/len(batches)*1e6:.0f}' for x in lowest.values()) + ' |'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batches', type=int, default=3000)
    parser.add_argument('--runs', type=int, default=7)
    parser.add_argument('--trackers', nargs='*', default=['csv', 'tensorboard'])
    args = parser.parse_args()
    torch.set_num_threads(1)
    batches = [(torch.randn(16, 8), torch.randn(16, 1)) for _ in range(args.batches)]
    plain = min(seconds(batches) for _ in range(args.runs + 1))  # the first one loads what a fit needs
    with tempfile.TemporaryDirectory() as folder:
        rows = [row(kind, batches, args.runs, folder, plain) for kind in args.trackers]
    table = [f'A step without a tracker takes {plain/len(batches)*1e6:.0f} µs. Each tracker adds, in µs of processor '
             'time per step:', '',
             '| tracker | every batch recorded | 1000 batches recorded |', '|--|--:|--:|', *filter(None, rows)]
    record('tracker_cost', '\n'.join(table), f'{args.runs} runs of {args.batches:,} steps', ('tensorboard',))


if __name__ == '__main__': main()
