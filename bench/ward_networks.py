"The networks and tasks of the ward: small ones, made afresh from a seed, with every part where a fault can be planted."
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits, make_blobs, make_friedman1
from torch import nn

from miniai import fashion_mnist
from miniai.resnet import act_gr

IMAGE, TABLE, TOKENS = 'images', 'table', 'tokens'


@dataclass
class Task:
    "Inputs and targets of training and validation, prepared as they should be; `raw` undoes that for inputs."
    kind: str
    x: torch.Tensor
    y: torch.Tensor
    x_valid: torch.Tensor
    y_valid: torch.Tensor
    outputs: int                       # 0 for regression
    raw: tuple = (1., 0.)              # inputs times the first plus the second are as they were found
    raw_y: tuple = (1., 0.)

    @property
    def loss_func(self): return F.cross_entropy if self.outputs else F.mse_loss


@cache
def _clothes():
    data = fashion_mnist(source='sample', quiet=True)
    return F.avg_pool2d(data.x_train[:, None].float().div(255), 2), data.y_train


def _split(kind, x, y, n, n_valid, outputs, seed, mean=None, std=None, **raw):
    "`n` rows to train and others to validate, drawn with the seed, and normalized by those that train."
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:n + n_valid]
    x, y = x[rows], y[rows]
    if mean is not None: x = (x - mean)/std
    return Task(kind, x[:n], y[:n], x[n:], y[n:], outputs, **raw)


def clothes(seed, n=1600, n_valid=512):
    "Fashion-MNIST: gray images, of 14 by 14 pixels to be faster."
    x, y = _clothes()
    mean, std = x.mean().item(), x.std().item()
    return _split(IMAGE, x, y, n, n_valid, 10, seed, mean, std, raw=(std*255, mean*255))


def digits(seed, n=1400, n_valid=397):
    "Handwritten digits of 8 by 8 pixels."
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None]/16, torch.tensor(data.target)
    return _split(IMAGE, x, y, n, n_valid, 10, seed, x.mean(), x.std(), raw=(x.std().item()*255, x.mean().item()*255))


def friedman(seed, n=1500, n_valid=500):
    "Friedman's first function of ten numbers, with noise: regression."
    x, y = make_friedman1(n + n_valid, n_features=10, noise=1., random_state=seed)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32)
    mean, std = y[:n].mean(), y[:n].std()
    scale = 10.**(torch.arange(10) % 4)  # as found, columns have different units
    return _split(TABLE, (x - 0.5)/12**-0.5, (y - mean)/std, n, n_valid, 0, seed,
                  raw=(scale*12**-0.5, scale*0.5), raw_y=(std.item(), mean.item()))


def clusters(seed, n=1500, n_valid=500):
    "A table of ten numbers: to which of twelve clusters does a row belong?"
    x, y = make_blobs(n + n_valid, n_features=10, centers=12, cluster_std=4., random_state=seed)
    x, y = torch.tensor(x, dtype=torch.float32), torch.tensor(y)
    return _split(TABLE, x, y, n, n_valid, 12, seed, x.mean(0), x.std(0), raw=(x.std(0), x.mean(0)))


def tokens(seed, n=1500, n_valid=500, length=16, words=6):
    "Sequences of words: which of them is the most frequent?"
    r = np.random.default_rng(seed)
    y = r.integers(0, words, n + n_valid)
    x = r.integers(0, words, (n + n_valid, length))
    x = np.where(r.random(x.shape) < 0.3, y[:, None], x)
    return _split(TOKENS, torch.tensor(x), torch.tensor(y), n, n_valid, words, seed)


TASKS = dict(clothes=clothes, digits=digits, friedman=friedman, clusters=clusters, tokens=tokens)


class Rows(nn.Module):
    "A sample as a sequence of vectors: rows of an image, columns of a table, words."
    def __init__(self, task, width):
        super().__init__()
        n = task.x.shape[-2] if task.kind == IMAGE else task.x.shape[-1]
        self.kind = task.kind
        self.place = nn.Parameter(torch.randn(n, width)*0.02)
        if task.kind == IMAGE: self.embed = nn.Linear(task.x.shape[-1], width)
        elif task.kind == TOKENS: self.embed = nn.Embedding(int(task.x.max()) + 1, width)
        else: self.scale = nn.Parameter(torch.randn(n, width)*0.3)

    def forward(self, x):
        if self.kind == TABLE: return x[..., None]*self.scale + self.place
        return self.embed(x.flatten(1, 2) if self.kind == IMAGE else x) + self.place


class Flat(nn.Module):
    "A sample as one vector."
    def __init__(self, task, width=8):
        super().__init__()
        self.embed = nn.Embedding(int(task.x.max()) + 1, width) if task.kind == TOKENS else nn.Identity()
        self.width = task.x[0].numel()*(width if task.kind == TOKENS else 1)

    def forward(self, x): return self.embed(x).flatten(1)


class Planes(nn.Module):
    "A sample with channels, for convolutions: words have a channel for each number of their vector."
    def __init__(self, task, width=8):
        super().__init__()
        self.kind, self.channels = task.kind, width if task.kind == TOKENS else 1
        self.embed = nn.Embedding(int(task.x.max()) + 1, width) if task.kind == TOKENS else nn.Identity()

    def forward(self, x):
        if self.kind == IMAGE: return x
        return self.embed(x).transpose(1, 2) if self.kind == TOKENS else x[:, None]


class Net(nn.Module):
    "`stem`, blocks, `head`. A regression has one output, without a dimension of its own."
    def __init__(self, stem, blocks, head):
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.Sequential(*blocks), head
        self.last = head[-1] if isinstance(head, nn.Sequential) else head

    def forward(self, x):
        x = self.head(self.blocks(self.stem(x)))
        return x.squeeze(-1) if x.shape[-1] == 1 else x

    def fed(self):
        "The layers directly before an activation: where a bias can kill it or a weight saturate it."
        found = []
        for m in self.blocks.modules():
            for a, b in pairwise(m.children()):
                if isinstance(b, Act): found.append(a)
        return found


class Act(nn.Module):
    "An activation, in a class of its own so that `Net.fed` finds it."
    def __init__(self, act):
        super().__init__()
        self.f = act()

    def forward(self, x): return self.f(x)


class Residual(nn.Module):
    "Layers and a skip around them."
    def __init__(self, *layers):
        super().__init__()
        self.f = nn.Sequential(*layers)

    def forward(self, x): return x + self.f(x)


class Attention(nn.Module):
    "Self-attention of two heads (Vaswani et al. 2017)."
    def __init__(self, width, heads=2):
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3*width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Mean(nn.Module):
    "The mean over some dimensions."
    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def forward(self, x): return x.mean(self.dims)


def _kaiming(net):
    "Kaiming's initialization for hidden layers without a norm, as a careful user gives a deep one."
    for m in net.blocks.modules():
        if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d):
            nn.init.kaiming_normal_(m.weight)
            if m.bias is not None: nn.init.zeros_(m.bias)
    return net


def mlp(task, width=64, depth=3, act=nn.ReLU, norm=None):
    stem, blocks = Flat(task), []
    widths = [stem.width, *[width]*depth]
    for ni, nf in pairwise(widths):
        blocks.append(nn.Sequential(nn.Linear(ni, nf), *[nn.BatchNorm1d(nf)]*bool(norm), Act(act)))
    return _kaiming(Net(stem, blocks, nn.Linear(width, task.outputs or 1)))


def conv(task, width=8, depth=3, act=nn.ReLU, norm=None, shrink=True):
    "Convolutions that halve the size and double the width; all of one width and size if not `shrink`."
    stem = Planes(task)
    d = 2 if task.kind == IMAGE else 1
    layer, bn = (nn.Conv2d, nn.BatchNorm2d) if d == 2 else (nn.Conv1d, nn.BatchNorm1d)
    widths = [stem.channels, *(width*(2**i if shrink else 1) for i in range(depth))]
    blocks = [nn.Sequential(layer(ni, nf, 3, stride=2 if shrink or i == 0 else 1, padding=1),
                            *[bn(nf)]*bool(norm), Act(act))
              for i, (ni, nf) in enumerate(pairwise(widths))]
    sizes = task.x.shape[-d:] if task.kind != TOKENS else task.x.shape[-1:]
    n = int(np.prod([-(-s//2**(depth if shrink else 1)) for s in sizes]))
    return _kaiming(Net(stem, blocks, nn.Sequential(nn.Flatten(), nn.Linear(n*widths[-1], task.outputs or 1))))


def resnet(task, width=16, depth=3, act=act_gr, norm=True, momentum=0.1):
    "Residual blocks with BatchNorm: of convolutions for images and words, of linear layers for tables."
    if task.kind == TABLE:
        first, bn, dims = nn.Linear(task.x.shape[-1], 4*width), nn.BatchNorm1d, None
        width, stem = 4*width, nn.Identity()
        def layer(): return nn.Linear(width, width, bias=False)
    else:
        d = 2 if task.kind == IMAGE else 1
        kind, bn, dims = (nn.Conv2d, nn.BatchNorm2d, (2, 3)) if d == 2 else (nn.Conv1d, nn.BatchNorm1d, (2,))
        stem = Planes(task)
        first = kind(stem.channels, width, 3, stride=2, padding=1)
        def layer(): return kind(width, width, 3, padding=1, bias=False)
    blocks = [nn.Sequential(first, bn(width), Act(act))]
    for _ in range(depth): blocks.append(Residual(layer(), bn(width), Act(act), layer(), bn(width)))
    return Net(stem, blocks, nn.Sequential(*[Mean(dims)]*bool(dims), nn.Linear(width, task.outputs or 1)))


def transformer(task, width=32, depth=2, act=nn.ReLU, norm=True, skip=True):
    "Blocks of attention and a small network, each after a LayerNorm and around a skip; either can be left out."
    def around(*layers):
        layers = [*[nn.LayerNorm(width)]*norm, *layers]
        return Residual(*layers) if skip else nn.Sequential(*layers)
    blocks = []
    for _ in range(depth):
        blocks.append(around(Attention(width)))
        blocks.append(around(nn.Linear(width, 2*width), Act(act), nn.Linear(2*width, width)))
    head = nn.Sequential(Mean((1,)), *[nn.LayerNorm(width)]*norm, nn.Linear(width, task.outputs or 1))
    return Net(Rows(task, width), blocks, head)


def normed(build):
    "The same network with BatchNorm."
    def f(task, **options): return build(task, norm=True, **options)
    return f


NETWORKS = {'mlp': mlp, 'conv': conv, 'resnet': resnet, 'transformer': transformer, 'mlp with norms': normed(mlp),
            'conv with norms': normed(conv)}
