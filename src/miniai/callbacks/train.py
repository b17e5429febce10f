"""What a batch goes through: the five phases as a callback, the device, stopping after one batch.
Knows events, not the loop."""
import inspect
from typing import Any

import torch
from torch import nn

from miniai.device import def_device, to_device
from miniai.events import Callback, CancelFitException

__all__ = ['TrainCB', 'SingleBatchCB', 'DeviceCB', 'checked', 'inputs_of', 'loss_of', 'n_inputs']


class TrainCB(Callback):
    """The five phases of a batch: the first `n_inp` items of the batch are the model's inputs, the rest go to the loss.
    Subclasses replace single phases."""
    def __init__(self, n_inp: int = 1) -> None: self.n_inp = n_inp
    def predict(self, learn: Any) -> None: learn.preds = learn.model(*inputs_of(learn.batch, self.n_inp))
    def get_loss(self, learn: Any) -> None: learn.loss = loss_of(learn, learn.batch[self.n_inp:])
    def backward(self, learn: Any) -> None: learn.loss.backward()
    def step(self, learn: Any) -> None: learn.opt.step()
    def zero_grad(self, learn: Any) -> None: learn.opt.zero_grad()


def checked(batch: Any) -> tuple | list:
    "The batch. TypeError where it is no tuple or list."
    if isinstance(batch, (tuple, list)): return batch
    raise TypeError(f"a batch must be a tuple (inputs, targets), got {_described(batch)}: "
                    f"let the loader's dataset return pairs, "
                    f"or turn each batch into a tuple with BatchTransformCB or the loader's collate_fn")


def inputs_of(batch: Any, n_inp: int) -> tuple | list:
    "The first `n_inp` items of a batch. TypeError where the batch is no tuple or list."
    return checked(batch)[:n_inp]


def _described(x: Any) -> str:
    if isinstance(x, torch.Tensor): return f"a bare tensor of shape {tuple(x.shape)}"
    return f"a {type(x).__name__} with keys {list(x)}" if isinstance(x, dict) else f"a {type(x).__name__}"


def loss_of(learn: Any, targets: tuple | list) -> Any:
    """`learn.loss_func` of predictions and `targets`. Without targets, a loss function that takes predictions alone is
    called so; else it is a ValueError where the fit trains, and None where it only validates."""
    if targets and learn.loss_func is not None: return learn.loss_func(learn.preds, *targets)
    if learn.loss_func is None and not learn.trains: return None
    if _takes_predictions_alone(learn.loss_func): return learn.loss_func(learn.preds)
    if not learn.trains: return None
    raise ValueError(f"the batch has no targets: of its {len(learn.batch)} item(s) all are inputs, "
                     f"so {_name(learn.loss_func)} has nothing to compare predictions with. "
                     f"Let the loader yield (inputs, targets), or pass n_inp to TrainCB")


def _takes_predictions_alone(f: Any) -> bool:
    try: inspect.signature(f.forward if isinstance(f, nn.Module) else f).bind(None)
    except TypeError: return False
    except ValueError: return True
    return True


def _name(f: Any) -> str: return getattr(f, '__name__', type(f).__name__)


def n_inputs(learn: Any) -> int:
    "How many items of a batch are inputs: `n_inp` of the callback that has one, else 1."
    return next((cb.n_inp for cb in learn.cbs if hasattr(cb, 'n_inp')), 1)


class SingleBatchCB(Callback):
    "Stops the fit after its first batch."
    order = 1
    def after_batch(self, learn: Any) -> None: raise CancelFitException()


class DeviceCB(Callback):
    "Moves the model, and every batch, to `device`."
    def __init__(self, device: str | torch.device = def_device) -> None: self.device = torch.device(device)
    def before_fit(self, learn: Any) -> None:
        if hasattr(learn.model, 'to'): learn.model.to(self.device)
    def before_batch(self, learn: Any) -> None: learn.batch = to_device(learn.batch, self.device)
