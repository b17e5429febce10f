"A tiny Fashion-MNIST in files, and what a run left in its folder: shared by the tests of jobs and command line."
import json
import struct

import numpy as np
import pytest
from PIL import Image

from miniai.cli import main
from miniai.data import fashion_mnist

NAMES = ['train-images-idx3-ubyte', 'train-labels-idx1-ubyte', 't10k-images-idx3-ubyte', 't10k-labels-idx1-ubyte']
RUN_FILES = ['activations.png', 'batches.json', 'checkpoints', 'config.toml', 'curves.png', 'data.json',
             'environment.json', 'health.json', 'metrics.jsonl', 'model.json', 'model.safetensors', 'report.html',
             'results.json', 'status.json']
AFTER_EPOCH = ('metrics.jsonl', 'results.json')  # which a run has that finished one


def run(*args):
    "The exit code of `miniai args`, in this process."
    with pytest.raises(SystemExit) as e: main(args)
    return e.value.code


def write_tiny(folder, n=600, m=200):
    "The first `n` and `m` images of the sample as IDX files: 0, 0, type 8, dimensions, big-endian sizes, data."
    data = fashion_mnist(source='sample', quiet=True)
    for name, t in zip(NAMES, (data.x_train[:n], data.y_train[:n], data.x_valid[:m], data.y_valid[:m]), strict=True):
        a = t.numpy().astype(np.uint8)
        (folder/name).write_bytes(bytes([0, 0, 8, a.ndim]) + struct.pack(f'>{a.ndim}I', *a.shape) + a.tobytes())
    return folder


def files(folder): return sorted(p.name for p in folder.iterdir())
def history(folder): return [json.loads(line) for line in (folder/'metrics.jsonl').read_text().splitlines()]


def colors(path):
    "The number of colors in a PNG: 1 where nothing was drawn."
    with Image.open(path) as im:
        assert im.format == 'PNG'
        return len(im.convert('RGB').getcolors(1 << 24))
