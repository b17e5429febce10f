"""Does it matter for accuracy in how many bits AdamW keeps its state? The notebook's convolutional net on the sample of
Fashion-MNIST, judged on training images that are held out.

    python bench/state_accuracy.py [--seeds N] [--epochs N]

A seed decides weights and order, so that differences are paired."""
import argparse
import statistics
from functools import partial

import torch
import torch.nn.functional as F

from machine import record
from miniai import (
    AdamW,
    BatchSchedCB,
    DataLoaders,
    MetricsCB,
    TrainLearner,
    accuracy,
    fashion_mnist,
    set_seed,
    warmup_cosine,
)
from miniai.init import init_weights
from miniai.models.by_name import build_model

STATES = None, 'bf16', 'int8'


def trained(state, seed, epochs, x, y):
    "Accuracy and loss on the held-out images."
    set_seed(seed)
    dls = DataLoaders.from_arrays(x, y, valid=.2, bs=128, normalize=True)
    model = build_model('simple', dict(channels=1, outputs=10)).apply(partial(init_weights, leaky=.1))
    cbs = [MetricsCB(accuracy), BatchSchedCB(warmup_cosine())]
    learn = TrainLearner(model, dls, F.cross_entropy, .01, cbs, partial(AdamW, state=state))
    learn.fit(epochs)
    return learn.history[-1]['accuracy'], learn.history[-1]['loss']


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--seeds', type=int, default=5)
    ap.add_argument('--epochs', type=int, default=5)
    args = ap.parse_args()
    images = fashion_mnist(source='sample', quiet=True)
    found = {s: [trained(s, seed, args.epochs, images.x_train, images.y_train) for seed in range(args.seeds)]
             for s in STATES}
    table = ['| state | accuracy, mean | spread over seeds | paired difference | its spread | loss, mean |',
             '|--|--:|--:|--:|--:|--:|']
    for s, rows in found.items():
        accs, losses = zip(*rows, strict=True)
        paired = [a - b for a, (b, _) in zip(accs, found[None], strict=True)]
        table.append(f'| {s or "float32"} | {statistics.mean(accs):.4f} | {statistics.stdev(accs):.4f} | '
                     f'{statistics.mean(paired):+.4f} | {statistics.stdev(paired):.4f} | '
                     f'{statistics.mean(losses):.4f} |')
    record('state_accuracy', '\n'.join(table), f'{args.seeds} seeds, {args.epochs} epochs, {torch.get_num_threads()} '
           'threads')


if __name__ == '__main__': main()
