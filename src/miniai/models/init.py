"Weights that start well: Kaiming initialisation, and layer-sequential unit variance (LSUV)."
from typing import Any

import torch
from torch import Tensor, nn

from miniai.device import first_tensor, to_cpu

__all__ = ['init_weights', 'lsuv_init']


def init_weights(m: nn.Module, leaky: float = 0.) -> None:
    """Kaiming normal on the weights of a convolution, for a ReLU of slope `leaky` below zero:
    `model.apply(init_weights)` (He et al. 2015)."""
    if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d): nn.init.kaiming_normal_(m.weight, a=leaky)


@torch.no_grad()
def lsuv_init(model: nn.Module, m: nn.Module, m_in: nn.Module, xb: Tensor, tol: float = 1e-3,
              max_iter: int = 100) -> None:
    """Layer-sequential unit variance (Mishkin & Matas 2015): change weight and bias of `m_in` until the output of `m`
    on the batch `xb` has mean 0 and standard deviation 1, within `tol`; without a bias the deviation alone.
    RuntimeError, with `m_in` as it was, where that cannot be, or `max_iter` rounds are not enough."""
    def see(mod: nn.Module, inp: Any, outp: Any) -> None: seen[:] = [to_cpu(first_tensor(outp))]
    seen, hook = [], m.register_forward_hook(see)
    before = {k: v.clone() for k, v in m_in.state_dict().items()}
    try:
        for _ in range(max_iter):
            model(xb)
            if not seen: raise ValueError("lsuv_init: the model's forward never calls m, so its output cannot be set")
            if _lsuv_round(seen[0], m_in, tol): return
        raise RuntimeError(f"lsuv_init: after {max_iter} rounds the output of m has mean {seen[0].mean():.3g} and std "
                           f"{seen[0].std():.3g}; does m depend on m_in's scale, or does a norm undo it?")
    except RuntimeError:
        m_in.load_state_dict(before)
        raise
    finally: hook.remove()


def _lsuv_round(out: Tensor, m_in: nn.Module, tol: float) -> bool:
    "Is `out` as it should be? If not, move bias and weight of `m_in` towards that."
    mean, std, bias = out.mean().item(), out.std().item(), getattr(m_in, 'bias', None)
    if abs(std - 1) < tol and (bias is None or abs(mean) < tol): return True
    _check_lsuv(out, std, bias is not None)
    if bias is not None: bias -= mean
    m_in.weight /= std
    return False


def _check_lsuv(out: Tensor, std: float, centred: bool) -> None:
    if not out.isfinite().all():
        raise RuntimeError("lsuv_init: the output of m has values that are NaN or infinite: look at the weights and xb")
    if std == 0:
        raise RuntimeError("lsuv_init: the output of m is constant (std 0.0) on this batch, so no weight can give it "
                           "unit variance")
    if centred and out.min() >= 0:
        raise RuntimeError("lsuv_init: the output of m is never negative, so its mean cannot be 0; after a ReLU, use "
                           "an activation that is shifted down, such as GeneralRelu(sub=0.4), or pass the layer before "
                           "it as m")
