"What a batch holds: inputs, targets, and how many samples."
from contextlib import suppress
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from miniai.device import first_tensor

__all__ = ['batch_size', 'checked', 'inputs_of', 'n_inputs', 'target_slice']


def checked(batch: Any) -> tuple | list:
    "The batch, if it is a tuple or list; TypeError otherwise."
    if isinstance(batch, (tuple, list)): return batch
    raise _not_a_tuple(batch)


def _not_a_tuple(batch: Any) -> TypeError:
    if isinstance(batch, Tensor): found = f"a bare tensor of shape {tuple(batch.shape)}"
    elif isinstance(batch, dict): found = f"a {type(batch).__name__} with keys {list(batch)}"
    else: found = f"a {type(batch).__name__}"
    return TypeError(f"a batch must be a tuple (inputs, targets), got {found}: use Learner with TrainCB(inputs=…, "
                     f"targets=…), which names what to take, or the loader's collate_fn")


def inputs_of(batch: Any, n_inp: int) -> tuple | list:
    "The first `n_inp` items of a batch. TypeError if the batch is not a tuple or list."
    return checked(batch)[:n_inp]


def n_inputs(learn: Any) -> int:
    "How many items of a batch are inputs: `n_inp` of the callback that has one, else 1."
    return target_slice(learn).start


def target_slice(learn: Any) -> slice:
    "The part of a batch that the loss gets: all that follows the inputs of TrainCB, one item for other phases."
    n_inp = next((cb.n_inp for cb in learn.cbs if hasattr(cb, 'n_inp')), None)
    return slice(1, 2) if n_inp is None else slice(n_inp, None)


def batch_size(x: Any) -> int:
    """How many samples `x` holds: `num_graphs` of a batch of graphs, the sequences of a PackedSequence, else the length
    of the first tensor, however deep; 1 if that is a single number or there is none."""
    first = first_tensor(x)
    while isinstance(x, tuple | list) and x and not isinstance(x, PackedSequence): x = x[0]
    if isinstance(x, PackedSequence): return int(x.batch_sizes[0])
    with suppress(AttributeError, KeyError): return x.num_graphs  # KeyError: of objects whose items are attributes
    return len(first) if first is not None and first.ndim else 1
