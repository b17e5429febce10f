"""Pictures per second from a folder of JPEGs, and the time until `miniai train` has its first batch.

    python bench/folder.py [--pictures N] [--size PIXELS] [--rounds N]

The folder holds smooth random JPEGs of 256 by 256 pixels in ten classes. `from_folder` decodes them by two threads in
its first pass, and its later passes come from memory. If torchvision is installed, its ImageFolder with Resize,
CenterCrop, ToTensor and Normalize in a DataLoader of two worker processes makes the same batches. Each round makes new
loaders and runs one pass of each in turn; figures are medians. The command is run in a new process, and its time counts
from the end of `import torch`.
"""
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from machine import record
from miniai import DataLoaders

SIDE = 256
FIRST_BATCH = """
import torch, time, sys
start = time.perf_counter()
from miniai.callbacks.train import TrainCB
def predict(self, learn):
    print('first batch', time.perf_counter() - start)
    raise SystemExit
TrainCB.predict = predict
from miniai.cli import main
main(['train', '--data', sys.argv[1], '--size', sys.argv[2], '--out', sys.argv[3]])
"""


def write_pictures(folder, n):
    r = np.random.default_rng(0)
    for i in range(n):
        path = folder/f'class {i % 10}'
        path.mkdir(exist_ok=True)
        coarse = Image.fromarray(r.integers(0, 256, (16, 16, 3), np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path/f'{i}.jpg', quality=90)


def passes(dl):
    start, n = time.perf_counter(), sum(len(y) for _, y in dl)
    return n/(time.perf_counter() - start)


def torchvisions_loader(folder, size):
    from torch.utils.data import DataLoader

    import peers  # declares the operators that torchvision's build for GPUs misses
    assert peers.VISION_OPS
    from torchvision import datasets
    from torchvision import transforms as T
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        tfms = T.Compose([T.Resize(size), T.CenterCrop(size), T.ToTensor(), T.Normalize([.5]*3, [.25]*3)])
    return DataLoader(datasets.ImageFolder(folder, tfms), 64, shuffle=True, num_workers=2)


def first_batch(folder, size, out):
    args = [sys.executable, '-W', 'ignore', '-c', FIRST_BATCH, str(folder), str(size), str(out)]
    said = subprocess.run(args, capture_output=True, text=True, check=False).stdout
    return float(said.split('first batch')[1].split()[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pictures', type=int, default=20_000)
    parser.add_argument('--size', type=int, default=128)
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    found = dict(first=[], cached=[], torchvision=[], command=[])
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/'pictures'
        folder.mkdir()
        write_pictures(folder, args.pictures)
        for i in range(args.rounds):
            dls = DataLoaders.from_folder(folder, size=args.size, workers=2)
            found['first'].append(passes(dls.train))
            found['cached'].append(passes(dls.train))
            try: found['torchvision'].append(passes(torchvisions_loader(folder, args.size)))
            except ImportError: print('torchvision is not installed: no comparison')
            found['command'].append(first_batch(folder, args.size, Path(tmp)/f'run{i}'))
    medians = {nm: statistics.median(xs) for nm, xs in found.items() if xs}
    names = {'from_folder, first pass': 'first', 'from_folder, from memory': 'cached', 'torchvision': 'torchvision'}
    rows = [f'| {label} | {medians[nm]:,.0f} |' for label, nm in names.items() if nm in medians]
    lines = ['| | pictures per second |', '|--|--|', *rows]
    lines += ['', f'`miniai train`: first batch {medians["command"]:.2f} s after `import torch`']
    record('folder', '\n'.join(lines), f'{args.pictures:,} pictures to {args.size} pixels, {args.rounds} rounds',
           ('pillow', 'torchvision'))


if __name__ == '__main__': main()
