"""Training batches whose examples are mixed with one another, inputs and loss in the same shares: MixUp and CutMix.
Knows events, not the loop."""
import math
import random
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from miniai.callbacks.dry_run import patch
from miniai.callbacks.train import DeviceCB, inputs_of, n_inputs
from miniai.device import first_tensor, map_tensors, tensors_in
from miniai.events import Callback
from miniai.images import check_images

__all__ = ['MixUpCB', 'CutMixCB']


class _MixCB(Callback):
    """Mixes the inputs of each training batch with those of the batch in the order `perm`, of which the share 1 - `lam`
    comes; the loss is lam*loss(preds, y) + (1 - lam)*loss(preds, y[perm]), each by the Learner's own get_loss, in the
    place of that phase: what callbacks add in `after_loss` they add whole. After devices and transforms."""
    order = DeviceCB.order + 5
    def __init__(self, alpha: float, generator: Generator | None) -> None:
        if not alpha > 0: raise ValueError(f"{type(self).__name__}: alpha must be above 0, got {alpha}")
        self.alpha, self.generator, self.lam, self.perm, self._undo = alpha, generator, 1., None, ExitStack()

    def before_fit(self, learn: Any) -> None:
        names = [type(cb).__name__ for cb in learn.cbs if isinstance(cb, _MixCB)]
        if len(names) > 1:
            raise ValueError(f"a batch can be mixed once, and {' and '.join(names)} would: give one of them to a fit")

    def before_batch(self, learn: Any) -> None:
        if not learn.training: return
        n = n_inputs(learn)
        inputs = tuple(inputs_of(learn.batch, n))
        for i, item in enumerate(learn.batch): self._check_rows(i, item)
        rng = _python_random(self.generator)
        self.lam, self.perm = rng.betavariate(self.alpha, self.alpha), self._order_of(first_tensor(inputs))
        learn.batch = (*self._mixed(inputs, rng), *learn.batch[n:])
        patch(self._undo, learn, 'get_loss', partial(self._mixed_loss, learn))

    def cleanup_batch(self, learn: Any) -> None: self._undo.close()

    def _mixed_loss(self, learn: Any) -> None:
        "Both losses, by the phase that this one stood in for."
        self._undo.close()
        learn.get_loss()
        batch, loss, n = learn.batch, learn.loss, n_inputs(learn)
        learn.batch = (*batch[:n], *map_tensors(self._permuted, tuple(batch[n:])))
        try: learn.get_loss()
        finally: learn.batch = batch
        learn.loss = self.lam*loss + (1 - self.lam)*learn.loss

    def _check_rows(self, i: int, item: Any) -> None:
        if all(t.ndim for t in tensors_in(item)): return
        raise ValueError(f"{type(self).__name__} mixes the rows of a batch, one an example, and item {i} of the batch "
                         f"holds a tensor of a single number, without rows: give it one number for each example, or "
                         f"leave it out of the batch")

    def _order_of(self, x: Tensor | None) -> Tensor:
        if x is None: raise TypeError(f"{type(self).__name__} mixes tensors, and the batch's inputs hold none")
        device = x.device if self.generator is None else self.generator.device
        return torch.randperm(len(x), generator=self.generator, device=device)

    def _permuted(self, t: Tensor) -> Tensor: return t[self.perm.to(t.device)]


def _python_random(generator: Generator | None) -> random.Random:
    "Python's generator, which knows the beta distribution, seeded by a draw of torch's: one seed repeats all."
    device = None if generator is None else generator.device
    return random.Random(torch.randint(2**62, (), generator=generator, device=device).item())


class MixUpCB(_MixCB):
    """Blends each training example with another of its batch: x becomes lam*x + (1 - lam)*x[perm], and the loss is
    lam*loss(preds, y) + (1 - lam)*loss(preds, y[perm]), with one lam a batch from Beta(`alpha`, `alpha`) (Zhang et al.
    2018, section 2). It works with any loss and with integer classes, and leaves validation and the batch's targets
    alone. Each example is the larger part of its blend, as lam is the larger of the draw and 1 less it, which leaves
    the distribution of blends as it is. A training accuracy then says how often the larger part's class was named: it
    is lower than on whole images, and only validation's says how good the model is."""
    def __init__(self, alpha: float = 0.4, generator: Generator | None = None) -> None:
        super().__init__(alpha, generator)

    def _mixed(self, inputs: tuple, rng: random.Random) -> tuple:
        self.lam = max(self.lam, 1 - self.lam)
        return map_tensors(self._blended, inputs)

    def _blended(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(f"MixUpCB blends inputs that are floats, got {x.dtype}: make them float before, "
                            f"with BatchTransformCB or in the loader")
        return x.lerp(self._permuted(x), 1 - self.lam)


class CutMixCB(_MixCB):
    """Pastes into each training image (N, C, H, W) a rectangle of another of its batch, at one place a batch, of a
    share 1 - lam of the area with lam from Beta(`alpha`, `alpha`), cut off at the edges; the loss is lam*loss(preds, y)
    + (1 - lam)*loss(preds, y[perm]) with lam the share that stayed (Yun et al. 2019, algorithm 1). It works with any
    loss and with integer classes, and leaves validation and the batch's targets alone: a training accuracy says
    how often the class of the image pasted into was named, and only validation's how good the model is."""
    def __init__(self, alpha: float = 1., generator: Generator | None = None) -> None:
        super().__init__(alpha, generator)

    def _mixed(self, inputs: tuple, rng: random.Random) -> tuple:
        size = _image_size(inputs)
        rows, cols = (_span(n, math.sqrt(1 - self.lam), rng) for n in size)
        self.lam = 1 - (rows.stop - rows.start)*(cols.stop - cols.start) / math.prod(size)
        return map_tensors(lambda x: self._pasted(x, rows, cols), inputs)

    def _pasted(self, x: Tensor, rows: slice, cols: slice) -> Tensor:
        out = x.clone()
        out[:, :, rows, cols] = self._permuted(x[:, :, rows, cols])
        return out


def _image_size(inputs: tuple) -> tuple[int, int]:
    "Height and width of the images in `inputs`. ValueError where there are none, or several sizes."
    for x in tensors_in(inputs): check_images(x)
    sizes = {tuple(x.shape[-2:]) for x in tensors_in(inputs)}
    if len(sizes) == 1: return sizes.pop()
    raise ValueError(f"CutMixCB pastes at one place, and the inputs are images of sizes {sorted(sizes)}")


def _span(n: int, share: float, rng: random.Random) -> slice:
    "A stretch of `share` of `n` pixels around a random one, cut off at both ends."
    centre, half = rng.randrange(n), int(n*share)//2
    return slice(max(centre - half, 0), min(centre + half, n))
