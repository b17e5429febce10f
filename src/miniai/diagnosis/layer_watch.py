"What the outputs of layers and their gradients are like in one batch, measured on a part of it."
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from miniai.device import first_tensor
from miniai.diagnosis.hooks import Hooks
from miniai.kernels.histogram import tally
from miniai.models.layers import GeneralRelu

__all__ = ['BOUNDS', 'ZEROING', 'LayerWatch', 'part_of', 'read']

ZEROING = nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.ELU, nn.CELU, nn.SELU
LEAKY = nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Softplus, GeneralRelu
BOUNDS = {nn.Tanh: (-1., 1.), nn.Sigmoid: (0., 1.), nn.Hardtanh: (-1., 1.), nn.Hardsigmoid: (0., 1.)}
WEIGHTED = nn.Linear, _ConvNd
WATCHED = (*ZEROING, *LEAKY, *BOUNDS, *WEIGHTED, _BatchNorm)
FIGURES = 'mean', 'std', 'near_zero', 'saturated', 'gradient', 'dead', 'shift', 'stretch'
MOST, MOST_FOR_UNITS, MOST_LAYERS = 1 << 15, 1 << 17, 64
EDGE = 0.02  # of the range of a bounded function: at tanh 0.96 its slope is 8 % of the largest


def part_of(x: Tensor, most: int = MOST) -> Tensor:
    "The first rows of `x`, with up to `most` numbers in them, or one row, without a graph."
    x = x.detach()
    return x[:max(1, most*len(x)//x.numel())] if x.ndim and x.numel() > most else x


def read(values: list[Tensor]) -> list[float]:
    "Tensors of one number as floats. Waits once for their device."
    plain = [v if v.dtype is torch.float32 and not v.ndim else v.float().reshape(()) for v in values]
    return torch.stack(plain).tolist() if values else []


class LayerWatch:
    """Mean, deviation, share near zero and saturated of the outputs of activation functions, linear layers and
    convolutions, the norm of their gradient, the share of `dead` units, which were 0 in the last three looks; in a
    model without modules for activations, which has functions such as F.relu, the share of `dead` inputs; and how far
    the running mean (`shift`, in deviations) and variance (`stretch`, logarithm) of batch norms are from those of
    the batch. Between `start` and `stop` it listens to forward passes."""
    def __init__(self, model: nn.Module) -> None:
        found = [(nm.removeprefix('module.'), m) for nm, m in model.named_modules() if isinstance(m, WATCHED)]
        every = math.ceil(len(found)/MOST_LAYERS) or 1
        self.layers = dict(found[::every])
        self._functional = not any(isinstance(m, (*ZEROING, *LEAKY, *BOUNDS)) for m in self.layers.values())
        self._channels_first = any(isinstance(m, nn.Conv1d | nn.ConvTranspose1d) for m in model.modules())
        self._hooks, self._silent, self.values, self.clock, self.failure = None, {}, {}, None, None

    @property
    def kinds(self) -> dict[str, str]:
        "The types of the layers: those of lazy ones change in their first forward pass."
        return {nm: type(m).__name__ for nm, m in self.layers.items()}

    def start(self, clock: Any) -> None:
        "Listen; time is added to `clock`, a context manager."
        self.values, self.clock = {}, clock
        names = {m: nm for nm, m in self.layers.items()}
        self._hooks = Hooks(self.layers.values(), lambda hook, mod, inp, outp: self._without_harm(
            self._look, names[mod], mod, inp, outp))

    def stop(self) -> None:
        "Listen no more. Gradients that arrive later still count."
        if self._hooks is not None: self._hooks.remove()
        self._hooks = None

    def unscale(self, scale: float) -> None:
        "Divide gradients by the scale of a GradScaler."
        for v in self.values.values() if scale != 1 else ():
            if 'gradient' in v: v['gradient'] = v['gradient']/scale

    def _without_harm(self, look: Callable, *args: Any) -> None:
        "An error in here would end the forward or backward pass of the user's model: it is kept as `failure`."
        try: look(*args)
        except Exception as e: self.failure = e

    def _look(self, name: str, mod: nn.Module, inp: Any, outp: Any) -> None:
        x = first_tensor(outp)
        if name in self.values or x is None or not _has_numbers(x): return
        with self.clock:
            v = self.values[name] = {}
            if isinstance(mod, _BatchNorm): return self._compare(v, mod, first_tensor(inp))
            piece = part_of(x)
            v['mean'], v['std'], histogram = tally(piece)
            if isinstance(mod, ZEROING): self._find_zeros(name, mod, v, part_of(x, MOST_FOR_UNITS))
            else: v['near_zero'] = histogram[0]/piece.numel()
            if self._functional: self._find_dead_inputs(name, v, first_tensor(inp))
            if type(mod) in BOUNDS: v['saturated'] = _at_bounds(piece, *BOUNDS[type(mod)])
            if x.requires_grad: x.register_hook(partial(self._without_harm, self._gradient, v))

    def _gradient(self, v: dict, g: Tensor) -> None:
        if 'gradient' in v: return
        with self.clock:
            piece = part_of(g)
            v['gradient'] = torch.linalg.vector_norm(piece.float())*math.sqrt(g.numel()/piece.numel())

    def _find_zeros(self, name: str, mod: nn.Module, v: dict, x: Tensor) -> None:
        zero = x == 0 if isinstance(mod, nn.ReLU | nn.ReLU6) else x.abs() < 1e-4
        v['near_zero'] = zero.count_nonzero()/x.numel()
        self._find_dead(name, v, zero)

    def _find_dead_inputs(self, name: str, v: dict, x: Tensor | None) -> None:
        "Those of hidden layers: what comes from data has no gradient, and may have a border of zeros."
        if x is not None and x.requires_grad and _has_numbers(x):
            self._find_dead(name, v, part_of(x, MOST_FOR_UNITS) == 0)

    def _find_dead(self, name: str, v: dict, zero: Tensor) -> None:
        if zero.ndim < 2: return
        axis = 2 if zero.ndim == 3 and not self._channels_first else 1
        silent = zero.movedim(axis, 0).flatten(1).all(1)
        looks = [*self._silent.get(name, ())[-2:], silent]
        if looks[0].shape == silent.shape: v['dead'] = torch.stack(looks).all(0).float().mean()
        else: looks = [silent]
        self._silent[name] = looks

    def _compare(self, v: dict, norm: _BatchNorm, x: Tensor) -> None:
        if x is None or norm.running_mean is None or not norm.training: return
        piece = part_of(x, MOST//2).float()
        axes = [i for i in range(piece.ndim) if i != 1]
        if piece.numel() <= piece.shape[1]: return
        var, mean = torch.var_mean(piece, axes)
        deviation = norm.running_var.clamp(min=1e-12).sqrt()
        v['shift'] = ((mean - norm.running_mean).abs()/(deviation + var.sqrt())).mean()
        v['stretch'] = (var.clamp(min=1e-12)/norm.running_var.clamp(min=1e-12)).log().abs().median()


def _has_numbers(x: Tensor) -> bool:
    "Whether it holds floats in memory: not so nested tensors, and those within a transform of torch.func."
    return (x.is_floating_point() and x.layout is torch.strided and not x.is_nested and x.numel() > 0
            and not is_functorch_wrapped_tensor(x))


def _at_bounds(x: Tensor, low: float, high: float) -> Tensor:
    edge = EDGE*(high - low)
    return ((x < low + edge) | (x > high - edge)).count_nonzero()/x.numel()
