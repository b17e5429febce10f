"""One process of scale.py, under torchrun: measures whole steps, and apart from them what scale_model.py needs to know.

The parts are compute alone (all processes at once, as they share this machine's cores), single collectives as DDP and
FSDP run them, and the small all-reduce by which processes agree. Every round measures everything once; a time is the
slowest process's.
"""
import argparse
import statistics
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from decoder import SMALL, Block, Decoder, Shape, batch, count, loss_func
from scale_model import Work, buckets
from torchrun import report

CAP = 4*2**20  # of a bucket, in bytes: so that a small model has several
BLOCKS = [Shape(0, 64, 0, 64, 0, 0), Shape(0, 256, 0, 256, 0, 0), Shape(0, 256, 0, 1024, 0, 0)]  # 0.1, 1.8 and 4.2 MB


def bytes_written():
    "What this process has written so far, to sockets as well: gloo's messages, counted by the kernel."
    lines = Path('/proc/self/io').read_text().splitlines()
    return int(next(ln for ln in lines if ln.startswith('wchar')).split()[1])


def stopwatch(run):
    "Seconds, processor seconds of all threads, and bytes written."
    written, cpu, started = bytes_written(), time.process_time(), time.perf_counter()
    run()
    return [time.perf_counter() - started, time.process_time() - cpu, bytes_written() - written]


class Step:
    "A training step; `seconds` are those of forward and backward, and of the optimizer."
    def __init__(self, model, data):
        self.model, self.data = model, data
        self.opt = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def compute(self): loss_func(self.model(self.data[0]), self.data[1]).backward()
    def optimizer(self):
        self.opt.step()
        self.opt.zero_grad()
    def __call__(self):
        self.compute()
        self.optimizer()


def sharded(model, mesh=None):
    for m in [*getattr(model, 'blocks', []), model]: fully_shard(m, mesh=mesh)
    return model


def all_reduce(size):
    "DDP's: a bucket, divided by the number of processes and reduced in place."
    bucket, n = torch.zeros(size//4), dist.get_world_size()
    def run():
        bucket.div_(n)
        dist.all_reduce(bucket)
    return run


def gathered(block):
    block.unshard()
    block.reshard()


class Reduced:
    "The backward of a block on a single token: little else than the reduction of its gradients."
    def __init__(self, block, width): self.block, self.x = block, torch.zeros(1, 1, width)
    def before(self): self.loss = self.block(self.x).sum()
    def __call__(self):
        self.loss.backward()
        self.block.zero_grad()


def collectives(way, mesh=None):
    "All-gathers and reductions of a few sizes as FSDP runs them, by name; `plain reduce` is the same without FSDP."
    out = {}
    for shape in BLOCKS:
        block = Block(shape)
        size = count(block)*4
        out[f'plain reduce {size}'] = Reduced(Block(shape), shape.width)
        sharded(block, mesh)
        out |= {f'{way} gather {size}': partial(gathered, block), f'{way} reduce {size}': Reduced(block, shape.width)}
    return out


def everything():
    "All that is measured, by name."
    torch.manual_seed(0)
    data, n = batch(SMALL, seed=dist.get_rank()), dist.get_world_size()
    plain, net = Step(Decoder(SMALL), data), Decoder(SMALL)
    ddp = DistributedDataParallel(net, bucket_cap_mb=CAP/2**20, gradient_as_bucket_view=True)
    whole = Step(ddp, data)
    def no_sync():
        with ddp.no_sync(): whole()
    in_turn = [all_reduce(s) for s in buckets(Work(count(net), [], 0, 0, 0), CAP)]
    few = torch.zeros(4, dtype=torch.float64)
    out = {'compute': plain.compute, 'optimizer': plain.optimizer, 'no_sync': no_sync, 'ddp step': whole,
           'fsdp step': Step(sharded(Decoder(SMALL)), data), 'ddp communication': lambda: [run() for run in in_turn],
           'agree': lambda: dist.all_reduce(few), **collectives('fsdp')}
    out |= {f'ddp reduce {size}': all_reduce(size) for size in (2**17, 2**20, 2**22)}
    if n == 4:
        mesh = init_device_mesh('cpu', (2, 2), mesh_dim_names=('copies', 'shards'))
        out |= {'hsdp step': Step(sharded(Decoder(SMALL), mesh), data), **collectives('hsdp', mesh)}
    return out


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('--rounds', type=int, default=30)
    args = ap.parse_args()
    warnings.simplefilter('ignore')
    dist.init_process_group('gloo')
    rows, todo = {}, everything()
    for r in range(args.rounds + 3):
        for nm, run in todo.items():
            if hasattr(run, 'before'): run.before()
            dist.barrier()
            row = torch.tensor(stopwatch(run), dtype=torch.float64)
            dist.all_reduce(row, dist.ReduceOp.MAX)
            if r >= 3: rows.setdefault(nm, []).append(row.tolist())
    def medians(rs): return [statistics.median(column) for column in zip(*rs, strict=True)]
    report({nm: dict(zip(('seconds', 'cpu', 'bytes'), medians(rs), strict=True)) for nm, rs in rows.items()})
    dist.barrier()  # gloo's threads may abort a process that leaves while the other still talks to it
    dist.destroy_process_group()


if __name__ == '__main__': main()
