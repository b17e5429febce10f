"Inputs as a model takes them: pixels made float, and values normalised, on the device where they are."
from typing import Any

import torch
from torch import Tensor

__all__ = ['Scaling']


class Scaling:
    """What a loader does to the inputs of a batch. With `to_float`, uint8 is taken for pixels: float32 from 0 to 1, and
    (N, H, W) gets a channel, (N, 1, H, W). With `mean` and `std`, numbers or one for each channel (dimension 1 of the
    result), values then lose `mean` and are divided by `std`. Floats keep their dtype; integers other than uint8, such
    as the ids of tokens, and bools stay as they are. ValueError for a mean and std that `x`, an example, cannot
    take."""
    def __init__(self, x: Tensor, to_float: bool = True, mean: Any = None, std: Any = None) -> None:
        self.pixels = to_float and x.dtype == torch.uint8
        self.channel = self.pixels and x.ndim == 3
        self.normalises = mean is not None or std is not None
        self.mean, self.std = _constant(mean, 0.), _constant(std, 1.)
        if self.normalises: self._check(x)
        self.scale, self.shift, self._there = 1/(255*self.std), -self.mean/self.std, {}

    def _check(self, x: Tensor) -> None:
        if not (self.pixels or x.is_floating_point()):
            raise ValueError(f"mean and std are for floats, or for uint8 made float; the inputs are {x.dtype}")
        shape = (len(x), 1, *x.shape[1:]) if self.channel else tuple(x.shape)
        for nm, t in (('mean', self.mean), ('std', self.std)):
            if t.ndim == 0 or (t.ndim == 1 and len(shape) > 1 and len(t) == shape[1]): continue
            raise ValueError(f"{nm} must be a number, or one for each of the channels, dimension 1 of {shape}; "
                             f"got shape {tuple(t.shape)}")
        if self.std.gt(0).all() and self.std.isfinite().all() and self.mean.isfinite().all(): return
        raise ValueError(f"mean and std must be finite, and std above 0, got {self.mean.tolist()} and "
                         f"{self.std.tolist()}")

    def __call__(self, x: Tensor) -> Tensor:
        "The inputs of a batch, scaled; `x`, which is the loader's own to change, where nothing is to be done."
        if self.channel: x = x.unsqueeze(1)
        if not self.pixels: return self._centred(x) if self.normalises else x
        return self._normalised(x.float()) if self.normalises else x.float().div_(255)

    def _centred(self, x: Tensor) -> Tensor: return x.sub_(self._like(x, 'mean')).div_(self._like(x, 'std'))

    def _normalised(self, x: Tensor) -> Tensor:
        if self.scale.ndim: return x.mul_(self._like(x, 'scale')).add_(self._like(x, 'shift'))
        # In one pass where there is one channel: a third of the time of div_, sub_, div_.
        return torch.add(self._like(x, 'shift'), x, alpha=self.scale.item(), out=x)

    def _like(self, x: Tensor, name: str) -> Tensor:
        "The constant where `x` is, of its dtype, and in a shape to go with its channels."
        key = name, x.device
        if key not in self._there:
            t = getattr(self, name)
            self._there[key] = t.to(x.device, x.dtype).reshape([-1, *[1]*(x.ndim - 2)] if t.ndim else ())
        return self._there[key]


def _constant(value: Any, default: float) -> Tensor:
    return torch.as_tensor(default if value is None else value, dtype=torch.float64)
