"""What miniai adds to a step of plain DDP, on 2 gloo processes, and DistributedCB to a fit in one process.

    python bench/ddp_overhead.py [--steps N]

A decoder of 0.7 million parameters, of which a step takes about 20 ms, and AdamW. The loops run in turn in the same
processes: after each batch of a fit, a step of the plain loop, and of plain DDP with one small all-reduce. A step's
time is the slowest process's, and that of a fit has all from one batch's end to the next's, loading included. Medians
over steps, of a time and of its ratio to the plain loop's at the same batch. Each process is bound to a core, as
launchers of clusters do.
"""
import argparse
import os
import statistics
import time
from functools import partial
from itertools import pairwise

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import torchrun
from decoder import Decoder, Shape, batch, loss_func
from machine import record
from miniai import Callback, DataLoaders, TrainLearner
from miniai.distributed import DistributedCB
from miniai.distributed.ranks import part_of, start, total, world

SEQS, WARM = 4, 10  # sequences of each process at each step, and steps that don't count
AdamW = partial(torch.optim.AdamW, fused=True)


def shape(seqs): return Shape(1000, 128, 2, 384, seqs, length=64)


def plain(xb, yb, agree=False):
    "A step of the loop that one writes with torch alone."
    model = Decoder(shape(SEQS))
    if world() > 1: model = DistributedDataParallel(model)
    opt = AdamW(model.parameters(), 1e-4)
    def step():
        loss_func(model(xb), yb).backward()
        opt.step()
        opt.zero_grad()
        if agree: total([0., 0., 0., 0.])
    return step


class InTurnCB(Callback):
    "After each batch, when other callbacks are done, runs `steps` and keeps what each took, the batch's step first."
    order = 1e9
    def __init__(self, *steps): self.steps, self.times = steps, []
    def before_epoch(self, learn): self.since = time.perf_counter()
    def cleanup_batch(self, learn):
        moments = [self.since, time.perf_counter()]
        for step in self.steps:
            step()
            moments.append(time.perf_counter())
        self.times.append([b - a for a, b in pairwise(moments)])
        self.since = time.perf_counter()


def in_turn(cbs, data, steps):
    "Seconds of each step: of the fit, of the plain loop, and of the plain loop with an all-reduce. Rows are batches."
    mine = part_of(len(data[0]))
    part = [x[mine.start:mine.stop] for x in data]
    others = InTurnCB(plain(*part), plain(*part, agree=True))
    def opt_func(params, lr): return AdamW(params, lr)
    dls = DataLoaders([data]*(steps + WARM), [])  # each process takes its part of the batch
    TrainLearner(Decoder(shape(SEQS)), dls, loss_func, 1e-4, [others, *cbs], opt_func).fit(1, valid=False)
    times = torch.tensor(others.times, dtype=torch.float64)
    if world() > 1: dist.all_reduce(times, dist.ReduceOp.MAX)
    return times[WARM:].tolist()


def process(steps):
    os.sched_setaffinity(0, {int(os.environ['LOCAL_RANK']) % os.cpu_count()})
    start()
    torch.manual_seed(0)
    data = batch(shape(SEQS*world()))
    fits = {'Learner with DistributedCB': [DistributedCB('ddp')]} | ({'Learner': []} if world() == 1 else {})
    torchrun.report({nm: in_turn(cbs, data, steps) for nm, cbs in fits.items()})


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=400)
    args = ap.parse_args()
    if torchrun.REPORT in os.environ: return process(args.steps)
    table = ['| processes | loop | ms a step | over the plain loop |', '|--:|--|--:|--:|']
    for n in (1, 2):
        for nm, rows in torchrun.on(n, __file__, '--steps', str(args.steps)).items():
            names = [nm, 'plain loop', 'plain loop and an all-reduce of 4 numbers'][:2 if n == 1 else 3]
            for name, *column in zip(names, *rows, strict=False):
                ratio = statistics.median(t/row[1] for t, row in zip(column, rows, strict=True))
                table.append(f'| {n} | {name} | {statistics.median(column)*1e3:.2f} | {ratio:.3f} |')
    record('ddp_overhead', '\n'.join(table), runs=f'{args.steps} steps of each loop in turn, medians')


if __name__ == '__main__': main()
