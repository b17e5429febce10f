"The loop: fit, epoch, batch, and the five phases of a batch. Everything else is a callback."
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, optim

from miniai.callbacks.capture import capture_preds, show_image_batch
from miniai.callbacks.checks import (
    FiniteLossCB,
    NonFiniteLossError,
    SkippedStepsCB,
    check_fit,
    check_lr,
    check_optimizer,
)
from miniai.callbacks.lr_finder import LRFinderCB, lr_find
from miniai.callbacks.metrics import MetricsCB
from miniai.callbacks.progress import ProgressCB
from miniai.callbacks.train import DeviceCB, SingleBatchCB, TrainCB, checked, loss_of
from miniai.callbacks.tta import tta
from miniai.device import to_cpu
from miniai.diagnosis.summary import summary
from miniai.events import (
    EVENTS,
    PHASES,
    Callback,
    CallbackList,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    Dispatch,
    listed,
    run_cbs,
    with_cbs,
)
from miniai.resume.checkpoint import start_of
from miniai.resume.start import Start
from miniai.resume.state import ResumeError

__all__ = ['CancelFitException', 'CancelEpochException', 'CancelBatchException', 'NonFiniteLossError',
           'Callback', 'run_cbs', 'with_cbs', 'to_cpu', 'Learner', 'TrainLearner', 'MomentumLearner',
           'TrainCB', 'SingleBatchCB', 'DeviceCB', 'MetricsCB', 'ProgressCB', 'LRFinderCB', 'lr_find']


class Learner:
    """Trains `model` on `dls.train` and validates it on `dls.valid`. `opt_func(params, lr)` makes the optimizer at each
    fit; with None, the one in `learn.opt` stays. Callbacks, `cbs`, hear `events` and may change anything; they, or a
    subclass, say what the five phases do. `history` holds a dict an epoch and phase of the last fit. A training loss
    that is not finite stops a fit unless `check_finite` is False."""
    events: tuple[str, ...] = EVENTS + PHASES
    check_finite = True
    skip_backward = hold_step = trains = validates = trained = pass_done = dry_run = _fitting = False
    first_batch = 0
    opt = epochs = epoch = iter = batch = preds = loss = start = ended_by = _dispatch = _last_dispatch = None

    def __init__(self, model: nn.Module, dls: Any = (0,), loss_func: Callable | None = F.mse_loss,
                 lr: float | None = 0.1, cbs: Any = None, opt_func: Callable | None = optim.SGD) -> None:
        if lr is not None: check_lr(lr)
        self.model, self.dls, self.loss_func, self.opt_func = model, dls, loss_func, opt_func
        self.lr, self.cbs, self.history = lr, listed(cbs), []

    def predict(self) -> None: self.callback('predict')
    def get_loss(self) -> None: self.callback('get_loss')
    def backward(self) -> None: self.callback('backward')
    def step(self) -> None: self.callback('step')
    def zero_grad(self) -> None: self.callback('zero_grad')

    @with_cbs('batch')
    def _one_batch(self) -> None:
        self.predict()
        self.callback('after_predict')
        self.get_loss()
        self.callback('after_loss')
        if not self.training or self.skip_backward: return
        self.backward()
        if self.hold_step: return
        self.callback('after_backward')
        self.step()
        self.callback('after_step')
        self.zero_grad()

    @with_cbs('epoch')
    def _one_epoch(self) -> None:
        for self.iter, self.batch in self._batches(): self._one_batch()  # noqa: B020
        if self.iter is None:
            raise ValueError(f"the loader gave no batch in epoch {self.epoch}: "
                             f"it is empty, or an iterator that can be used only once")
        self.pass_done = True

    def _batches(self) -> Iterator[tuple[int, Any]]: return enumerate(self.dl, self.first_batch)

    def one_epoch(self, training: bool) -> None:
        "One pass over `dls.train`, or, with `training` False, over `dls.valid`."
        self.model.train(training)
        self.dl = self.dls.train if training else self.dls.valid
        if self.first_batch: self.dl = self.start.rest(self.dl)
        self.iter, self.pass_done = self.first_batch - 1 if self.first_batch else None, False
        self._one_epoch()
        self.first_batch = 0

    @with_cbs('fit')
    def _fit(self, train: bool, valid: bool) -> None:
        for self.epoch in self.epochs:  # noqa: B020
            if train and not self.trained: self.one_epoch(True)
            self.trained = False
            if valid: torch.no_grad()(self.one_epoch)(False)

    def fit(self, n_epochs: int = 1, train: bool = True, valid: bool = True, cbs: Any = None,
            lr: float | None = None, resume: bool = False) -> None:
        """Train for `n_epochs`, each followed by validation; `train` and `valid` switch either off. `cbs` are
        there for this fit alone, and `lr` stands in for the Learner's. With `resume` the fit goes on from the newest
        checkpoint of its CheckpointCB, where there is one. What can be known to fail raises ValueError or TypeError
        before the first batch."""
        if self._fitting: raise RuntimeError("this Learner is fitting already; call fit, or what uses it, after that")
        added = [*listed(cbs), SkippedStepsCB(), *([FiniteLossCB()] if self.check_finite else [])]
        self.cbs.extend(added)
        self._fitting, before = True, (self.history, self.opt)
        try:
            check_fit(self, n_epochs, train, valid, self._own_phases())
            self.n_epochs, self.trains, self.validates = n_epochs, train, valid
            self.start = start_of(self, n_epochs) if resume else Start()
            self.first_batch, self.trained = self.start.batch, self.start.trained
            self.epochs = range(self.start.epoch, n_epochs)
            if self.start.epoch and not self.epochs: self.epoch = n_epochs - 1
            self.history, self.skip_backward, self.hold_step, self._dispatch = [], False, False, None
            vars(self).pop('metrics', None)
            self._listen('before_fit')
            self._make_optimizer(self.lr if lr is None else lr)
            self._fit(train, valid)
        except ResumeError:
            self.history, self.opt = before
            raise
        finally:
            self._fitting, self.start, self.first_batch = False, None, 0
            for cb in added: _remove_last(self.cbs, cb)

    def _own_phases(self) -> set[str]:
        return {p for p in PHASES if p in vars(self) or getattr(type(self), p) is not getattr(Learner, p)}

    def _make_optimizer(self, lr: float | None) -> None:
        """A new optimizer where the fit trains; where it only validates,
        one for callbacks to look at if there is none and one can be had."""
        if self.trains:
            if self.opt_func:
                check_lr(lr)
                self.opt = self.opt_func(self.model.parameters(), lr)
            check_optimizer(self.opt, self.opt_func)
        elif self.opt_func and self.opt is None and lr is not None and lr >= 0:
            params = list(self.model.parameters())
            if params: self.opt = self.opt_func(params, lr)

    def callback(self, method_nm: str) -> None:
        """Call the method `method_nm` of every callback that has it, in rising `order`.
        AttributeError where it is no event of this Learner."""
        dispatch = self._dispatch or self._listen(method_nm)
        if method_nm not in dispatch.silent: dispatch(method_nm, self)

    @property
    def cbs(self) -> list:
        "The callbacks, in the order given. They may come and go at any time."
        return self._cbs

    @cbs.setter
    def cbs(self, cbs: list) -> None:
        self._cbs = cbs if isinstance(cbs, CallbackList) else CallbackList(listed(cbs))
        self._dispatch = None
        self._cbs.on_change = self._listen_anew

    def _listen_anew(self) -> None: self._dispatch = None

    def _listen(self, event: str) -> Dispatch:
        "Find out who hears what. Where a callback is at fault, cleanups are still heard by those there before."
        try: self._dispatch = self._last_dispatch = Dispatch(self.cbs, self.events)
        except Exception:
            if not event.startswith('cleanup_') or self._last_dispatch is None: raise
        return self._last_dispatch

    @property
    def training(self) -> bool:
        "Is the model in training mode?"
        return self.model.training

    lr_find, summary, show_image_batch, capture_preds, tta = lr_find, summary, show_image_batch, capture_preds, tta


def _remove_last(cbs: list, cb: Any) -> None:
    at = [i for i, o in enumerate(cbs) if o is cb]
    if at: del cbs[at[-1]]


class TrainLearner(Learner):
    """A Learner that predicts from the first item of a batch, takes the loss with the second, steps,
    and zeroes the gradients."""
    def predict(self) -> None: self.preds = self.model(checked(self.batch)[0])
    def get_loss(self) -> None: self.loss = loss_of(self, self.batch[1:2])
    def backward(self) -> None: self.loss.backward()
    def step(self) -> None: self.opt.step()
    def zero_grad(self) -> None: self.opt.zero_grad()


class MomentumLearner(TrainLearner):
    """A TrainLearner that keeps `mom` of the gradient after each step instead of zeroing it.
    Its `lr` may stay None until `fit(lr=…)`."""
    def __init__(self, model: nn.Module, dls: Any, loss_func: Callable | None, lr: float | None = None, cbs: Any = None,
                 opt_func: Callable | None = optim.SGD, mom: float = 0.85) -> None:
        super().__init__(model, dls, loss_func, lr, cbs, opt_func)
        self.mom = mom

    @torch.no_grad()
    def zero_grad(self) -> None:
        for p in self.model.parameters():
            if p.grad is not None: p.grad *= self.mom
