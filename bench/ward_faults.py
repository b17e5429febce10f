"The faults of the ward: each is planted in a healthy run as a user would bring it about, without knowing."
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import lr_scheduler

from miniai import Callback, MemoryLoader, optim
from ward_networks import NETWORKS, Task

OPTIMIZERS = [  # of seeds 0 to 4: name, rate for `mlp`
    ('adamw', optim.AdamW, 3e-3), ('heavyball', optim.HeavyBall, 2e-2), ('adam', optim.Adam, 3e-3),
    ('rmsprop', optim.RMSProp, 1e-3), ('lion', optim.Lion, 1e-3)]
RATES = {'mlp': 1., 'conv': 1., 'resnet': 1., 'transformer': 0.5, 'mlp with norms': 2., 'conv with norms': 2.}
GRID = ('mlp', 'conv', 'transformer'), ('clothes', 'digits', 'friedman')
NORMED = ('mlp with norms', 'conv with norms', 'resnet')
CLASSES = ('clothes', 'digits', 'tokens')
FAULTS = {}


@dataclass
class Patient:
    "One run before it starts. A fault changes it."
    network: str
    task: Task
    seed: int
    net: nn.Module = None
    lr: float = None
    steps: int = 200
    bs: int = 64
    warmup: float = 0.1                # share of the steps
    cosine: bool = None                # after it; by default for odd seeds
    opt_options: dict = field(default_factory=lambda: dict(wd=0.))
    params: Callable = None            # of the net, the optimizer's parameters
    cbs: list = field(default_factory=list)
    wrap: Callable = None              # of the training loader

    def __post_init__(self):
        self.use(*OPTIMIZERS[self.seed % len(OPTIMIZERS)])
        if self.cosine is None: self.cosine = self.seed % 2
        self.build()

    def use(self, name, kind, lr): self.opt_name, self.opt_class, self.lr = name, kind, lr*RATES[self.network]

    def build(self, **options):
        torch.manual_seed(self.seed)
        self.net = NETWORKS[self.network](self.task, **options)

    def opt_func(self, params, lr):
        return self.opt_class(self.params(self.net) if self.params else params, lr, **self.opt_options)

    def schedule(self, opt, steps):
        "A linear warm-up, then a constant rate or half a cosine."
        n = round(self.warmup*steps)
        rising = lr_scheduler.LinearLR(opt, 1/max(1, n), 1., max(1, n))
        rest = lr_scheduler.CosineAnnealingLR(opt, steps - n) if self.cosine else lr_scheduler.ConstantLR(opt, 1.)
        return lr_scheduler.SequentialLR(opt, [rising, rest], [n]) if n > 0 else rest

    def loaders(self):
        t = self.task
        train = MemoryLoader(t.x, t.y, bs=self.bs, shuffle=True, seed=self.seed, to_float=False, drop_last=True)
        valid = MemoryLoader(t.x_valid, t.y_valid, bs=256, to_float=False)
        return self.wrap(train) if self.wrap else train, valid


@dataclass
class Fault:
    "A function that plants a fault, and where."
    name: str
    plant: Callable
    networks: tuple
    tasks: tuple
    about: str


def fault(name, networks=GRID[0], tasks=GRID[1]):
    def add(f):
        FAULTS[name] = Fault(name, f, networks, tasks, f.__doc__)
        return f
    return add


# Layers

@fault('dead layer')
def dead_layer(p):
    "The bias of a layer before a ReLU is -10, as after a step that was far too long."
    fed = p.net.fed()
    nn.init.constant_(fed[p.seed % len(fed)].bias, -10.)


@fault('saturated layer')
def saturated_layer(p):
    "A layer before tanh (odd seeds: sigmoid) has weights 30 times too large."
    p.build(act=nn.Sigmoid if p.seed % 2 else nn.Tanh)
    fed = p.net.fed()
    with torch.no_grad(): fed[p.seed % len(fed)].weight.mul_(30)


DEEP = dict(mlp=dict(depth=10), conv=dict(depth=8, shrink=False), transformer=dict(depth=4, norm=False, skip=False))


@fault('vanishing gradients')
def vanishing_gradients(p):
    "A deep network of sigmoids; for odd seeds, of tanh with weights a fifth of the right ones. No norms, no skips."
    p.build(**DEEP[p.network], act=nn.Tanh if p.seed % 2 else nn.Sigmoid)
    if p.seed % 2:
        for m in hidden(p.net): m.weight.data.mul_(0.2)


@fault('exploding gradients')
def exploding_gradients(p):
    "A deep network without norms whose weights are drawn from N(0, 1) and not scaled; odd seeds: twice Kaiming's."
    p.build(**DEEP[p.network] | dict(depth=10 if p.seed % 2 else 6) if p.network != 'transformer' else
            dict(depth=6 if p.seed % 2 else 3, norm=False))
    for m in hidden(p.net):
        if p.seed % 2: nn.init.kaiming_normal_(m.weight).data.mul_(2.)
        else: nn.init.normal_(m.weight)


def hidden(net): return [m for m in net.blocks.modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d)]


# Loss

@fault('wrong initial loss')
def wrong_initial_loss(p):
    "The last layer is drawn from N(0, 1) times 2; in a regression with even seeds the targets are not standardised."
    if p.task.outputs or p.seed % 2: nn.init.normal_(p.net.last.weight, std=2.)
    else: p.task = replace(p.task, y=unscaled(p.task.y, p.task.raw_y), y_valid=unscaled(p.task.y_valid, p.task.raw_y))


def unscaled(x, raw): return (x*raw[0] + raw[1]).float()


@fault('softmax before the loss', tasks=CLASSES)
def softmax_before_the_loss(p):
    "The network ends with a softmax, and cross-entropy has its own."
    p.net = nn.Sequential(p.net, nn.Softmax(1))


@fault('stuck at chance', tasks=CLASSES)
def stuck_at_chance(p):
    "All weights are initialized to 0; for odd seeds what the last layer gets is multiplied by 0, a mask gone wrong."
    if p.seed % 2: p.net.blocks.append(Masked())
    else:
        for q in p.net.parameters(): nn.init.zeros_(q)


class Masked(nn.Module):
    "What a mask of zeros leaves."
    def forward(self, x): return x*torch.zeros_like(x)


# Rates

@fault('rate too high')
def rate_too_high(p):
    "300 times the rate that works; for momentum, which then diverges at once, 20 times, and 100 for a transformer."
    p.lr *= 300 if p.opt_name != 'heavyball' else 100 if p.network == 'transformer' else 20
    p.cosine = False


@fault('rate too low')
def rate_too_low(p):
    "A thousandth of the rate that works."
    p.lr /= 1000


@fault('warm-up too short')
def warm_up_too_short(p):
    "No warm-up, at a rate that works with one: for Adam and RMSProp, whose first steps are the longest."
    if p.opt_name in ('heavyball', 'lion'): p.use(*OPTIMIZERS[0 if p.seed % 5 == 1 else 2])
    p.warmup, p.cosine, p.lr = 0., True, p.lr*{'mlp': 30, 'conv': 50}.get(p.network, 80)


@fault('clipping always')
def clipping_always(p):
    "Gradients are clipped to a norm of 0.01, by the optimizer, or for odd seeds by a line in the training loop."
    if p.seed % 2: p.cbs.append(ClipCB())
    else: p.opt_options['clip_norm'] = 0.01


class ClipCB(Callback):
    "A training loop that clips by itself."
    def after_backward(self, learn): clip_grad_norm_(learn.model.parameters(), 0.01)


# Parameters

@fault('parameter never moves')
def parameter_never_moves(p):
    "A layer that forward does not use, one behind a detach, or one whose group has a rate of 0."
    if p.seed % 3 == 0: p.net.extra = nn.Linear(8, 8)
    elif p.seed % 3 == 1: p.net.blocks.insert(1, Detached())
    else:
        first = [*p.net.blocks[0].parameters()]
        p.params = lambda net: [dict(params=first, lr=0.), dict(params=others(net, first))]


class Detached(nn.Module):
    "A detach() left over from an experiment."
    def forward(self, x): return x.detach()


def others(net, some):
    known = set(map(id, some))
    return [q for q in net.parameters() if id(q) not in known]


@fault('parameter in no group')
def parameter_in_no_group(p):
    "The optimizer gets the blocks and not the head; for odd seeds the head and not the blocks."
    if p.seed % 2: p.params = lambda net: [*net.head.parameters()]
    else: p.params = lambda net: [*net.blocks.parameters()]


@fault('decay on norms', networks=('mlp with norms', 'conv with norms', 'transformer'))
def decay_on_norms(p):
    "All parameters decay, by more than half of themselves during the run."
    p.opt_options['wd'] = 1.5/(p.lr*p.steps)


# BatchNorm

@fault('batch norm differs between modes', networks=NORMED)
def batch_norm_differs(p):
    "BatchNorm's momentum is 0.001, another library's 0.999; for odd seeds 0, and its statistics stay as they began."
    for m in p.net.modules():
        if hasattr(m, 'running_mean'): m.momentum = 0. if p.seed % 2 else 0.001


@fault('batch too small for batch norm', networks=NORMED)
def batch_too_small(p):
    "Batches of 2 samples; for odd seeds of 3."
    p.bs = 3 if p.seed % 2 else 2


# Data

@fault('inputs not normalized')
def inputs_not_normalized(p):
    "Pixels from 0 to 255, columns in the units that they were measured in."
    p.task = replace(p.task, x=unscaled(p.task.x, p.task.raw), x_valid=unscaled(p.task.x_valid, p.task.raw))


@fault('validation inputs differ', tasks=('clothes', 'digits', 'clusters'))
def validation_inputs_differ(p):
    "Only training data are normalized: in validation pixels go from 0 to 255, columns are in their units."
    p.task = replace(p.task, x_valid=unscaled(p.task.x_valid, p.task.raw))


@fault('validation worse than guessing', tasks=CLASSES)
def validation_worse_than_guessing(p):
    "Labels begin with 1 in the file of the validation data; the last class became the first one."
    p.task = replace(p.task, y_valid=(p.task.y_valid + 1) % p.task.outputs)


@fault('constant inputs')
def constant_inputs(p):
    "An array of inputs that was never filled: zeros; for odd seeds one number everywhere."
    value = float(p.seed % 2)*0.7
    p.task = replace(p.task, x=torch.full_like(p.task.x, value), x_valid=torch.full_like(p.task.x_valid, value))


@fault('repeated inputs', tasks=('clothes', 'digits', 'tokens'))
def repeated_inputs(p):
    "An index that ends too early: 16 samples again and again; for odd seeds an iterator that gives its first batch."
    if p.seed % 2: p.wrap = FirstBatch
    else:
        i = torch.arange(len(p.task.x)) % 16
        p.task = replace(p.task, x=p.task.x[i], y=p.task.y[i])


class Wrapped:
    "A loader around another one."
    def __init__(self, dl): self.dl = dl
    def __len__(self): return len(self.dl)


class FirstBatch(Wrapped):
    "A loop that makes a new iterator for each batch."
    def __iter__(self):
        for _ in range(len(self.dl)): yield next(self.dl.batches(0))


@fault('labels out of range', tasks=CLASSES)
def labels_out_of_range(p):
    "Classes counted from 1; for odd seeds, -1 for those that are not known."
    y = p.task.y.clone()
    if p.seed % 2: y[::10] = -1
    else: y += 1
    p.task = replace(p.task, y=y)


@fault('unbalanced labels', tasks=CLASSES)
def unbalanced_labels(p):
    "Of 20 samples 19 are of one class."
    p.task = replace(p.task, **uneven(p.task.x, p.task.y))


def uneven(x, y, share=0.05):
    common = y == y.mode().values
    rare = (~common).nonzero().flatten()[:max(2, round(common.sum().item()*share))]
    rows = torch.cat([common.nonzero().flatten(), rare])
    return dict(x=x[rows], y=y[rows])


@fault('shuffled labels')
def shuffled_labels(p):
    "Labels in another order than inputs."
    few(p, 256)
    r = torch.Generator().manual_seed(p.seed)
    p.task = replace(p.task, y=p.task.y[torch.randperm(len(p.task.y), generator=r)],
                     y_valid=p.task.y_valid[torch.randperm(len(p.task.y_valid), generator=r)])
    p.steps, p.lr = 400, p.lr*2


def few(p, n): p.task = replace(p.task, x=p.task.x[:n], y=p.task.y[:n])


@fault('validation data in training')
def validation_in_training(p):
    "Training data that were not split off: all samples; for odd seeds half of those to validate."
    n = len(p.task.x_valid) // (1 + p.seed % 2)
    p.task = replace(p.task, x=torch.cat([p.task.x, p.task.x_valid[:n]]), y=torch.cat([p.task.y, p.task.y_valid[:n]]))


@fault('overfitting')
def overfitting(p):
    "A wide network for 128 samples, and 150 epochs."
    few(p, 128)
    p.build(width={'mlp': 256, 'conv': 32, 'transformer': 64}[p.network])
    p.steps = 300


@fault('underfitting', tasks=('clothes', 'digits', 'clusters'))
def underfitting(p):
    "A stem made for larger inputs: it leaves 2 pixels, or 2 means of columns."
    p.net.stem = nn.Sequential(Shrink(), p.net.stem)
    p.steps = 600


class Shrink(nn.Module):
    "The means of two halves of each sample, in its size."
    def forward(self, x):
        if x.ndim == 2: return F.interpolate(F.adaptive_avg_pool1d(x[:, None], 2), size=x.shape[1:])[:, 0]
        return F.interpolate(F.adaptive_avg_pool2d(x, (2, 1)), size=x.shape[2:])


@fault('non-finite values')
def non_finite_values(p):
    "A missing value in one sample; for odd seeds a constant column that was divided by its deviation, 0."
    x = p.task.x.clone()
    rows = x.flatten(1)
    if p.seed % 2: rows[:, -1] = (rows[:, -1]*0)/0
    else: rows[len(x)//2, -1] = torch.nan
    p.task = replace(p.task, x=rows.view_as(x))


@fault('slow data loading')
def slow_data_loading(p):
    "A loader that takes 100 ms for each batch, as one that decodes pictures does."
    p.wrap, p.steps = Slow, 25


class Slow(Wrapped):
    "A loader that takes its time."
    def __iter__(self):
        for batch in self.dl:
            time.sleep(0.1)
            yield batch
