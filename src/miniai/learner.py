"The loop: fit, epoch, batch, and the five phases of a batch. Everything else is a callback."
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.nn.parameter import is_lazy

from miniai.callbacks.checks import check_fit, check_lr, check_optimizer
from miniai.callbacks.first_batch import FirstBatchCB
from miniai.callbacks.freeze import freeze, unfreeze
from miniai.callbacks.lr_finder import LRFinderCB, lr_find
from miniai.callbacks.modes import set_mode
from miniai.callbacks.passes import EpochCB, steps_cbs
from miniai.callbacks.progress import ProgressCB
from miniai.callbacks.together import rank_cbs
from miniai.callbacks.train import (
    DeviceCB,
    FiniteLossCB,
    NonFiniteLossError,
    SingleBatchCB,
    TrainCB,
    loss_of,
)
from miniai.callbacks.trained import can_train, new_optimizer, trained_parameters
from miniai.callbacks.wrapped import WrappedLoader, first_batch_of
from miniai.device import to_cpu, without_graph
from miniai.diagnosis.capture import capture_preds, show_image_batch
from miniai.diagnosis.check import check
from miniai.diagnosis.error_notes import note_error
from miniai.diagnosis.explain import explain
from miniai.diagnosis.summary import summary
from miniai.diagnosis.tta import tta
from miniai.events import (
    EVENTS,
    PHASES,
    Callback,
    CallbackList,
    CancelBatchException,
    CancelEpochException,
    CancelFitException,
    Dispatch,
    as_list,
    run_cbs,
    with_cbs,
)
from miniai.inference.evaluate import evaluate
from miniai.inference.export import export
from miniai.inference.model_file import load_best, save_model
from miniai.inference.predictor import predictor
from miniai.inference.report import report
from miniai.inference.results import results
from miniai.metrics.batch import checked
from miniai.metrics.metrics import MetricsCB
from miniai.steps.closure import ClosureCB
from miniai.steps.evaluation_point import EvaluationPointCB
from miniai.steps.one_cycle import fit_one_cycle
from miniai.steps.skipped import SkippedStepsCB

__all__ = ['CancelFitException', 'CancelEpochException', 'CancelBatchException', 'NonFiniteLossError',
           'Callback', 'run_cbs', 'with_cbs', 'to_cpu', 'Learner', 'TrainLearner', 'MomentumLearner',
           'TrainCB', 'SingleBatchCB', 'DeviceCB', 'MetricsCB', 'ProgressCB', 'LRFinderCB', 'lr_find']


class Learner:
    """Trains `model` on `dls.train` and validates it on `dls.valid`. `opt_func(params, lr)` makes the optimizer at each
    fit; with `opt_func=None` the optimizer in `learn.opt` stays. The five phases of a batch come from a subclass or a
    callback. `history` holds one dict per epoch and phase of the last fit. A training loss that is not finite stops
    the fit unless `check_finite` is False. docs/learner.md lists every attribute and event."""
    events: tuple[str, ...] = EVENTS + PHASES
    check_finite = True
    opt = epochs = n_epochs = epoch = iter = dl = batch = preds = loss = metrics = display = ended_by = None
    kept_in_eval, _left_in_eval = None, ()
    trains = validates = resume = dry_run = skip_backward = hold_step = fitting = False
    counts = True
    _last_dispatch = None

    def __init__(self, model: nn.Module, dls: Any = (0,), loss_func: Callable | None = F.mse_loss,
                 lr: float | None = 0.1, cbs: Any = None, opt_func: Callable | None = optim.SGD) -> None:
        if lr is not None: check_lr(lr)
        self.model, self.dls, self.loss_func, self.opt_func = model, dls, loss_func, opt_func
        self.lr, self.cbs, self.history = lr, as_list(cbs), []

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
        try:
            self.backward()
            if self.hold_step: return
            self.callback('after_backward')
            self.step()
            self.callback('after_step')
        finally:  # a batch cut short leaves no gradient either
            if not self.hold_step: self.zero_grad()

    @with_cbs('epoch')
    def _one_epoch(self) -> None:
        start = first_batch_of(self.dl)  # above 0 in an epoch that is resumed
        if start: self.iter = start - 1
        for self.iter, self.batch in enumerate(self.dl, start): self._one_batch()  # noqa: B020
        if self.iter is None: raise ValueError(
            f"the loader gave no batch in epoch {self.epoch}: it is empty, or an iterator that can be used only once")

    def one_epoch(self, training: bool) -> None:
        "One pass over `dls.train`, or over `dls.valid` if `training` is False."
        set_mode(self, training)
        self.dl, self.iter = self.dls.train if training else self.dls.valid, None
        self._one_epoch()

    @with_cbs('fit')
    def _fit(self) -> None:
        for self.epoch in self.epochs:  # noqa: B020
            if self.trains: self.one_epoch(True)
            if self.validates: torch.no_grad()(self.one_epoch)(False)

    def fit(self, n_epochs: int | None = None, train: bool = True, valid: bool = True, cbs: Any = None,
            lr: float | None = None, resume: bool = False, *, steps: int | None = None,
            valid_every: int | None = None) -> None:
        """Train for `n_epochs`, by default 1, and validate after each; `train` and `valid` switch either off. Or train
        for `steps` batches, in epochs of `valid_every`, by default of one pass. `cbs` are added for this fit only, and
        `lr` replaces the Learner's. With `resume` the fit continues from the newest checkpoint of its CheckpointCB, if
        there is one. ValueError or TypeError, before the first batch, for what is sure to fail; a fit that fails before
        its first epoch leaves history and optimizer as they were."""
        if self.fitting: raise RuntimeError("this Learner is already fitting; wait until that fit has ended")
        added = [*as_list(cbs), *steps_cbs(n_epochs, steps, valid_every), ClosureCB(), SkippedStepsCB(), FirstBatchCB()]
        added += [EpochCB(), EvaluationPointCB(), *rank_cbs()]
        if self.check_finite: added.append(FiniteLossCB())
        n_epochs = 1 if n_epochs is None else n_epochs
        self.cbs.extend(added)
        self.fitting, self.epoch, before = True, None, (self.history, self.opt)
        try:
            check_fit(self, n_epochs, train, valid, resume, self._own_phases())
            self.n_epochs, self.epochs, self.trains, self.validates = n_epochs, range(n_epochs), train, valid
            self.history, self.metrics, self.resume = [], None, resume
            self.skip_backward, self.hold_step, self._cbs.dispatch = False, False, None
            self._listen('before_fit')
            self._make_optimizer(self.lr if lr is None else lr)
            self._fit()
        except BaseException as e:
            if self.epoch is None: self.history, self.opt = before
            note_error(self, e)
            raise
        finally:
            self.fitting = self.resume = False
            for cb in added: self._remove(cb)
            self._let_go()

    def _let_go(self) -> None:
        "Keep no graph and no wrapped loader, so that the Learner can be copied, pickled and freed."
        for nm, x in list(vars(self).items()):
            if isinstance(x, torch.Tensor) or nm in ('batch', 'preds'): setattr(self, nm, without_graph(x))
        while isinstance(self.dl, WrappedLoader): self.dl = self.dl.dl
        self._last_dispatch = None

    def _own_phases(self) -> set[str]:
        return {p for p in PHASES if p in vars(self) or getattr(type(self), p) is not getattr(Learner, p)}

    def _make_optimizer(self, lr: float | None) -> None:
        "A new optimizer if the fit trains; if it only validates, one for callbacks to look at, if there is none yet."
        if self.trains:
            if self.opt_func:
                check_lr(lr)
                self.opt = new_optimizer(self, lr)
            check_optimizer(self.opt, self.opt_func)
        elif self.opt_func and self.opt is None and lr is not None and lr >= 0 and can_train(self):
            self.opt = new_optimizer(self, lr)

    def callback(self, method_nm: str) -> None:
        "Call the method `method_nm` of every callback, in rising `order`. AttributeError if it is not an event."
        dispatch = self._cbs.dispatch or self._listen(method_nm)
        if method_nm not in dispatch.silent: dispatch(method_nm, self)

    def _listen(self, event: str) -> Dispatch:
        "Build the table of listeners. If a callback is invalid, cleanups still use the previous table."
        try: self._cbs.dispatch = self._last_dispatch = Dispatch(self.cbs, self.events)
        except Exception:
            if not event.startswith('cleanup_') or self._last_dispatch is None: raise
        return self._last_dispatch

    @property
    def cbs(self) -> list:
        "The callbacks, in the order given. They may be added and removed at any time."
        return self._cbs

    @cbs.setter
    def cbs(self, cbs: list) -> None:
        self._cbs = cbs if isinstance(cbs, CallbackList) else CallbackList(as_list(cbs))
        self._cbs.dispatch = None

    def _remove(self, cb: Any) -> None:
        "Remove the last occurrence of `cb`, if it is still there."
        at = [i for i, other in enumerate(self.cbs) if other is cb]
        if at: del self.cbs[at[-1]]

    training = property(lambda self: self.model.training, doc="Is the model in training mode?")

    def __repr__(self) -> str:
        params = [p for p in getattr(self.model, 'parameters', list)() if not is_lazy(p)]
        names = [getattr(f, '__name__', type(f).__name__) for f in (self.loss_func, self.opt_func or self.opt)]
        data = repr(self.dls) if len(repr(self.dls)) < 400 else f'a {type(self.dls).__name__}'
        cbs = ', '.join(type(cb).__name__ for cb in self.cbs) or 'none'
        size = sum(p.numel() for p in params)
        return (f"{type(self).__name__}: {type(self.model).__name__} with {size:,} parameters, loss {names[0]}, "
                f"optimizer {names[1]}, lr {self.lr}\n  data: {data}\n  callbacks: {cbs}")

    lr_find, summary, show_image_batch, capture_preds, tta = lr_find, summary, show_image_batch, capture_preds, tta
    check, explain = check, explain
    evaluate, predictor, results, save_model, export = evaluate, predictor, results, save_model, export
    report = report
    freeze, unfreeze, fit_one_cycle, load_best = freeze, unfreeze, fit_one_cycle, load_best


class TrainLearner(Learner):
    "A Learner that predicts from the first item of a batch, takes the loss with the second, and steps."
    def predict(self) -> None: self.preds = self.model(checked(self.batch)[0])
    def get_loss(self) -> None: self.loss = loss_of(self, self.batch[1:2])
    def backward(self) -> None: self.loss.backward()
    def step(self) -> None: self.opt.step()
    def zero_grad(self) -> None: self.opt.zero_grad()


class MomentumLearner(TrainLearner):
    """A TrainLearner that multiplies gradients by `mom` after each step instead of zeroing them.
    Its `lr` may stay None until `fit(lr=…)`."""
    def __init__(self, model: nn.Module, dls: Any, loss_func: Callable | None, lr: float | None = None, cbs: Any = None,
                 opt_func: Callable | None = optim.SGD, mom: float = 0.85) -> None:
        super().__init__(model, dls, loss_func, lr, cbs, opt_func)
        self.mom = mom

    @torch.no_grad()
    def zero_grad(self) -> None:
        for p in trained_parameters(self):
            if p.grad is not None: p.grad *= self.mom
