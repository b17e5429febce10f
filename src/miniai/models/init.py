"Weight initialization: Kaiming, and layer-sequential unit variance (LSUV)."
import torch
from torch import Tensor, nn

from miniai.device import first_tensor, to_cpu

__all__ = ['init_weights', 'lsuv_init']


def init_weights(m: nn.Module, leaky: float = 0.) -> None:
    """Kaiming normal for the weights of a convolution before a ReLU of slope `leaky` below zero (He et al. 2015). Other
    layers are left alone, so that `model.apply(init_weights)` works."""
    if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d): nn.init.kaiming_normal_(m.weight, a=leaky)


@torch.no_grad()
def lsuv_init(model: nn.Module, m: nn.Module, m_in: nn.Module, xb: Tensor, tol: float = 1e-3,
              max_iter: int = 100) -> None:
    """Layer-sequential unit variance (Mishkin & Matas 2015): change the weight and bias of `m_in` until the output of
    `m` on the batch `xb` has mean 0 and standard deviation 1, within `tol`. Without a bias only the deviation is set.
    RuntimeError, with `m_in` unchanged, if that is impossible or takes more than `max_iter` rounds."""
    outputs, bias = [], getattr(m_in, 'bias', None)
    before = {k: v.clone() for k, v in m_in.state_dict().items()}
    hook = m.register_forward_hook(lambda mod, inp, outp: outputs.append(to_cpu(first_tensor(outp))))
    try:
        for _ in range(max_iter):
            outputs.clear()
            model(xb)
            if not outputs: raise ValueError("lsuv_init: the model never calls m, so m's output cannot be set")
            out = outputs[-1]
            mean, std = out.mean().item(), out.std().item()
            if abs(std - 1) < tol and (bias is None or abs(mean) < tol): return
            _check_output(out, std, has_bias=bias is not None)
            if bias is not None: bias -= mean
            m_in.weight /= std
        raise RuntimeError(f"lsuv_init: after {max_iter} rounds the output of m has mean {out.mean():.3g} and std "
                           f"{out.std():.3g}. Does m depend on the scale of m_in, or does a norm undo it?")
    except RuntimeError:
        m_in.load_state_dict(before)
        raise
    finally: hook.remove()


def _check_output(out: Tensor, std: float, has_bias: bool) -> None:
    if not out.isfinite().all():
        raise RuntimeError("lsuv_init: the output of m has NaN or infinite values: check the weights and xb")
    if std == 0:
        raise RuntimeError("lsuv_init: the output of m is constant (std 0.0) on this batch, so no weight can give it "
                           "unit variance")
    if has_bias and out.min() >= 0:
        raise RuntimeError("lsuv_init: the output of m is never negative, so its mean cannot be 0. After a ReLU, use "
                           "an activation that is shifted down, such as GeneralRelu(sub=0.4), or pass the layer before "
                           "it as m")
