"What a batch weighs when several are averaged: its samples, or what its loss divided by."
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.device import first_tensor, tensors_in
from miniai.metrics.batch import batch_size, target_slice

__all__ = ['Weight', 'check_weight', 'hides_sum', 'hides_weights', 'is_sum', 'sum_error', 'summed', 'weight_of']

Weight = Callable[[Any], float | Tensor] | str | None
_OF_CLASSES = F.cross_entropy, F.nll_loss, nn.CrossEntropyLoss.forward, nn.NLLLoss.forward


def check_weight(name: str, weight: Weight) -> None:
    "TypeError unless `weight` is a function, 'sum' or None."
    if weight is None or weight == 'sum' or callable(weight): return
    raise TypeError(f"{name}: weight must be a function of the Learner that says what a batch weighs, 'sum' for a loss "
                    f"that is a sum over the batch, or None, got {weight!r}")


def weight_of(learn: Any, weight: Weight = None) -> Callable[[Any], float | Tensor]:
    """A function of the Learner that says what a batch's loss weighs: `weight` if that is a function; `summed` if it is
    'sum' or the loss is one of PyTorch's with reduction='sum'; for cross-entropy and nll_loss the class weights of the
    targets that are not ignored, added up; else the number of samples. ValueError for an unknown loss that is a sum."""
    if weight is not None: return summed if weight == 'sum' else weight
    loss_func = getattr(learn, 'loss_func', None)
    f, options = _taken_apart(loss_func)
    if options.get('reduction') == 'sum':
        if (getattr(f, '__module__', '') or '').startswith('torch.nn.'): return summed
        raise sum_error(loss_func)
    part = target_slice(learn)
    targets = first_tensor(learn.batch[part]) if isinstance(learn.batch, tuple | list) else None
    if f not in _OF_CLASSES or targets is None or targets.is_floating_point():  # probabilities of classes
        return _samples
    weights, ignored = options.get('weight'), options.get('ignore_index', -100)
    return partial(_counted if weights is None else partial(_class_weights, weights.detach()), part.start, ignored)


def summed(learn: Any) -> int:
    "The weight of a batch whose loss is a sum: batches add up, so each counts once."
    return 1


def _samples(learn: Any) -> int:
    "The rows of the first target if that is a tensor, because inputs may have others: graphs have nodes, for example."
    targets = learn.batch[target_slice(learn)] if isinstance(learn.batch, tuple | list) else ()
    return batch_size(targets if targets and isinstance(targets[0], Tensor) and targets[0].ndim else learn.batch)


def _counted(item: int, ignored: int, learn: Any) -> Tensor: return (learn.batch[item] != ignored).count_nonzero()


def _class_weights(weights: Tensor, item: int, ignored: int, learn: Any) -> Tensor:
    kept = learn.batch[item] != ignored
    return (weights[learn.batch[item].where(kept, 0)]*kept).sum()


def _taken_apart(loss_func: Any) -> tuple[Any, dict[str, Any]]:
    "The function that computes a loss, and its options: keywords of a partial, attributes of a module."
    options = {}
    while isinstance(loss_func, partial): options, loss_func = loss_func.keywords | options, loss_func.func
    if not isinstance(loss_func, nn.Module): return loss_func, options
    names = 'reduction', 'weight', 'ignore_index'
    return type(loss_func).forward, {nm: getattr(loss_func, nm) for nm in names if hasattr(loss_func, nm)}


def hides_sum(learn: Any) -> bool:
    "Is the loss, or a part of it, a sum, although `weight_of` does not know?"
    return isinstance(learn.loss, Tensor) and weight_of(learn) is _samples and is_sum(learn)


def is_sum(learn: Any) -> bool:
    """Does the graph of the loss say that it, or a part added to it, is a sum over the batch? A sum that does not come
    from the predictions is a penalty, such as that of large weights."""
    n, preds = batch_size(learn.batch), {t.grad_fn for t in tensors_in(learn.preds)} - {None}
    sums = (fn for fn in _parts(learn.loss, lambda fn: _keeps_sums(fn, n)) if _is_sum(fn, n))
    return any(not preds or _comes_from(fn, preds) for fn in sums)


def _comes_from(fn: Any, sources: set) -> bool:
    functions, seen = [fn], set()
    while functions:
        fn = functions.pop()
        if fn in sources: return True
        if fn is not None and fn not in seen: functions += [f for f, _ in fn.next_functions]
        seen.add(fn)
    return False


def _keeps_sums(fn: Any, n: int) -> bool:
    "Is a sum over `n` samples still one after `fn`? A factor of up to 2/`n` may be what makes it a mean."
    if not _is_named(fn, 'MulBackward'): return _is_named(fn, 'AddBackward', 'SubBackward', 'NegBackward')
    factor = fn._saved_other  # Python's numbers are double precision here
    is_number = isinstance(factor, Tensor) and factor.dtype == torch.float64 and not factor.ndim
    return is_number and abs(factor.item())*n > 2


def _is_named(fn: Any, *names: str) -> bool: return type(fn).__name__.startswith(names)


def _is_sum(fn: Any, n: int) -> bool:
    if _is_named(fn, 'SumBackward'): return tuple(fn._saved_self_sym_sizes[:1]) == (n,)
    return getattr(fn, '_saved_reduction', 1) == 2


def _parts(loss: Tensor, combines: Callable[[Any], bool]) -> Iterator[Any]:
    "The functions in the graph of `loss` whose results are combined by functions that `combines`."
    functions = [loss.grad_fn]
    while functions:
        fn = functions.pop()
        if combines(fn): functions += [f for f, _ in fn.next_functions]
        elif fn is not None: yield fn


def hides_weights(learn: Any) -> bool:
    """Does the graph of the loss say that it weighs classes or ignores targets, although `weight_of` does not know? So
    it is with cross-entropy in a function or module of the user's. It reads one number from the device."""
    if not isinstance(learn.loss, Tensor) or weight_of(learn) is not _samples: return False
    arithmetic = 'AddBackward', 'SubBackward', 'MulBackward', 'DivBackward'
    means = (fn for fn in _parts(learn.loss, lambda fn: _is_named(fn, *arithmetic))
             if _is_named(fn, 'NllLoss') and fn._saved_reduction == 1)
    return any(fn._saved_total_weight.item() != fn._saved_target.numel() for fn in means)


def sum_error(loss_func: Any) -> ValueError:
    "The error for a loss that is a sum, or has a part that is one."
    name = '' if loss_func is None else f" {getattr(loss_func, '__name__', type(loss_func).__name__)}"
    return ValueError(f"the loss{name} is a sum over the batch, or a part of it is, so samples are not its weight: use "
                      f"a mean; or pass weight='sum' if all of it is a sum, or weight=lambda learn: …, which says what "
                      f"a batch weighs")
