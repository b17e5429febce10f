"The ladder: the library's own tasks for races, from logistic regression to a small GPT, and tasks found by name."
from collections.abc import Callable
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.data import fashion_mnist
from miniai.data.fmnist import MEAN, STD
from miniai.device import def_device
from miniai.models.by_name import build_model, function_at
from miniai.models.gpt import GPT
from miniai.models.init import init_weights
from miniai.models.layers import act_gr, conv_block
from miniai.models.resnet import ResBlock
from miniai.models.unet import UNet
from miniai.racing.tasks import Parts, Task, error_rate, parts_of

__all__ = ['TASKS', 'find_task']

CONTEXT, BATCH = 64, 8  # of the GPT: characters in a window, and windows in a batch
FIRST, CHARACTERS = 31, 96  # printable ASCII, from the space on; code 31 stands for a new line and all others
ERASED = 12  # the side of the square that is erased in the U-Net's images


def find_task(name: str) -> Task:
    "The task called `name`, or the one that 'module:function' returns. ValueError if there is none."
    if name in TASKS: return TASKS[name]
    if ':' not in name:
        raise ValueError(f"unknown task {name!r}: choose from {', '.join(TASKS)}, or give module:function")
    try: task = function_at(name)()
    except Exception as e: raise ValueError(f"the task {name} must be a function without arguments that returns a "
                                            f"Task, and calling it raises {type(e).__name__}: {e}") from e
    if isinstance(task, Task): return task
    raise ValueError(f"{name} returned a {type(task).__name__}, not a miniai.racing.tasks.Task")


def _seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build()


def _parts(arrays: Callable[[], tuple], bs: int, shares: tuple, seed: int) -> Parts:
    return parts_of(*arrays(), shares, bs, seed)


# Tables

def _layers(*sizes: int) -> nn.Sequential:
    "Linear layers of these sizes, with ReLUs between them."
    return nn.Sequential(*[m for ni, nf in pairwise(sizes) for m in (nn.Linear(ni, nf), nn.ReLU())][:-1])


@lru_cache
def _clusters(n: int = 6000, features: int = 20, classes: int = 5) -> tuple[Tensor, Tensor]:
    "Rows in overlapping clusters, with features whose scales differ 30 times: a badly conditioned problem."
    g = torch.Generator().manual_seed(1)
    y, centers = torch.randint(0, classes, (n,), generator=g), torch.randn(classes, features, generator=g)
    x = centers[y] + 1.5*torch.randn(n, features, generator=g)
    return x*torch.logspace(-1, 0.5, features), y


@lru_cache
def _teacher(n: int = 20_000, features: int = 16, classes: int = 4) -> tuple[Tensor, Tensor]:
    "Rows of a table whose class a random network decides; a tenth of the classes is wrong."
    g = torch.Generator().manual_seed(2)
    x = torch.randn(n, features, generator=g)
    a, b = torch.randn(features, 32, generator=g)/features**.5, torch.randn(32, classes, generator=g)
    y, wrong = (torch.tanh(2*x @ a) @ b).argmax(1), torch.rand(n, generator=g) < 0.1
    return x, torch.where(wrong, torch.randint(0, classes, (n,), generator=g), y)


# Points

class _Denoiser(nn.Module):
    "The noise in points at a time from 0 to 1, which it sees as sines and cosines. Rows (x, y, time) to (N, 2)."
    def __init__(self) -> None:
        super().__init__()
        self.net = _layers(10, 64, 64, 2)

    def forward(self, rows: Tensor) -> Tensor:
        angles = rows[:, 2:]*torch.pi*torch.tensor([0.5, 1., 2., 4.], device=rows.device)
        return self.net(torch.cat([rows[:, :2], angles.sin(), angles.cos()], 1))


@lru_cache
def _noised_points(n: int = 30_000) -> tuple[Tensor, Tensor]:
    """Points of a spiral, each mixed with noise at a random time of a cosine schedule (Ho, Jain & Abbeel 2020; Nichol &
    Dhariwal 2021), and the noise. Drawn once, so that runs need no random numbers."""
    g = torch.Generator().manual_seed(3)
    angle, time = 9*torch.rand(n, generator=g).sqrt(), torch.rand(n, 1, generator=g)
    noise = torch.randn(n, 2, generator=g)
    points = torch.stack([angle.cos(), angle.sin()], 1)*angle[:, None]/5
    kept = torch.cos(time*torch.pi/2)
    return torch.cat([kept*points + (1 - kept**2).sqrt()*noise, time], 1), noise


# Images

@lru_cache
def _sample() -> Any: return fashion_mnist(source='sample', quiet=True)


def _convnet() -> nn.Module: return build_model('simple', dict(channels=1, outputs=10))


def _resnet(*widths: int) -> nn.Module:
    "A convolution and residual blocks, of which all but the first block halve the size, and a linear layer."
    stem = conv_block(1, widths[0], act=act_gr, norm=nn.BatchNorm2d)
    blocks = [ResBlock(ni, nf, 1 + (ni != nf), norm=nn.BatchNorm2d) for ni, nf in pairwise((widths[0], *widths))]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10)).to(def_device)


def _kaiming(build: Callable[[], nn.Module]) -> nn.Module: return build().apply(partial(init_weights, leaky=0.1))


def _images(share: float, bs: int, seed: int) -> Parts:
    "Fashion-MNIST with `share` of the training images for tuning and validation each; the test images are the test."
    data = _sample()
    return parts_of(data.x_train, data.y_train, (share, share), bs, seed, (data.x_valid, data.y_valid), mean=MEAN,
                    std=STD)


@lru_cache
def _erased_images(n: int = 4000) -> tuple[Tensor, Tensor]:
    "Images with a square erased, always at the same place of an image, and the whole images."
    g, images = torch.Generator().manual_seed(4), _sample().x_train[:n]
    erased = images.clone()
    for image, (top, left) in zip(erased, torch.randint(0, 29 - ERASED, (n, 2), generator=g).tolist(), strict=True):
        image[top:top + ERASED, left:left + ERASED] = 0
    return erased, images


def _erased_parts(seed: int) -> Parts:
    return parts_of(*_erased_images(), (0.05, 0.05, 0.1), 16, seed, mean=MEAN, std=STD)


def _pixel_error(preds: Tensor, images: Tensor) -> Tensor:
    "The mean squared error of pixels, in standard deviations of all pixels."
    return F.mse_loss(preds.squeeze(1), (images.float()/255 - MEAN)/STD)


# Text

@lru_cache
def _windows() -> tuple[Tensor, Tensor]:
    "Windows of Python's own documentation, as characters and the ones that follow them. RuntimeError without it."
    try:
        from pydoc_data.topics import topics
    except ImportError as e: raise RuntimeError(
        "the task gpt reads the help texts in Python's module pydoc_data, which this Python lacks: leave the task "
        "out") from e
    text = '\n'.join(topics[nm] for nm in sorted(topics))
    ids = torch.tensor([code - FIRST if 32 <= code < 127 else 0 for code in map(ord, text)])
    rows = (len(ids) - 1)//CONTEXT
    return ids[:rows*CONTEXT].view(rows, CONTEXT), ids[1:rows*CONTEXT + 1].view(rows, CONTEXT)


def _next_character(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _task(name: str, build: Callable[[], nn.Module], dls: Callable[[int], Parts], *args: Any) -> Task:
    return Task(name, partial(_seeded, build), dls, *args)


TASKS = {task.name: task for task in (
    _task('logistic', partial(nn.Linear, 20, 5), partial(_parts, _clusters, 64, (.2, .2, .2)), F.cross_entropy, 400,
          None, 'loss', 'logistic regression on 20 features of unequal scale, 5 classes'),
    _task('mlp', partial(_layers, 16, 64, 64, 4), partial(_parts, _teacher, 64, (.2, .2, .2)), F.cross_entropy, 600,
          None, 'loss', 'two hidden layers of 64 on a table of 16 features, 4 classes, a tenth of the labels wrong'),
    _task('diffusion', _Denoiser, partial(_parts, _noised_points, 128, (.1, .1, .1)), F.mse_loss, 600,
          None, 'squared error of the noise', 'a diffusion model of points on a spiral: two hidden layers of 64'),
    _task('convnet', partial(_kaiming, _convnet), partial(_images, .1, 128), F.cross_entropy, 400,
          error_rate, 'error rate', 'five convolutions on 10,000 images of Fashion-MNIST'),
    _task('resnet', partial(_kaiming, partial(_resnet, 8, 16, 32)), partial(_images, .1, 64), F.cross_entropy, 300,
          error_rate, 'error rate', 'three residual blocks on 10,000 images of Fashion-MNIST'),
    _task('unet', partial(_kaiming, UNet), _erased_parts, _pixel_error, 150,
          None, 'squared error of pixels', 'a U-Net that fills in squares erased in images of Fashion-MNIST'),
    _task('gpt', partial(GPT, CHARACTERS, CONTEXT), partial(_parts, _windows, BATCH, (.02, .02, .04)), _next_character,
          600, None, 'loss', "a GPT of two blocks on the characters of Python's help texts"))}
