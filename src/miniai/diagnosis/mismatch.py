"Whether a loss misreads the outputs of a model: it takes probabilities for logits, or shapes broadcast."
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['broadcast_of', 'takes_softmax_twice']

MOST = 1 << 22  # numbers to which a check may broadcast
LOSSES = F.mse_loss, F.l1_loss, F.smooth_l1_loss


def broadcast_of(preds: Tensor, targets: Tensor, loss: float) -> dict[str, Any] | None:
    """The shapes, if the loss is that of all pairs of outputs and targets, as when outputs (n, 1) and targets (n,)
    broadcast to (n, n); None if it is not, or if both ways give the same."""
    if preds.numel() != targets.numel() or preds.shape == targets.shape or preds.device != targets.device: return None
    try: shape = torch.broadcast_shapes(preds.shape, targets.shape)
    except RuntimeError: return None
    if not preds.numel() < shape.numel() <= MOST: return None
    p, y = preds.detach().float(), targets.detach().float()
    for f in LOSSES:
        made = abs(f(p.expand(shape), y.expand(shape)).item() - loss)
        meant = abs(f(p.flatten(), y.flatten()).item() - loss)
        if made <= 1e-3*abs(loss) and meant > 10*made + 1e-4*abs(loss):
            return dict(outputs=[*preds.shape], targets=[*targets.shape], made=[*shape])
    return None


def takes_softmax_twice(scores: Tensor, labels: Tensor, loss: float) -> bool | None:
    """Whether scores, with classes in dimension 1, are already probabilities and the loss is a cross-entropy that takes
    them for logits; None if both ways give about the same."""
    p = scores.detach().float()
    if p.min() < 0 or (p.sum(1) - 1).abs().max() > 1e-2: return False
    y = labels.long().where((labels >= 0) & (labels < p.shape[1]), -100)
    twice, once = F.cross_entropy(p, y).item(), F.nll_loss(p.clamp(min=1e-12).log(), y).item()
    return None if abs(twice - once) < 0.05 else abs(twice - loss) < abs(once - loss)/4
