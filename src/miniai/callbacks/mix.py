"MixUp and CutMix: training examples mixed with one another, inputs and loss in the same proportion."
import math
import random
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from miniai.callbacks.dry_run import patch
from miniai.callbacks.train import DeviceCB
from miniai.device import first_tensor, map_tensors, tensors_in, to_device
from miniai.distributed.ranks import from_first, part
from miniai.events import Callback
from miniai.images import check_images
from miniai.metrics.batch import inputs_of, n_inputs

__all__ = ['MixUpCB', 'CutMixCB']


class _MixCB(Callback):
    """Mixes each training batch with itself in the order `perm`: a share `lam` of each input stays. The loss is
    lam*loss(preds, y) + (1 - lam)*loss(preds, y[perm]), both computed by the current get_loss phase. A fit draws one
    number from `generator`, by default torch's; that, the epoch and the batch decide the rest."""
    order = DeviceCB.order + 5  # after devices and transforms
    def __init__(self, alpha: float, generator: Generator | None) -> None:
        if not alpha > 0: raise ValueError(f"{type(self).__name__}: alpha must be above 0, got {alpha}")
        self.alpha, self.generator, self.lam, self.perm, self._undo = alpha, generator, 1., None, ExitStack()
        self._seed = 0

    def before_fit(self, learn: Any) -> None:
        names = [type(cb).__name__ for cb in learn.cbs if isinstance(cb, _MixCB)]
        if len(names) > 1: raise ValueError(f"{' and '.join(names)} cannot be used in the same fit: keep one of them")
        if not getattr(learn, 'trains', True): return
        g = self.generator
        self._seed = from_first(torch.randint(2**62, (), generator=g, device=None if g is None else g.device).item())

    def before_batch(self, learn: Any) -> None:
        if not learn.model.training: return
        name, n = type(self).__name__, n_inputs(learn)
        inputs = tuple(inputs_of(learn.batch, n))
        for i, item in enumerate(learn.batch):
            if not all(t.ndim for t in tensors_in(item)):
                raise ValueError(f"{name} mixes the rows of a batch, and item {i} of the batch has a tensor without "
                                 f"rows, a single number: give one number per example, or leave it out of the batch")
        x = first_tensor(inputs)
        if x is None: raise TypeError(f"{name} mixes tensors, and the batch's inputs have none")
        rng = random.Random(f'{self._seed} {learn.epoch} {learn.iter}')  # the same in all processes
        self.lam = rng.betavariate(self.alpha, self.alpha)
        own = torch.Generator().manual_seed(rng.getrandbits(62) + part()[0])  # partners come from this process's part
        self.perm = to_device(torch.randperm(len(x), generator=own), x.device)
        learn.batch = (*self._mixed(inputs, rng), *map_tensors(self._mixed_target, tuple(learn.batch[n:])))
        # The phase is replaced, not the loss changed in after_loss, so that what callbacks add there is added once.
        patch(self._undo, learn, 'get_loss', partial(self._mixed_loss, learn))

    def cleanup_batch(self, learn: Any) -> None: self._undo.close()

    def state_dict(self) -> dict[str, Any]: return dict(seed=self._seed)
    def load_state_dict(self, state: dict[str, Any]) -> None: self._seed = state['seed']

    def _mixed_loss(self, learn: Any) -> None:
        self._undo.close()
        learn.get_loss()
        batch, loss, n = learn.batch, learn.loss, n_inputs(learn)
        if all(map(self._is_mixed, tensors_in(batch[n:]))): return
        learn.batch = (*batch[:n], *map_tensors(self._other_target, tuple(batch[n:])))
        try: learn.get_loss()
        finally: learn.batch = batch
        learn.loss = self.lam*loss + (1 - self.lam)*learn.loss

    def _is_mixed(self, target: Tensor) -> bool: return False
    def _mixed_target(self, target: Tensor) -> Tensor: return target
    def _other_target(self, target: Tensor) -> Tensor:
        return target if self._is_mixed(target) else self._permuted(target)

    def _permuted(self, t: Tensor) -> Tensor: return t[self.perm.to(t.device)]


class MixUpCB(_MixCB):
    """Blends each training example with another one of its batch (Zhang et al. 2018, section 2): x becomes lam*x +
    (1 - lam)*x[perm], and the loss lam*loss(preds, y) + (1 - lam)*loss(preds, y[perm]), with one lam per batch from
    Beta(`alpha`, `alpha`), at least 0.5. Works with any loss and with integer classes. Validation and the targets in
    the batch are not changed. Accuracy in training is that of each blend's larger part: lower than on real images."""
    def __init__(self, alpha: float = 0.4, generator: Generator | None = None) -> None:
        super().__init__(alpha, generator)

    def _mixed(self, inputs: tuple, rng: random.Random) -> tuple:
        self.lam = max(self.lam, 1 - self.lam)  # the same blends with the same probability, as `perm` is uniform
        return map_tensors(self._blended, inputs)

    def _blended(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise TypeError(f"MixUpCB needs inputs that are floats, got {x.dtype}: convert them in the loader or with "
                            f"BatchTransformCB")
        return x.lerp(self._permuted(x), 1 - self.lam)


class CutMixCB(_MixCB):
    """Pastes a rectangle of another image of the batch into each training image (N, C, H, W), at one place per batch
    (Yun et al. 2019, algorithm 1). Its area is a share 1 - lam of the image, with lam from Beta(`alpha`, `alpha`),
    less what is cut off at the edges. The loss is lam*loss(preds, y) + (1 - lam)*loss(preds, y[perm]), with lam the
    share of the image that stayed. Targets with a value for each pixel, such as masks, get the same rectangle pasted
    and are used as they then are; they must be as large as the images. Validation and other targets in the batch are
    not changed. Accuracy in training is that of the images pasted into."""
    def __init__(self, alpha: float = 1., generator: Generator | None = None) -> None:
        super().__init__(alpha, generator)

    def _mixed(self, inputs: tuple, rng: random.Random) -> tuple:
        for x in tensors_in(inputs): check_images(x)
        sizes = {tuple(x.shape[-2:]) for x in tensors_in(inputs)}
        if len(sizes) > 1: raise ValueError(f"CutMixCB needs inputs of one size, got images of sizes {sorted(sizes)}")
        self._size = sizes.pop()
        self._place = tuple(_span(n, math.sqrt(1 - self.lam), rng) for n in self._size)
        rows, cols = self._place
        self.lam = 1 - (rows.stop - rows.start)*(cols.stop - cols.start) / math.prod(self._size)
        return map_tensors(self._pasted, inputs)

    def _pasted(self, x: Tensor) -> Tensor:
        out, place = x.clone(), (..., *self._place)
        out[place] = self._permuted(x[place])
        return out

    def _is_mixed(self, target: Tensor) -> bool: return target.ndim > 2

    def _mixed_target(self, target: Tensor) -> Tensor:
        if not self._is_mixed(target): return target
        if tuple(target.shape[-2:]) == self._size: return self._pasted(target)
        raise ValueError(f"CutMixCB pastes into targets with a value for each pixel, and they must be as large as the "
                         f"images, {self._size}: got targets of shape {tuple(target.shape)}")


def _span(n: int, share: float, rng: random.Random) -> slice:
    "A `share` of `n` pixels around a random one, cut off at both ends."
    center, half = rng.randrange(n), int(n*share)//2
    return slice(max(center - half, 0), min(center + half, n))
