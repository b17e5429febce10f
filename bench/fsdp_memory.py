"""Memory of each process for parameters, gradients and optimizer state of 100 million parameters with AdamW, by
DistributedCB('fsdp').

    python bench/fsdp_memory.py [--processes N …]

Counted are the bytes of these tensors' parts after a few steps. Resident memory is its growth since before the model
was made: it also holds activations and what gloo and FSDP keep. The target is 1/processes of one process, plus 10 %.
"""
import argparse
import ctypes
import gc
import os
from dataclasses import replace
from pathlib import Path

import torch

import torchrun
from decoder import M100, Decoder, batch, count, loss_func
from machine import record
from miniai import Callback, DataLoaders, TrainLearner
from miniai.distributed import DistributedCB
from miniai.distributed.ranks import most, world


def resident():
    "Bytes of memory that this process has, but for what it has freed."
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(ln for ln in lines if ln.startswith('VmRSS')).split()[1])*1024


def AdamW(params, lr): return torch.optim.AdamW(params, lr)


def held(tensors):
    "Bytes of the parts that this process has, each piece of memory once."
    parts = [t.to_local() if hasattr(t, 'to_local') else t for t in tensors]
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parts}.values())


class HeldCB(Callback):
    "After a step, before gradients are freed: bytes of parameters, gradients and state, and resident memory."
    def __init__(self): self.before = resident()
    def after_step(self, learn):
        params = list(learn.model.parameters())
        states = [v for s in learn.opt.state.values() for v in s.values() if v.numel() > 1]
        self.sizes = [held(params), held(p.grad for p in params), held(states), resident() - self.before]


def process():
    "Three steps on this process; reports the bytes of the process that has most."
    cbs = [DistributedCB('fsdp'), HeldCB()]
    data = [batch(replace(M100, seqs=M100.seqs*world()))]*3
    learn = TrainLearner(Decoder(M100), DataLoaders(data, []), loss_func, 1e-4, cbs, AdamW)
    learn.fit(1, valid=False)
    torchrun.report(dict(parameters=count(Decoder(M100)), sizes=most(cbs[1].sizes)))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--processes', type=int, nargs='+', default=[2, 4])
    args = ap.parse_args()
    if torchrun.REPORT in os.environ: return process()
    found = {n: torchrun.on(n, __file__) for n in [1, *args.processes]}
    one = sum(found[1]['sizes'][:3])
    table = ['| processes | parameters, MB | gradients, MB | state, MB | share of one | at most | resident, MB |',
             '|--:|--:|--:|--:|--:|--:|--:|']
    for n, row in found.items():
        p, g, s, rss = (b/1e6 for b in row['sizes'])
        share = (p + g + s)*1e6/one
        table.append(f'| {n} | {p:.1f} | {g:.1f} | {s:.1f} | {share:.3f} | {1.1/n:.3f} | {rss:.0f} |')
    record('fsdp_memory', '\n'.join(table), runs=f'{found[1]["parameters"]:,} parameters; the process that has most; '
           'one run (bytes are exact, resident memory is not)')


if __name__ == '__main__': main()
