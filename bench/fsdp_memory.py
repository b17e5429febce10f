"""Memory of each process under FSDP2 for parameters, gradients and optimizer state: 100 million parameters, AdamW.

    python bench/fsdp_memory.py [--processes N …]

Counted are the bytes of these tensors' parts after two steps. Resident memory is its growth since before the model was
made: it also holds activations and what gloo and FSDP keep. The target is 1/processes of one process, plus 10 %.
"""
import argparse
import ctypes
import gc
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

import torchrun
from decoder import M100, Decoder, batch, count, loss_func
from machine import record


def resident():
    "Bytes of memory that this process has, but for what it has freed."
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path('/proc/self/status').read_text().splitlines()
    return int(next(ln for ln in lines if ln.startswith('VmRSS')).split()[1])*1024


def held(tensors):
    "Bytes of the parts that this process has, each piece of memory once."
    parts = [t.to_local() if hasattr(t, 'to_local') else t for t in tensors]
    return sum({p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in parts}.values())


def process():
    "Two steps on this process; reports the bytes of the one that has the most."
    dist.init_process_group('gloo')
    data, before = batch(M100), resident()
    model = Decoder(M100)
    if dist.get_world_size() > 1:
        for m in [*model.blocks, model]: fully_shard(m)
    opt = torch.optim.AdamW(model.parameters(), 1e-4)
    for _ in range(2):
        opt.zero_grad()
        loss_func(model(data[0]), data[1]).backward()
        opt.step()
    params = list(model.parameters())
    states = [v for s in opt.state.values() for v in s.values() if v.numel() > 1]
    sizes = torch.tensor([held(params), held(p.grad for p in params), held(states), resident() - before])
    dist.all_reduce(sizes, dist.ReduceOp.MAX)
    torchrun.report(dict(parameters=count(model), sizes=sizes.tolist()))
    dist.destroy_process_group()


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
