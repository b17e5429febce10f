"""Healthy runs of the ward: every optimizer of the command line at the rate that it is tuned for, every schedule, small
and large networks, images, tables and words, classes and numbers. A run of the command line is built by its own code.
The networks of the ward get half of the rate, as tables do: of 1, 1/2, 1/4, 1/8 and 1/16 that was within 6 % of
the best validation loss for six of seven optimizers."""
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, make_friedman1

from miniai import DataLoaders, MemoryLoader, TrainLearner, fashion_mnist, set_seed
from miniai.jobs.build import auto_lr, build_model, build_optimizer, learning_rate
from miniai.jobs.compute import resolve
from miniai.jobs.config import TrainConfig
from miniai.jobs.registry import OPTIMIZERS, SCHEDULES
from miniai.jobs.train import build_learner
from miniai.sgd import BatchSchedCB
from ward_networks import NETWORKS, TASKS

FRESH = 3060  # where seeds of the held-out half begin; a multiple of 60, which keeps the variants of faults


class Healthy(NamedTuple):
    "What is trained, how."
    optimizer: str
    schedule: str
    network: str
    task: str
    seed: int


@cache
def images(): return fashion_mnist(source='sample', quiet=True)


def clothes(n, size, seed):
    "`n` images of Fashion-MNIST, and 500 to validate. `size` is 28, or 14 to be faster."
    data = images()
    x, y, rows = data.x_train[:, ::28//size, ::28//size], data.y_train, slice(500*(seed % 8), 500*(seed % 8) + n)
    return DataLoaders.from_arrays(x[rows], y[rows], (x[-500:], y[-500:]), bs=128, normalize=True, seed=seed)


def table(load, seed):
    if load is None:
        import pandas as pd
        x, y = make_friedman1(1500, noise=1., random_state=seed)
        frame = pd.DataFrame(x, columns=[f'x{i}' for i in range(10)]).assign(target=y)
    else: frame = load(as_frame=True).frame
    return DataLoaders.from_table(frame, 'target', bs=64, seed=seed)


JOBS = {  # networks of the command line: loaders of a seed, model, its options, epochs
    'simple':        (partial(clothes, 5000, 28), 'simple', '', 5),
    'small simple':  (partial(clothes, 5000, 28), 'simple', 'widths=[4,8,16]', 5),
    'large simple':  (partial(clothes, 4000, 14), 'simple', 'widths=[16,32,64,128]', 4),
    'resnet':        (partial(clothes, 4000, 14), 'resnet', '', 4),
    'cells':         (partial(table, load_breast_cancer), 'table', '', 15),
    'digits':        (partial(table, load_digits), 'table', '', 8),
    'diabetes':      (partial(table, load_diabetes), 'table', '', 25),
    'friedman':      (partial(table, None), 'table', '', 12)}
WARD = [('mlp', 'digits'), ('transformer', 'tokens'), ('conv', 'digits'), ('mlp', 'friedman'), ('resnet', 'digits'),
        ('transformer', 'digits'), ('conv with norms', 'digits'), ('conv', 'friedman')]


def runs(half):
    """Thirty runs: every optimizer once, and five of them twice. In the other half each has another network, task and
    schedule, and other seeds."""
    names, shift = [*OPTIMIZERS], 0 if half == 'development' else 5
    for i in range(30):
        schedule, k, seed = [*SCHEDULES][(i + i//4 + shift) % 4], i*7 + shift, i + FRESH*(half == 'held-out')
        if i % 3 == 2: network, task = WARD[(i//3 + shift) % len(WARD)]
        else: network, task = [*JOBS][k % len(JOBS)], 'job'
        yield Healthy(names[i % len(names)], schedule, network, task, seed)


def learner(run):
    "The Learner of a healthy run, and its epochs."
    return _job(run) if run.task == 'job' else _ward(run)


def _job(run):
    load, model, net, epochs = JOBS[run.network]
    dls = load(run.seed)
    config = TrainConfig(seed=run.seed, device='cpu', model=model, net=net, optimizer=run.optimizer,
                         schedule=run.schedule, epochs=epochs)
    config = resolve(replace(config, lr=learning_rate(config, dls)), 'cpu')
    return build_learner(config, dls, [], build_model(config, dls), build_optimizer(config)), epochs


def _ward(run):
    task, epochs = TASKS[run.task](run.seed), 12
    set_seed(run.seed)
    net = NETWORKS[run.network](task)
    dls = DataLoaders(MemoryLoader(task.x, task.y, bs=64, shuffle=True, seed=run.seed, to_float=False),
                      MemoryLoader(task.x_valid, task.y_valid, bs=256, to_float=False))
    lr, steps = auto_lr(run.optimizer, run.schedule)/2, epochs*len(dls.train)
    cbs = BatchSchedCB(partial(SCHEDULES[run.schedule].build, lr=lr, steps=steps))
    return TrainLearner(net, dls, task.loss_func, lr, cbs, OPTIMIZERS[run.optimizer].build), epochs
