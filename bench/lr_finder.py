"""What training at a suggested learning rate gives: miniai's suggestions, fastai's and Lightning's, on 30 small tasks.

    python bench/lr_finder.py [--seeds N] [--first SEED]

Twenty synthetic tasks, regressions on a linear or nonlinear teacher with inputs of equal or very different scale, and
ten on real data; several optimizers. On four more there is nothing to learn. Each library's finder runs as its defaults
say: miniai from 1e-5, 1.3 times per batch; fastai 100 batches from 1e-7 to 10, with a loss smoothed by 0.98 that stops
the search at four times its best, and suggestions by fastai's own functions; Lightning by its own Trainer and Tuner,
100 batches from 1e-8 to 1. Libraries that cannot be imported are left out. Then the model trains at each constant rate,
and at rates from 1e-5 to 10. The regret is (loss - best)/(start - best), with the held-out loss before training and the
lowest at any of these rates; it is at most 1, which a run that diverges gets.
"""
import argparse
import contextlib
import io
import itertools
import logging
import math
import statistics
import tempfile
import warnings
from functools import partial

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_wine
from torch import nn

from machine import record
from miniai import DataLoaders, TrainLearner
from miniai.data import fashion_mnist
from miniai.optim import SGD, AdamW, Lion, Momentum, RMSProp

STEPS, BATCH = 200, 32
GRID = [10**(i/2) for i in range(-10, 3)]
OURS, LIGHTNING = ('half', 'steepest', 'valley', 'tenth'), 'Lightning'
FASTAI = ('valley', 'slide', 'steep', 'minimum')


# Tasks: a function of the seed that gives model, loss, optimizer, and training and held-out data

def teacher(n_in, decay, noise, hidden, opt, seed):
    "Inputs with standard deviations from 1 down to 1/`decay`, and targets of a random teacher."
    g = torch.Generator().manual_seed(1000 + seed)
    x = torch.randn(2000, n_in, generator=g)*torch.logspace(0, -math.log10(decay), n_in)
    w, v = torch.randn(n_in, 8, generator=g)/n_in**.5, torch.randn(8, 1, generator=g)
    y = ((x @ w).tanh() if hidden else x @ w) @ v + noise*torch.randn(2000, 1, generator=g)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(n_in, hidden), nn.Tanh(), nn.Linear(hidden, 1)) if hidden else nn.Linear(n_in, 1)
    return model, F.mse_loss, opt, (x[:1500], y[:1500]), (x[1500:], y[1500:])


def nothing(kind, seed):
    "Tasks on which no rate should be believed: targets that are noise, and a model that is trained already."
    noise = 1. if 'noise' in kind else 0.1
    model, loss, opt, (x, y), valid = teacher(20, 1, noise, 0, SGD if 'SGD' in kind else AdamW, seed)
    if 'noise' in kind:
        model.weight.data.zero_()
        y, valid = torch.randn(len(y), 1), (valid[0], torch.randn(500, 1))
    else: model.weight.data = torch.linalg.lstsq(x, y).solution.T
    return model, loss, opt, (x, y), valid


def table(load, opt, hidden, seed):
    "Rows of a data set of scikit-learn, standardised; an MLP if `hidden`."
    x, y = load(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = torch.tensor(x[order], dtype=torch.float32), torch.tensor(y[order])
    n, classes = len(x)*4//5, not y.is_floating_point()
    x = (x - x[:n].mean(0))/(x[:n].std(0) + 1e-3)
    y = y.long() if classes else ((y - y[:n].mean())/y[:n].std()).float()[:, None]
    n_out = int(y.max()) + 1 if classes else 1
    torch.manual_seed(seed)
    sizes = [x.shape[1], *[hidden]*bool(hidden), n_out]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())][:-1]
    return nn.Sequential(*layers), F.cross_entropy if classes else F.mse_loss, opt, (x[:n], y[:n]), (x[n:], y[n:])


def pictures(opt, convolutions, seed):
    data = fashion_mnist(source='sample', quiet=True)
    x, y = ((data.x_train.reshape(-1, 1, 28, 28).float()/255 - .29)/.35)[:4000, :, ::2, ::2], data.y_train.long()[:4000]
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(),
              nn.Linear(256, 10)] if convolutions else [nn.Flatten(), nn.Linear(196, 64), nn.ReLU(), nn.Linear(64, 10)]
    return nn.Sequential(*layers), F.cross_entropy, opt, (x[:3200], y[:3200]), (x[3200:], y[3200:])


OPTIMIZERS = dict(SGD=SGD, Momentum=partial(Momentum, mom=0.9), RMSProp=RMSProp, AdamW=AdamW, Lion=Lion)
SYNTHETIC = {f'{kind}, {nm}': partial(teacher, n, decay, noise, hidden, opt)
             for kind, n, decay, noise, hidden in [('linear', 20, 1, .1, 0), ('linear, scales to 1:30', 50, 30, .1, 0),
                                                   ('linear, noisy', 20, 3, 1., 0), ('nonlinear', 20, 1, .1, 32)]
             for nm, opt in OPTIMIZERS.items()}
REAL = {'digits, MLP, SGD': partial(table, load_digits, SGD, 64),
        'digits, MLP, AdamW': partial(table, load_digits, AdamW, 64),
        'digits, linear, Momentum': partial(table, load_digits, OPTIMIZERS['Momentum'], 0),
        'breast cancer, MLP, SGD': partial(table, load_breast_cancer, SGD, 32),
        'wine, MLP, AdamW': partial(table, load_wine, AdamW, 32),
        'diabetes, MLP, SGD': partial(table, load_diabetes, SGD, 32),
        'diabetes, linear, AdamW': partial(table, load_diabetes, AdamW, 0),
        'pictures, MLP, Momentum': partial(pictures, OPTIMIZERS['Momentum'], False),
        'pictures, convolutions, AdamW': partial(pictures, AdamW, True),
        'pictures, MLP, Lion': partial(pictures, Lion, False)}
NOTHING = {kind: partial(nothing, kind) for kind in ('only noise, SGD', 'only noise, AdamW', 'trained already, SGD',
                                                     'trained already, AdamW')}


# Curves and suggestions

def batches(data, seed, n):
    g, (x, y) = torch.Generator().manual_seed(seed), data
    for _ in range(n):
        rows = torch.randint(len(x), (BATCH,), generator=g)
        yield x[rows], y[rows]


def steps(task, seed, rates, order=0):
    "Losses of a plain loop that takes a step at each of `rates`, and the trained model; `order` draws other batches."
    model, loss_func, opt_func, train, _ = task(seed)
    opt = opt_func(model.parameters(), rates[0])
    for rate, (x, y) in zip(rates, batches(train, seed + order, len(rates)), strict=True):
        for group in opt.param_groups: group['lr'] = rate
        loss = loss_func(model(x), y)
        if not torch.isfinite(loss): break
        loss.backward()
        opt.step()
        opt.zero_grad()
        yield loss.item(), model


def smoothed(task, seed, low, high):
    "Rates and smoothed losses, as the finders of fastai and Lightning record them."
    rates, losses, average, best = [low*(high/low)**(i/100) for i in range(100)], [], 0., math.inf
    for i, (loss, _) in enumerate(steps(task, seed, rates), 1):
        average = 0.98*average + 0.02*loss
        losses.append(average/(1 - 0.98**i))
        best = min(best, losses[-1])
        if losses[-1] > 4*best: break
    return rates[:len(losses)], losses


def of_miniai(task, seed):
    model, loss_func, opt_func, train, valid = task(seed)
    learn = TrainLearner(model, DataLoaders.from_arrays(*train, valid=valid, bs=BATCH, seed=seed), loss_func,
                         opt_func=opt_func)
    with contextlib.redirect_stdout(io.StringIO()): found = learn.lr_find(full=True)
    plt.close('all')
    return found


def of_fastai(task, seed):
    from fastai.callback import schedule
    rates, losses = (torch.tensor(v[10:-5]) for v in smoothed(task, seed, 1e-7, 10))
    return {f'fastai {nm}': getattr(schedule, nm)(rates, losses, 100)[0] for nm in FASTAI}


def of_lightning(task, seed):
    "By Lightning's own Trainer and Tuner."
    import lightning.pytorch as pl
    from lightning.pytorch.tuner import Tuner
    model, loss_func, opt_func, train, _ = task(seed)

    class Module(pl.LightningModule):
        lr = 1e-3
        def __init__(self):
            super().__init__()
            self.model = model

        def configure_optimizers(self): return opt_func(self.parameters(), lr=self.lr)
        def training_step(self, batch, _): return loss_func(self.model(batch[0]), batch[1])

    loader = torch.utils.data.DataLoader(list(batches(train, seed, 100)), batch_size=None)
    for name in ('lightning.pytorch', 'lightning.fabric'): logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        trainer = pl.Trainer(accelerator='cpu', default_root_dir=folder, logger=False, enable_checkpointing=False,
                             enable_progress_bar=False, enable_model_summary=False)
        found = Tuner(trainer).lr_find(Module(), train_dataloaders=loader)
    return {LIGHTNING: found.suggestion()}


def suggested(task, seed):
    "Every suggestion by its name, and miniai's own doubt."
    found = of_miniai(task, seed)
    rates = {f'miniai {nm}': getattr(found, nm) for nm in OURS}
    for peer in (of_fastai, of_lightning):
        with contextlib.suppress(ImportError): rates |= peer(task, seed)
    return rates, found.doubt


# What training gives

def held_out(model, loss_func, data):
    with torch.no_grad(): return float(loss_func(model(data[0]), data[1]))


def after_training(task, seed, rate):
    "The held-out loss after training at a constant rate; infinite if it diverges."
    _, loss_func, _, _, valid = task(seed)
    done = [model for _, model in steps(task, seed, [rate]*STEPS, order=500)]
    loss = held_out(done[-1], loss_func, valid) if len(done) == STEPS else math.inf
    return loss if math.isfinite(loss) else math.inf


def judged(task, seed):
    "Losses at each suggestion (None where there is none), regrets, and miniai's doubt."
    model, loss_func, _, _, valid = task(seed)
    (rates, doubt), start = suggested(task, seed), held_out(model, loss_func, valid)
    losses = {nm: None if rate is None else after_training(task, seed, rate) for nm, rate in rates.items()}
    best = min([after_training(task, seed, rate) for rate in GRID] + [x for x in losses.values() if x is not None])
    regrets = {nm: None if x is None else min((x - best)/max(start - best, 1e-9), 1.) for nm, x in losses.items()}
    return losses, regrets, doubt, start, best


def mean(xs):
    xs = [x for x in xs if x is not None]
    return statistics.mean(xs) if xs else math.nan


def shown(x): return '-' if math.isnan(x) else 'diverges' if math.isinf(x) else f'{x:.3g}'


def totals(name, runs, names):
    "A row for each way: mean and worst regret, and in how many runs it loses more than a tenth, or gives no rate."
    rows = []
    for nm in names:
        regrets = [run[1][nm] for run in runs if nm in run[1]]
        known = [x for x in regrets if x is not None]
        if not known: continue
        lost = sum(x > .1 for x in known)
        rows.append(f'| {name} | {nm} | {mean(known):.3f} | {statistics.median(known):.3f} | {max(known):.2f} | '
                    f'{lost}/{len(known)} | {len(regrets) - len(known)} |')
    return rows


def doubts(believed, doubted, nothing):
    "How often a doubt was right, as sentences: the regret at miniai's first suggestion was above 0.1."
    def bad(runs): return f'{sum(run[1]["miniai half"] > .1 for run in runs)} of {len(runs)}'
    given = [run for run in doubted if run[1]['miniai half'] is not None]
    return [f'Of the curves that miniai doubts, `half` trained badly (regret above 0.1) in {bad(given)}; of those that '
            f'it does not doubt in {bad(believed)}.',
            f'It gave no rate for {len(doubted) - len(given)} curves of tasks that can be learned. Where there is '
            f'nothing to learn it doubted {sum(bool(run[2]) for run in nothing)} of {len(nothing)} curves.']


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--first', type=int, default=0, help='the first seed')
    parser.add_argument('--tasks', default='', help='only tasks whose names contain this')
    args = parser.parse_args()
    torch.set_num_threads(1)
    mpl.use('agg')
    warnings.filterwarnings('ignore')
    seeds = range(args.first, args.first + args.seeds)
    kinds = dict(synthetic=SYNTHETIC, real=REAL, nothing=NOTHING)
    kinds = {kind: {nm: [judged(task, seed) for seed in seeds] for nm, task in tasks.items() if args.tasks in nm}
             for kind, tasks in kinds.items()}
    names = list(next(run[0] for tasks in kinds.values() for runs in tasks.values() for run in runs))
    out = ['Regret, over all tasks and seeds', '',
           '| tasks | suggestion | mean | median | worst | above 0.1 | none given |', '|--|--|--:|--:|--:|--:|--:|']
    learnable = {kind: [run for runs in kinds[kind].values() for run in runs] for kind in ('synthetic', 'real')}
    for kind, runs in learnable.items(): out += totals(kind, runs, names)
    everything = [run for runs in learnable.values() for run in runs]
    believed, doubted = ([run for run in everything if bool(run[2]) == doubt] for doubt in (False, True))
    out += totals('all', everything, names) + totals('all that miniai does not doubt', believed, names)
    out += totals('all that miniai doubts', doubted, names)
    out += ['', *doubts(believed, doubted, [run for runs in kinds['nothing'].values() for run in runs])]
    out += ['', 'Held-out loss after training, mean over seeds', '',
            '| task | start | best rate | ' + ' | '.join(names) + ' | doubted |', '|--|' + '--:|'*(len(names) + 3)]
    for kind, tasks in kinds.items():
        for nm, runs in tasks.items():
            cells = [mean([run[3] for run in runs]), mean([run[4] for run in runs])]
            cells += [mean([run[0].get(s) for run in runs]) for s in names]
            doubted = sum(bool(run[2]) for run in runs)
            out.append(f'| {kind}: {nm} | ' + ' | '.join(map(shown, cells)) + f' | {doubted}/{len(runs)} |')
    missing = [nm for nm in ('fastai', LIGHTNING) if not any(nm in s for s in names)]
    if missing: out += ['', f'Could not be imported: {", ".join(missing)}']
    record('lr_finder', '\n'.join(out), f'{args.seeds} seeds, {STEPS} steps of {BATCH} samples',
           ('fastai', 'lightning', 'scikit-learn'))


if __name__ == '__main__': main()
