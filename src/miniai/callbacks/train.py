"Callbacks for every batch: the five phases, the device, and checks of the loss."
import inspect
import math
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from miniai.callbacks.trained import buffers_of, loss_modules
from miniai.callbacks.wrapped import MappedLoader
from miniai.device import def_device, is_number, to_device, to_scalar
from miniai.events import Callback, CancelFitException
from miniai.metrics.batch import inputs_of

__all__ = ['TrainCB', 'SingleBatchCB', 'DeviceCB', 'FiniteLossCB', 'NonFiniteLossError', 'loss_of', 'as_tuple',
           'item_of']


class TrainCB(Callback):
    """The five phases of a batch: the first `n_inp` items of the batch are the model's inputs, the rest go to the loss.
    Subclasses may replace single phases.

    For batches that are dicts or objects, `inputs` and `targets` say what to take: keys or attributes by name, or
    functions of the batch; one, or a tuple of them. Names become keyword arguments of the model, functions positional
    ones. `learn.batch` is then a tuple: what the functions return, a dict of the named inputs, and the targets. A fit
    that does not train needs no targets."""
    inputs: Any = None
    targets: Any = ()
    def __init__(self, n_inp: int = 1, inputs: Any = None, targets: Any = None) -> None:
        self.n_inp = n_inp
        if inputs is None and targets is None: return
        if inputs is None or n_inp != 1:
            raise ValueError("TrainCB: give either n_inp, for batches that are tuples, or inputs and targets")
        self.inputs, self.targets = as_tuple(inputs), as_tuple(targets)
        functions = sum(map(callable, self.inputs))
        self.n_inp = functions + (functions < len(self.inputs))

    def before_epoch(self, learn: Any) -> None:
        if self.inputs is None: return
        learn.dl = MappedLoader(learn.dl, partial(self._as_tuple, needs_all=getattr(learn, 'trains', True)))

    def _as_tuple(self, batch: Any, needs_all: bool) -> tuple:
        positional = [f(batch) for f in self.inputs if callable(f)]
        named = {nm: item_of(batch, nm) for nm in self.inputs if not callable(nm)}
        targets = [item_of(batch, t, optional=not needs_all) for t in self.targets]
        return (*positional, *([named] if named else []), *(t for t in targets if t is not None))

    def predict(self, learn: Any) -> None:
        inputs, named = inputs_of(learn.batch, self.n_inp), {}
        if self.inputs and not all(map(callable, self.inputs)): *inputs, named = inputs
        learn.preds = learn.model(*inputs, **named)

    def get_loss(self, learn: Any) -> None: learn.loss = loss_of(learn, learn.batch[self.n_inp:])
    def backward(self, learn: Any) -> None: learn.loss.backward()
    def step(self, learn: Any) -> None: learn.opt.step()
    def zero_grad(self, learn: Any) -> None: learn.opt.zero_grad()


def as_tuple(x: Any) -> tuple:
    "One name or function, or several, or None, as a tuple."
    return () if x is None else (x,) if isinstance(x, str) or callable(x) else tuple(x)


def item_of(batch: Any, name: Any, optional: bool = False) -> Any:
    """The item of a batch with that key or attribute, or what a function of the batch returns. KeyError if there is
    none; None if it is `optional`."""
    if callable(name): return name(batch)
    try: return batch[name] if isinstance(batch, Mapping) else getattr(batch, name)
    except (KeyError, AttributeError):
        if optional: return None
        known = list(batch) if isinstance(batch, Mapping) else list(getattr(batch, '__dict__', ()))
        raise KeyError(f"the batch, a {type(batch).__name__}, has no {name!r}; it has {known}") from None


def loss_of(learn: Any, targets: tuple | list) -> Any:
    "The loss of the predictions and `targets`. ValueError if a loss that needs targets has none in training."
    if targets and learn.loss_func is not None: return learn.loss_func(learn.preds, *targets)
    return _loss_without_targets(learn)


def _loss_without_targets(learn: Any) -> Any:
    "The loss if it takes predictions alone. Otherwise there is none: None in validation, ValueError in training."
    trains = getattr(learn, 'trains', True)
    if learn.loss_func is None and not trains: return None
    if _takes_predictions_alone(learn.loss_func): return learn.loss_func(learn.preds)
    if not trains: return None
    name = getattr(learn.loss_func, '__name__', type(learn.loss_func).__name__)
    raise ValueError(f"the batch has no targets for {name}: all of its {len(learn.batch)} item(s) are inputs. "
                     f"Let the loader yield (inputs, targets), or pass n_inp to TrainCB")


def _takes_predictions_alone(f: Any) -> bool:
    try: inspect.signature(f.forward if isinstance(f, nn.Module) else f).bind(None)
    except TypeError: return False
    except ValueError: return True  # a built-in without a signature
    return True


class SingleBatchCB(Callback):
    "Stops the fit after its first batch."
    order = 1
    def after_batch(self, learn: Any) -> None: raise CancelFitException()


class DeviceCB(Callback):
    "Moves the model, a loss that is a module, and every batch to `device`."
    only_shows = True  # a run may resume with DistributedCB in its place
    def __init__(self, device: str | torch.device = def_device) -> None: self.device = torch.device(device)
    def before_fit(self, learn: Any) -> None:
        if hasattr(learn.model, 'to'): learn.model.to(self.device)
        for loss in loss_modules(learn).values(): loss.to(self.device)
    def before_batch(self, learn: Any) -> None: learn.batch = to_device(learn.batch, self.device)


class NonFiniteLossError(RuntimeError): "The training loss became NaN or infinite."


class FiniteLossCB(Callback):
    """Stops a fit whose training loss is not finite, with a NonFiniteLossError that names epoch and batch. Losses on
    the CPU are checked before the weights change; those on an accelerator every `every` seconds and at the end of the
    epoch. It comes last, so that LRFinderCB sees the loss first."""
    order, only_shows = math.inf, True
    def __init__(self, every: float = 0.5) -> None: self.every, self._unread = every, []

    def before_epoch(self, learn: Any) -> None: self._unread, self._due = [], time.perf_counter() + self.every

    def after_loss(self, learn: Any) -> None:
        loss = learn.loss
        if not learn.model.training or not is_number(loss): learn.skip_backward = False
        elif isinstance(loss, torch.Tensor) and not loss.is_cpu: self._unread.append((learn.iter, loss.detach()))
        else: learn.skip_backward = not math.isfinite(to_scalar(loss))

    def after_batch(self, learn: Any) -> None:
        if learn.skip_backward: self._stop_before_the_step(learn)
        if self._unread and time.perf_counter() >= self._due: self.read(learn)

    def _stop_before_the_step(self, learn: Any) -> None:
        learn.skip_backward = False
        self._fail(learn, learn.iter, float(to_scalar(learn.loss)), "The weights are as they were before this batch.")

    def after_epoch(self, learn: Any) -> None: self.read(learn)

    def read(self, learn: Any) -> None:
        "Check the losses that are still on the device, which waits for it."
        if not self._unread: return
        iters, losses = zip(*self._unread, strict=True)
        for i, x in zip(iters, torch.stack([x.reshape(()) for x in losses]).tolist(), strict=True):
            if not math.isfinite(x): self._fail(learn, i, x, "The weights have changed since then.")
        self.before_epoch(learn)

    def _fail(self, learn: Any, batch: int, loss: float, weights: str) -> None:
        raise NonFiniteLossError(
            f"the training loss is {loss} in epoch {learn.epoch}, batch {batch} (both counted from 0). {weights} "
            f"{_spoiled(learn)}"
            f"Usual causes: a learning rate that is too high (try learn.lr_find()), inputs that are not normalized, "
            f"a log or division by zero in the loss. To train on regardless, set learn.check_finite = False")


def _spoiled(learn: Any) -> str:
    "A sentence that names the buffers that are not finite, and says what to do; '' if there are none."
    floats = {nm: b for nm, b in buffers_of(learn).items() if b.is_floating_point()}
    lost = [nm for nm, b in floats.items() if (b.isnan() | b.isposinf()).any()]  # masks hold -inf
    if not lost: return ''
    names = ', '.join(lost[:4]) + f' and {len(lost) - 4} more'*(len(lost) > 4)
    return (f"But these buffers are not finite now: {names}. Before you train on, reset them, as "
            f"reset_running_stats() does for a batch norm, or load a checkpoint. ")
