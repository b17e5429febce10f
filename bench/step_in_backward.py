"""Time and memory of a training step with StepInBackwardCB, next to ordinary steps: a decoder with 100 million
parameters, AdamW.

    python bench/step_in_backward.py [--steps N] [--rounds N]

Both take turns in one process; medians. The memory is that of all gradients at the moment when most are held, exactly,
and the highest resident memory of a process of its own.
"""
import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch

from decoder import M100, Decoder, batch, count, loss_func
from machine import record
from miniai import AdamW, Callback, DataLoaders, StepInBackwardCB, TrainLearner


class StepTimeCB(Callback):
    "Seconds of each batch, and the bytes of gradients when most are held."
    def __init__(self, counts): self.seconds, self.most, self.counts = [], 0, counts
    def before_fit(self, learn):
        ps = list(learn.model.parameters())
        def held(_): self.most = max(self.most, sum(p.grad.nbytes for p in ps if p.grad is not None))
        self.hooks = [p.register_post_accumulate_grad_hook(held) for p in ps] if self.counts else []
    def before_batch(self, learn): self.started = time.perf_counter()
    def after_batch(self, learn): self.seconds.append(time.perf_counter() - self.started)
    def cleanup_fit(self, learn):
        for hook in self.hooks: hook.remove()


def fit(model, in_backward, steps, counts=False):
    "A new optimizer steps the model; the first two steps compile and make state, and are not counted."
    watch = StepTimeCB(counts)
    learn = TrainLearner(model, DataLoaders([batch(M100)]*(steps + 2), []), loss_func, 1e-4,
                         [*([StepInBackwardCB()] if in_backward else []), watch], AdamW)
    learn.fit(1, valid=False)
    return watch.seconds[2:], watch.most


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--steps', type=int, default=5)
    ap.add_argument('--rounds', type=int, default=6)
    ap.add_argument('--memory', choices=['ordinary', 'in the backward'], help=argparse.SUPPRESS)
    args = ap.parse_args()
    if args.memory:
        _, most = fit(Decoder(M100), args.memory != 'ordinary', 1, counts=True)
        return print(json.dumps([most, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024]))
    ways, model, seconds = ('ordinary', 'in the backward'), Decoder(M100), {}
    for k in range(args.rounds):
        for way in ways[::(-1)**k]: seconds.setdefault(way, []).extend(fit(model, way != 'ordinary', args.steps)[0])
    table = ['| steps | ms per batch | of ordinary | gradients held at most, MB | highest resident, MB |',
             '|--|--:|--:|--:|--:|']
    for way in ways:
        out = subprocess.run([sys.executable, __file__, '--memory', way], capture_output=True, text=True, check=True)
        most, resident = json.loads(out.stdout.splitlines()[-1])
        t = statistics.median(seconds[way])
        ratio = t/statistics.median(seconds['ordinary'])
        table.append(f'| {way} | {t*1e3:.0f} | {ratio:.2f} | {most/1e6:.0f} | {resident/1e6:.0f} |')
    record('step_in_backward', '\n'.join(table), f'{count(Decoder(M100)):,} parameters, {torch.get_num_threads()} '
           f'threads; medians of {args.steps*args.rounds} batches, taking turns')


if __name__ == '__main__': main()
