"Shapes and ranges of what a batch holds, and what in them needs attention before training."
import math
from typing import Any

import torch
from torch import Tensor

from miniai.device import tensors_in

__all__ = ['kind_of', 'of_outputs', 'about_data', 'about_outputs', 'about_loss', 'about_gradients', 'data_text']

FAR, WIDE, NARROW, APART = 5, 5, 0.02, 3  # of inputs: |mean| and std that are normalized; std ratio of two loaders
HIGH_LOSS = 2  # times the loss of guessing


def kind_of(x: Any) -> dict[str, Any]:
    "Figures of the tensors in a nest, taken together, and `text`: dtype, shape, range, mean and standard deviation."
    xs = [t.detach() for t in tensors_in(x)]
    shapes = ' and '.join(f"{str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for t in xs)
    values = torch.cat([_numbers(t) for t in xs if t.numel() and not t.is_complex()] or [torch.empty(0)])
    found = dict(kinds=[(str(t.dtype), tuple(t.shape[1:])) for t in xs], text=shapes or type(x).__name__)
    if not len(values): return found
    ok = values[values.isfinite()]
    found |= dict(floats=any(t.is_floating_point() for t in xs), finite=len(ok) == len(values))
    if not len(ok): return found
    found |= dict(low=ok.min().item(), high=ok.max().item(), mean=ok.mean().item(), std=ok.std(correction=0).item())
    text = f"{shapes} from {found['low']:.3g} to {found['high']:.3g}"
    if found['floats']: text += f", mean {found['mean']:.3g}, std {found['std']:.3g}"
    return found | dict(text=text)


def _numbers(x: Tensor) -> Tensor:
    "Those of a tensor in a row; of a sparse one those that it stores."
    if x.is_sparse: x = x.coalesce().values()
    elif x.is_nested: x = torch.cat([t.flatten() for t in x.unbind()])
    return x.flatten().double().cpu()


def about_data(seen: dict, train: dict | None) -> str:
    "What needs attention in a batch, '' if nothing; with `train`, also where its inputs differ from those in training."
    inputs, targets = seen['inputs'], seen['targets']
    if not inputs.get('finite', True): return 'inputs are not finite'
    if not targets.get('finite', True): return 'targets are not finite'
    if inputs.get('std') == 0: return 'all inputs are the same number'
    if targets.get('std') == 0 and seen['n'] > 1: return 'all targets are the same'
    if inputs.get('floats') and not _normalized(inputs): return (
        f"inputs are not normalized: pass normalize=True to the loaders, or subtract {inputs['mean']:.3g} and divide "
        f"by {inputs['std']:.3g}")
    return _difference(inputs, train['inputs']) if train else ''


def _normalized(x: dict) -> bool: return abs(x['mean']) <= FAR and NARROW <= x['std'] <= WIDE


def _difference(valid: dict, train: dict) -> str:
    if valid['kinds'] != train['kinds']: return 'inputs have other dtypes or shapes than in training'
    if not (valid.get('floats') and train.get('floats') and train.get('std')): return ''
    apart = max(valid['std'], 1e-12)/train['std']
    if not 1/APART <= apart <= APART or abs(valid['mean'] - train['mean']) > 2*train['std']: return (
        'inputs have another range than in training: normalize both alike')
    return ''


def data_text(seen: dict) -> str:
    "Inputs and targets of a batch in a line."
    targets = f", targets {seen['targets']['text']}" if seen['targets'] else ''
    return f"inputs {seen['inputs']['text']}{targets}"


def of_outputs(preds: Any) -> dict[str, Any]:
    "Figures of the predictions: those of `kind_of`, how many numbers there are per sample, and whether all are equal."
    first, found = next(tensors_in(preds), None), kind_of(preds)
    if first is None or first.ndim < 2: return found
    return found | dict(width=first.shape[1], alike=len(first) > 1 and bool((first == first[:1]).all()))


def about_outputs(seen: dict) -> str:
    "What needs attention in the predictions; '' if they are fine."
    if not seen['outputs'].get('finite', True): return 'outputs are not finite'
    return 'outputs are the same for all samples' if seen['outputs'].get('alike') else ''


def about_gradients(found: dict) -> tuple[str, str]:
    "What needs attention in the gradients, '' if nothing, and how many there are, as text."
    text = f"{found['n'] - len(found['missing'])} of {found['n']} parameters have one"
    for kind, what in (('not_finite', 'not finite'), ('missing', 'none, so these do not train'),
                       ('zero', 'only zeros')):
        names = found[kind]
        if names: return f"{what}: {', '.join(names[:4])}" + f' and {len(names) - 4} more'*(len(names) > 4), text
    return '', text


def about_loss(learn: Any, seen: dict, phase: str) -> str:
    "Whether the loss is finite and, before training, near that of guessing; '' if so."
    loss, guess = seen['loss'], guessing(learn, seen)
    if not math.isfinite(loss): return 'the loss is not finite'
    if phase == 'train' and guess and loss > HIGH_LOSS*guess: return (
        f'guessing gives {guess:.3g}: the outputs are too large, or far from the targets; look at the last layer')
    return ''


def guessing(learn: Any, seen: dict) -> float | None:
    "The loss of guessing, for PyTorch's cross-entropy and squared error; None for others."
    name, width = getattr(learn.loss_func, '__name__', type(learn.loss_func).__name__), seen['outputs'].get('width')
    if name in ('cross_entropy', 'CrossEntropyLoss') and width and width > 1: return math.log(width)
    if name in ('mse_loss', 'MSELoss') and 'std' in seen['targets']:
        return seen['targets']['std']**2 + seen['targets']['mean']**2
    return None
