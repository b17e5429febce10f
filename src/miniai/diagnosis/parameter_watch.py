"What one step does to parameters: norms, gradients, update ratios, and the noise of gradients between batches."
import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from miniai.distributed.dtensor import is_dtensor
from miniai.distributed.wrap import unwrapped

__all__ = ['ParameterWatch']

MOST = 1 << 16  # elements of a parameter that are copied


class ParameterWatch:
    """Norm, gradient norm and `|update|/|weight|` of the parameters that train, from a copy of a part of each before a
    step and what is there after it: so for every optimizer, and for parameters that are made or unfrozen in a fit.
    Sharded ones are skipped. `noise_scale` is the simple noise scale: the batch size at which the noise of the gradient
    is as large as the gradient (McCandlish et al. 2018, appendix A.1), from the gradients of a batch and the next."""
    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.params = unwrapped(model), {}
        self.values, self._before, self._last_gradient, self._noise = {}, None, None, (0., 0.)

    def start(self) -> None:
        "Forget the last step."
        self.values, self._before = {}, None

    @torch.no_grad()
    def copy(self) -> bool:
        "Keep what the parameters are before the step. Returns whether others train than at the last look."
        if self._before is not None: return False
        names, self.params = [*self.params], {nm: p for nm, p in self.model.named_parameters()
                                              if p.requires_grad and not is_lazy(p) and not is_dtensor(p)}
        self._before = [_piece(p).clone() for p in self.params.values()]
        return names != [*self.params]

    @torch.no_grad()
    def look_at_gradients(self) -> None:
        "Norms of the gradients of this batch."
        if self.values or self._before is None: return
        names = [nm for nm, p in self.params.items() if p.grad is not None and not p.grad.is_sparse]
        self.values = {nm: dict(norm=n) for nm, n in zip(self.params, _norms(self.params.values()), strict=True)}
        for nm, n in zip(names, _norms([self.params[nm].grad for nm in names]), strict=True):
            self.values[nm]['gradient'] = n
        self._last_gradient = {nm: _piece(self.params[nm].grad).float().clone() for nm in names}

    @torch.no_grad()
    def look_at_step(self) -> None:
        "How far the parameters moved, compared with their size, and what is left of the gradients after clipping."
        if self._before is None or not self.values: return
        moved = [_piece(p) - old for p, old in zip(self.params.values(), self._before, strict=True)]
        sizes = _norms(self._before)
        for nm, m, size in zip(self.params, _norms(moved), sizes, strict=True):
            self.values[nm] |= dict(moved=m, update=m/size)
        names = [nm for nm in self._last_gradient if self.params[nm].grad is not None]
        for nm, n in zip(names, _norms([self.params[nm].grad for nm in names]), strict=True):
            self.values[nm]['clipped'] = n
        self._before = None

    @torch.no_grad()
    def look_at_noise(self, batch_size: int) -> float | None:
        "In the batch after a sampled one: the noise scale so far, in samples."
        old, self._last_gradient = self._last_gradient, None
        names = [nm for nm in old or () if self.params[nm].grad is not None]
        if not names: return None
        new = [_piece(self.params[nm].grad).float() for nm in names]
        products = [(o.dot(o), n.dot(n), o.dot(n)) for o, n in zip((old[nm] for nm in names), new, strict=True)]
        a, b, both = torch.stack([torch.stack(x) for x in products]).sum(0).tolist()
        if not math.isfinite(a + b + both): return None
        self._noise = 0.9*self._noise[0] + (a + b)/2 - both, 0.9*self._noise[1] + both
        noise, signal = self._noise
        return batch_size*noise/signal if signal > 0 and noise > 0 else None


def _piece(x: Tensor) -> Tensor:
    "Up to MOST of its numbers in a row; a complex one is two."
    x = x.detach().flatten()[:MOST]
    return torch.view_as_real(x.resolve_conj()).flatten() if x.is_complex() else x


def _norms(xs: Any) -> list[Tensor]:
    xs = [x.detach() for x in xs]
    return torch._foreach_norm(xs) if xs else []
