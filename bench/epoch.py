"""The notebook's experiment, three ways: its own, written as a plain PyTorch loop; a bare loop over tensors in memory;
and miniai with its quickest settings. Wall time and accuracy, seed by seed.

    python bench/epoch.py [--seeds N] [--epochs N] [--train N]

Each seed runs the three in turn, on two threads: 5 epochs of Fashion-MNIST in batches of 1024, AdamW with a 1cycle to
6e-2, validation after every epoch. The notebook's way is a Hugging Face dataset of PNG files with a transform for each
item, 4 workers, the default layout, and loss and accuracy copied in every batch. The other two share their settings:
uint8 images in memory, channels_last, bfloat16 where the processor computes in it; the bare loop has torch's fused
AdamW, loss, accuracy, and nothing else. Building the dataset is not counted, starting workers is.
"""
import argparse
import contextlib
import io
import statistics
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, default_collate

from loop_overhead import TerminalBarCB
from machine import record
from miniai import BatchSchedCB, Learner, MetricsCB, TrainCB, accuracy, fashion_mnist, image_loaders
from miniai.accel import ChannelsLastCB, MixedPrecision
from miniai.activations import set_seed
from miniai.init import get_model, init_weights
from miniai.models.layers import act_gr
from miniai.optim import AdamW

LR, BS, MEAN, STD = 6e-2, 1024, 0.28, 0.35


def net(seed):
    set_seed(seed)
    return get_model(act_gr, norm=nn.BatchNorm2d).apply(partial(init_weights, leaky=0.1)).cpu()


def png_datasets(data):
    "The images as the hub has them: a Hugging Face dataset of PNG files, decoded and normalized item by item."
    from datasets import Dataset, Features, Image, Value
    from PIL import Image as Pil
    def png(a):
        out = io.BytesIO()
        Pil.fromarray(a).save(out, 'PNG')
        return dict(bytes=out.getvalue(), path=None)
    def transform(b):
        return b | dict(image=[(torch.from_numpy(np.array(o)).float()[None]/255 - MEAN)/STD for o in b['image']])
    kinds = Features(image=Image(), label=Value('int64'))
    pairs = (data.x_train, data.y_train), (data.x_valid, data.y_valid)
    return [Dataset.from_dict(dict(image=[png(a) for a in x.numpy()], label=y.tolist()), features=kinds)
            .with_transform(transform) for x, y in pairs]


def collated(b):
    out = default_collate(b)
    return out['image'], out['label']


def notebooks_way(datasets, epochs, seed):
    model = net(seed)
    train = DataLoader(datasets[0], BS, shuffle=True, num_workers=4, collate_fn=collated)
    valid = DataLoader(datasets[1], BS*2, num_workers=4, collate_fn=collated)
    opt = torch.optim.AdamW(model.parameters(), LR)
    sched = lr_scheduler.OneCycleLR(opt, LR, total_steps=epochs*len(train))
    for _ in range(epochs):
        model.train()
        losses, hits = [], []
        for xb, yb in train:
            preds = model(xb)
            loss = F.cross_entropy(preds, yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            sched.step()
            losses.append(loss.detach().cpu())
            hits.append((preds.detach().cpu().argmax(1) == yb.cpu()).float().mean())
        model.eval()
        with torch.no_grad(): right = sum((model(xb).argmax(1) == yb).sum().item() for xb, yb in valid)
    return right/len(datasets[1])


def half(on): return torch.autocast('cpu', torch.bfloat16) if on else contextlib.nullcontext()


def bare_loop(data, epochs, seed, bf16):
    model = net(seed).to(memory_format=torch.channels_last)
    x, y = data.x_train[:, None].contiguous(memory_format=torch.channels_last), data.y_train
    def made_float(xb): return xb.float().mul_(1/255/STD).sub_(MEAN/STD)  # of one channel: channels_last as it is
    opt, steps = torch.optim.AdamW(model.parameters(), LR, fused=True), -(-len(x)//BS)
    sched = lr_scheduler.OneCycleLR(opt, LR, total_steps=epochs*steps)
    for _ in range(epochs):
        model.train()
        total = hits = 0.
        for idxs in torch.randperm(len(x)).split(BS):
            xb, yb = made_float(x.index_select(0, idxs)), y[idxs]
            with half(bf16): preds = model(xb)
            loss = F.cross_entropy(preds.float(), yb)
            loss.backward()
            opt.step()
            opt.zero_grad()
            sched.step()
            total += loss.item()*len(yb)
            hits += (preds.argmax(1) == yb).sum().item()
        model.eval()
        right = 0
        with torch.no_grad():
            for xb, yb in zip(data.x_valid.split(BS*2), data.y_valid.split(BS*2), strict=True):
                with half(bf16): right += (model(made_float(xb[:, None])).argmax(1) == yb).sum().item()
    return right/len(data.y_valid)


def miniais(data, epochs, seed, bf16):
    dls = image_loaders(data, BS, seed)
    sched = partial(lr_scheduler.OneCycleLR, max_lr=LR, total_steps=epochs*len(dls.train))
    cbs = [MixedPrecision(dtype=torch.bfloat16) if bf16 else TrainCB(), ChannelsLastCB(), BatchSchedCB(sched),
           MetricsCB(accuracy=accuracy), TerminalBarCB()]
    learn = Learner(net(seed), dls, F.cross_entropy, LR, cbs, AdamW)
    learn.fit(epochs)
    return learn.history[-1]['accuracy']


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument('--seeds', type=int, default=5)
    ap.add_argument('--epochs', type=int, default=5)
    ap.add_argument('--train', type=int, help='train on so many images only, to try the benchmark')
    args = ap.parse_args()
    torch.set_num_threads(2)
    data, bf16 = fashion_mnist(), torch.cpu._is_avx512_bf16_supported()
    if args.train: data = replace(data, x_train=data.x_train[:args.train], y_train=data.y_train[:args.train])
    datasets = png_datasets(data)
    miniais(data, 1, 0, bf16), bare_loop(data, 1, 0, bf16)  # kernels compiled or loaded, memory touched
    ways = {"the notebook's way": lambda s: notebooks_way(datasets, args.epochs, s),
            'bare loop over memory, quickest settings': lambda s: bare_loop(data, args.epochs, s, bf16),
            'miniai, quickest settings': lambda s: miniais(data, args.epochs, s, bf16)}
    seconds, found = {nm: [] for nm in ways}, {nm: [] for nm in ways}
    for seed in range(args.seeds):
        for nm, way in ways.items():
            started = time.perf_counter()
            acc = way(seed)
            seconds[nm].append(time.perf_counter() - started)
            found[nm].append(acc)
            print(f'seed {seed}, {nm}: {seconds[nm][-1]:.1f} s, accuracy {acc:.4f}', flush=True)
    ours, (theirs, bare, _) = seconds['miniai, quickest settings'], seconds.values()
    def spread(xs): return f'{statistics.mean(xs):.4f} ± {statistics.stdev(xs) if len(xs) > 1 else 0:.4f}'
    table = ['| way | seconds | miniai over it | accuracy, mean ± sd |', '|--|--:|--:|--:|']
    for nm, base in zip(ways, (theirs, bare, ours), strict=True):
        ratio = statistics.median(a/b for a, b in zip(ours, base, strict=True))
        table.append(f'| {nm} | {statistics.median(base):.1f} | {ratio:.3f} | {spread(found[nm])} |')
    table += ['', f'Forward pass in {"bfloat16" if bf16 else "float32"}, but for the notebook\'s way: float32.']
    record('epoch', '\n'.join(table), runs=f'{args.seeds} seeds, {args.epochs} epochs, two threads',
           packages=('datasets', 'pillow'))


if __name__ == '__main__': main()
