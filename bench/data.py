"""Samples per second from memory, from a cached Hugging Face dataset, and from plain DataLoaders.

    python bench/data.py [--rounds N] [--samples N] [--batch N]

Random uint8 images of 28 by 28 pixels, in shuffled batches of 1024. Loaders in memory are compared with a copy of
256 MiB, the most that this memory gives; a copy of consecutive batches (`clone`), which stays in the cache, is listed
as well. The Hugging Face dataset holds such images as PNG; its transform makes them normalized floats, as in the
course. Each round runs all loaders of a table in turn; figures are medians.
"""
import argparse
import statistics
import time
import warnings
from contextlib import suppress

import datasets
import numpy as np
import torch
from PIL import Image

from machine import record
from miniai import DataLoaders
from miniai.data import MemoryLoader

SIDE, MEAN, STD = 28, 0.286, 0.353


class Copy:
    "A copy of 256 MiB: the speed of this memory when nothing is computed."
    def __init__(self): self.source, self.target = torch.ones(64*2**20), torch.zeros(64*2**20)

    def __call__(self):
        self.target.copy_(self.source)
        return self.source.nbytes/SIDE**2


def pass_over(dl):
    "A function that makes one pass over a loader and returns the number of samples."
    def run(): return sum(len(b[0]) for b in dl)
    return run


def clones(x, bs):
    def run():
        for part in x.split(bs): part.clone()
        return len(x)
    return run


def rates(contenders, rounds, warm=1):
    "Samples per second of each contender in each round, after `warm` rounds that do not count."
    found, names = {nm: [] for nm in contenders}, list(contenders)
    for r in range(rounds + warm):
        for nm in names[r % len(names):] + names[:r % len(names)]:
            started = time.perf_counter()
            n = contenders[nm]()
            if r >= warm: found[nm].append(n/(time.perf_counter() - started))
    return found


def from_memory(x, y, bs):
    kept = dict(bs=bs, shuffle=True)
    return {'copy of 256 MiB': Copy(), 'copy of consecutive batches': clones(x, bs),
            'memory, uint8 unchanged': pass_over(MemoryLoader(x, y, to_float=False, **kept)),
            'memory, uint8, in order': pass_over(MemoryLoader(x, y, bs=bs, to_float=False)),
            'memory, float': pass_over(MemoryLoader(x, y, **kept)),
            'memory, float and normalized': pass_over(MemoryLoader(x, y, mean=MEAN, std=STD, **kept))}


def transform(b):
    images = [torch.from_numpy(np.array(im))[None] for im in b['image']]
    return b | dict(image=[(im/255 - MEAN)/STD for im in images])


def hugging_face(x, y):
    features = datasets.Features(image=datasets.Image(), label=datasets.Value('int64'))
    columns = dict(image=[Image.fromarray(im) for im in x.numpy()], label=y.tolist())
    ds = datasets.Dataset.from_dict(columns, features)
    return datasets.DatasetDict(train=ds, test=ds.select(range(2))).with_transform(transform)


def from_hugging_face(dd, bs):
    plain = {n: DataLoaders.from_dd(dd, bs, num_workers=n) for n in (0, 2, 4)}
    started = time.perf_counter()
    cached = plain[0].cached()
    took = time.perf_counter() - started
    contenders = {'Hugging Face dataset, cached': pass_over(cached.train)}
    return contenders | {f'the same, DataLoader with {n} workers': pass_over(dl.train) for n, dl in plain.items()}, took


def table(found, base):
    "Median samples per second, GB/s of uint8 pixels, and the median ratio to `base` in the same round."
    lines = ['| from | samples per second | GB/s of pixels | ratio to the copy |', '|--|--:|--:|--:|']
    for nm, values in found.items():
        rate = statistics.median(values)
        part = statistics.median(v/b for v, b in zip(values, base, strict=False))
        lines.append(f'| {nm} | {rate:,.0f} | {rate*SIDE**2/1e9:.3g} | {part:.3g} |')
    return lines


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--rounds', type=int, default=20)
    ap.add_argument('--samples', type=int, default=60_000, help='in memory; a sixth of them as PNG')
    ap.add_argument('--batch', type=int, default=1024)
    args = ap.parse_args()
    warnings.filterwarnings('ignore', '.*max number of worker')
    x = torch.randint(0, 256, (args.samples, SIDE, SIDE), dtype=torch.uint8)
    y = torch.randint(0, 10, (args.samples,))
    dd = hugging_face(x[:args.samples//6], y[:args.samples//6])
    decoded, took = from_hugging_face(dd, args.batch)
    lines, threads = [], sorted({1, torch.get_num_threads()}, reverse=True)
    for n in threads:
        torch.set_num_threads(n)
        found = rates(from_memory(x, y, args.batch), args.rounds)
        lines += [f'With {n} thread{"s"*(n > 1)}:', '', *table(found, found['copy of 256 MiB']), '']
    torch.set_num_threads(threads[0])
    found = rates(decoded | {'copy of 256 MiB': Copy()}, 3)
    lines += [f'Of {len(dd["train"]):,} PNG images, with {threads[0]} threads; caching them took {took:.1f} s:', '',
              *table(found, found['copy of 256 MiB'])]
    runs = f'{args.rounds} rounds in memory, 3 of PNG images, batches of {args.batch}, medians'
    record('data', '\n'.join(lines), runs=runs, packages=('datasets', 'pillow'))


if __name__ == '__main__':
    with suppress(KeyboardInterrupt): main()
