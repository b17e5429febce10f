"""Models that start well: initialisation, layer-sequential unit variance, the small convolutional net,
and memory given back."""
import gc
import sys
import traceback
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from miniai.callbacks.batch import BatchTransformCB as BatchTransformCB
from miniai.device import def_device, first_tensor, to_cpu
from miniai.hooks import Hook
from miniai.layers import GeneralRelu as GeneralRelu
from miniai.layers import conv_block
from miniai.plot import plot_func as plot_func

__all__ = ['GeneralRelu', 'plot_func', 'init_weights', 'lsuv_init', 'conv', 'get_model', 'BatchTransformCB',
           'clean_mem', 'clean_tb', 'clean_ipython_hist']

conv = conv_block


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
    def see(hook: Hook, mod: nn.Module, inp: Any, outp: Any) -> None: seen[:] = [to_cpu(first_tensor(outp))]
    seen, hook, before = [], Hook(m, see), {k: v.clone() for k, v in m_in.state_dict().items()}
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


def get_model(act: Callable[[], nn.Module] = nn.ReLU, nfs: list[int] | None = None,
              norm: Callable[[int], nn.Module] | None = None) -> nn.Sequential:
    """A convolutional classifier of 28x28 grey images, on `def_device`:
    widths `nfs` (default 1, 8, 16, 32, 64), each halving, then 10 logits."""
    nfs = nfs or [1, 8, 16, 32, 64]
    layers = [conv_block(ni, nf, act=act, norm=norm) for ni, nf in pairwise(nfs)]
    return nn.Sequential(*layers, conv_block(nfs[-1], 10, act=None, bias=True), nn.Flatten()).to(def_device)


def clean_ipython_hist() -> None:
    "Forget the outputs that a notebook keeps alive: `Out`, `_`, `__` and their like."
    shell = sys.modules['IPython'].get_ipython() if 'IPython' in sys.modules else None
    if shell is None: return
    numbered = [n for n in shell.user_ns if n.startswith('_') and n.strip('_i').isdigit()]
    for name in [*numbered, '_', '__', '___']:
        for names in (shell.user_ns, shell.user_ns_hidden): names.pop(name, None)
    shell.user_ns.get('Out', {}).clear()
    if shell.displayhook.do_full_cache: shell.displayhook.flush()


def clean_tb() -> None:
    "Forget the last error, whose traceback keeps the tensors of every frame alive."
    if hasattr(sys, 'last_traceback'): traceback.clear_frames(sys.last_traceback)
    for name in ('last_traceback', 'last_type', 'last_value', 'last_exc'): sys.__dict__.pop(name, None)


def clean_mem() -> None:
    "Give back the memory that a notebook's last error and history keep, and the accelerator's cache."
    clean_tb()
    clean_ipython_hist()
    gc.collect()
    if torch.cuda.is_available(): torch.cuda.empty_cache()
