"Accuracy, for classes in any dimension and for single logits."
from collections.abc import Callable
from functools import partial

from torch import Tensor, argmax

__all__ = ['accuracy', 'binary_accuracy', 'counts_of']


def accuracy(out: Tensor, yb: Tensor, dim: int | None = None, ignore_index: int = -100) -> Tensor:
    """Fraction of the targets other than `ignore_index` whose class has the largest output, a 0-d tensor. The shape of
    `out` is that of `yb` with a dimension more, for the classes: `dim`, which must be given if several would fit."""
    right, counted = _counts(out, yb, dim, ignore_index)
    return right/counted


def _counts(out: Tensor, yb: Tensor, dim: int | None = None, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    usual = dim is None and getattr(out, 'ndim', 0) == 2 and out.shape[:1] == yb.shape and out.shape[1] > 1
    right = argmax(out, 1 if usual else _class_dim(out, yb, dim)) == yb
    kept  = yb != ignore_index
    if ignore_index >= 0: right &= kept
    return right.count_nonzero(), kept.count_nonzero()


def _class_dim(out: Tensor, yb: Tensor, dim: int | None) -> int:
    "The dimension of `out` that holds the classes, `dim` if that is given."
    if not isinstance(out, Tensor): raise TypeError(
        f"accuracy: predictions must be a tensor, got a {type(out).__name__}: write a function that chooses, such as "
        f"lambda out, yb: accuracy(out[0], yb) or accuracy(out.logits, yb)")
    if not isinstance(dim, int | None): raise TypeError(
        f"accuracy: dim must be a whole number or None, got a {type(dim).__name__}. It takes one target: for a batch "
        f"with several, write a function that chooses, such as lambda out, a, b: accuracy(out, a)")
    shape, targets = tuple(out.shape), tuple(yb.shape)
    fits = [i for i in range(1, out.ndim) if shape[:i] + shape[i+1:] == targets]
    if dim is not None: fits = [i for i in fits if dim in (i, i - out.ndim)]
    if len(fits) == 1 and shape[fits[0]] > 1: return fits[0]
    says = (f"dimensions {fits} could each be the classes: say which, as in partial(accuracy, dim={fits[-1]})"
            if len(fits) > 1 else "for one logit per target use binary_accuracy; one-hot targets need an argmax"
            if fits or out.numel() == yb.numel() else
            "targets must be class indices, in the shape of the outputs without the class dimension")
    given = '' if dim is None else f" with dim={dim}"
    raise ValueError(f"accuracy{given}: outputs of shape {shape} and targets of shape {targets}: {says}")


def binary_accuracy(out: Tensor, yb: Tensor, ignore_index: int = -100) -> Tensor:
    """Fraction of targets, 0 or 1, on whose side of 0 the output is, a 0-d tensor. `out` holds one logit per target,
    in the shape of `yb` or with a last dimension of 1 more or less. Targets of `ignore_index` do not count."""
    right, counted = _binary_counts(out, yb, ignore_index)
    return right/counted


def _binary_counts(out: Tensor, yb: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    if tuple(yb.shape) not in (tuple(out.shape), (*out.shape, 1)) and tuple(out.shape) != (*yb.shape, 1):
        raise ValueError(f"binary_accuracy: outputs of shape {tuple(out.shape)} and targets of shape "
                         f"{tuple(yb.shape)}: it needs one logit per target. For several classes use accuracy")
    out, kept = out.reshape(yb.shape), yb != ignore_index
    return (((out > 0) == (yb > 0.5)) & kept).count_nonzero(), kept.count_nonzero()


def counts_of(f: Callable) -> Callable[..., tuple[Tensor, Tensor]] | None:
    "If `f` is an accuracy: a function that returns how many targets are right, and how many are not ignored."
    function, options = (f.func, f.keywords) if isinstance(f, partial) and not f.args else (f, {})
    counts = _counts if function is accuracy else _binary_counts if function is binary_accuracy else None
    return counts and partial(counts, **options)
