"What is fixed when a fit begins: the optimizer's family and groups, norms in the model, clipping."
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.parameter import is_lazy

from miniai.callbacks.compile import CompileCB
from miniai.distributed.dtensor import fsdp_modules
from miniai.distributed.wrap import unwrapped
from miniai.optim.optimizer import inner_optimizer

__all__ = ['family_of', 'is_compiled', 'scale_of', 'setup_of']

NORMS = _NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm
FAMILIES = {'sign': ('lion', 'sign', 'muon', 'scion', 'kron', 'shampoo'),
            'sgd': ('sgd', 'momentum', 'heavyball', 'nesterov', 'lbfgs')}


def family_of(opt: Any) -> str:
    """How far a rule moves: 'sgd', in proportion to the gradient; 'adam', about lr in each element; 'sign', the same
    with an update that is a sign or orthogonal, in all elements at once."""
    name = type(opt).__name__.lower()
    return next((family for family, words in FAMILIES.items() if any(w in name for w in words)), 'adam')


def setup_of(learn: Any) -> dict[str, Any]:
    "Facts about the model and the optimizer, as names and numbers."
    opt, model = inner_optimizer(learn.opt), unwrapped(learn.model)
    modules = dict(model.named_modules())
    leaves = [m for m in modules.values() if not any(True for _ in m.children())]
    decays = {p: float(g.get('weight_decay', 0.)) for g in _groups(learn) for p in g['params']}
    norms = {f'{nm}.{of}': p for nm, m in modules.items() if isinstance(m, NORMS) for of, p in m.named_parameters()}
    named = [(nm, p) for nm, p in model.named_parameters() if p.requires_grad and not is_lazy(p)]
    known = decays and not fsdp_modules(model)
    return dict(optimizer=type(opt).__name__, family=family_of(opt), clip_norm=getattr(opt, 'clip_norm', None),
                parameters=len(named), elements=sum(p.numel() for _, p in named),
                short_floats={nm: str(p.dtype).removeprefix('torch.') for nm, p in named
                              if p.dtype in (torch.bfloat16, torch.float16)},
                left_out=[nm for nm, p in named if p not in decays] if known else None,
                decayed_norms={nm: decays[p] for nm, p in norms.items() if decays.get(p)} if known else None,
                batch_norms=[nm for nm, m in modules.items() if isinstance(m, _BatchNorm) and m.training],
                has_norms=any(isinstance(m, NORMS) for m in leaves),
                normalizes_inputs=bool(leaves) and isinstance(leaves[0], (*NORMS, nn.Embedding, nn.EmbeddingBag)))


def _groups(learn: Any) -> list[dict]:
    "The groups of all optimizers that the Learner or a callback holds."
    held = [x for o in (learn, *learn.cbs) for x in getattr(o, '__dict__', {}).values() if hasattr(type(x), 'step')]
    opts = {id(o): o for o in map(inner_optimizer, held) if hasattr(o, 'param_groups')}
    return [g for o in opts.values() for g in o.param_groups]


def is_compiled(learn: Any) -> bool:
    "Whether hooks that come and go would compile the model again and again."
    return (any(isinstance(cb, CompileCB) for cb in learn.cbs) or hasattr(learn.model, '_orig_mod')
            or any(getattr(m, '_compiled_call_impl', None) for m in learn.model.modules()))


def scale_of(learn: Any) -> float:
    "By what a GradScaler multiplies the loss, and so gradients within the model; 1 without one."
    scalers = [s for o in (learn, *learn.cbs) if isinstance(s := getattr(o, 'scaler', None), GradScaler)]
    return scalers[0].get_scale() if scalers and scalers[0].is_enabled() else 1.
