"Schedules: PyTorch's schedulers stepped by batch or by epoch, checked against the length of the fit."
from collections.abc import Callable
from typing import Any

from torch.optim import lr_scheduler

from miniai.callbacks.checks import check_optimizer
from miniai.callbacks.passes import training_batches
from miniai.events import Callback
from miniai.optim.schedules import make_schedule, most_steps
from miniai.steps.skipped import skips, was_skipped

__all__ = ['BaseSchedCB', 'BatchSchedCB', 'EpochSchedCB']


class BaseSchedCB(Callback):
    """Base class of schedules: `sched(opt)` makes a torch scheduler when a training fit starts, kept as `schedo`. If
    `sched` has an argument `steps` without default, it gets the number of steps that the fit will take. `opt` names the
    Learner's attribute that holds the optimizer."""
    unit, _opt = '', 'opt'
    def __init__(self, sched: Callable[..., Any], opt: str = 'opt') -> None:
        if not callable(sched): raise TypeError(
            f"{type(self).__name__} needs a function that makes a schedule for the optimizer of each fit: write "
            f"{type(self).__name__}(lambda opt: {type(sched).__name__}(opt, …)), not a {type(sched).__name__} itself")
        self.sched, self._opt, self.schedo = sched, opt, None

    def before_fit(self, learn: Any) -> None:
        if not getattr(learn, 'trains', True): return  # a user's own Learner may have less
        steps = self.total_steps(learn)
        self.schedo = make_schedule(self.sched, self._optimizer(learn), steps)
        self._check(steps)

    def _optimizer(self, learn: Any) -> Any:
        opt = getattr(learn, self._opt, None)
        if opt is None:
            raise ValueError(f"{type(self).__name__}: the Learner has no optimizer {self._opt!r}: set "
                             f"learn.{self._opt} before the fit, or in before_fit of an earlier callback")
        check_optimizer(opt)
        return opt

    def _check(self, steps: int | None) -> None:
        if isinstance(self.schedo, lr_scheduler.ReduceLROnPlateau):
            raise TypeError("ReduceLROnPlateau needs a validation metric: use PlateauCB('-loss', factor=0.1, "
                            "patience=10)")
        most = most_steps(self.schedo)
        if steps is not None and steps > most:
            raise ValueError(f"the schedule {type(self.schedo).__name__} is made for {most} steps, but this fit takes "
                             f"{steps} {self.unit}: pass it a total of {steps}, or train for fewer epochs")

    def total_steps(self, learn: Any) -> int | None:
        "How many steps the fit will take; None if that is not known."
        return None

    def _step(self, learn: Any) -> None:
        if learn.model.training and not getattr(learn, 'skip_backward', False): self.schedo.step()


class BatchSchedCB(BaseSchedCB):
    """A schedule stepped after each training batch whose step was taken: not if a GradScaler (an attribute `scaler` of
    the Learner or a callback) or `skip_nonfinite` skipped it. If several batches make one step of the optimizer, it
    waits and then takes all their steps at once."""
    unit, _due = 'batches', 0  # steps that are still to be taken

    def total_steps(self, learn: Any) -> int | None: return training_batches(learn)

    def before_fit(self, learn: Any) -> None:
        super().before_fit(learn)
        self._due, self._before = 0, []

    def before_epoch(self, learn: Any) -> None: self.before_batch(learn)  # a resumed pass may have no batch left

    def before_batch(self, learn: Any) -> None:
        if learn.model.training: self._before = skips(learn, getattr(learn, self._opt))

    def after_batch(self, learn: Any) -> None:
        if not learn.model.training: return
        self._due += 1
        if not getattr(learn, 'hold_step', False): self._take_due(learn)

    def cleanup_batch(self, learn: Any) -> None:
        cancelled = getattr(learn, 'ended_by', None) is not None
        if cancelled and not getattr(learn, 'hold_step', False): self._due = 0  # AccumulateCB drops the batches

    def after_epoch(self, learn: Any) -> None:
        if learn.model.training and self._due: self._take_due(learn)

    def _take_due(self, learn: Any) -> None:
        skipped = was_skipped(self._before, skips(learn, getattr(learn, self._opt)))
        for _ in range(0 if skipped else self._due): self._step(learn)
        self._due = 0

    def state_dict(self) -> dict[str, Any]:
        "How many steps are still to be taken; the schedule has a state_dict of its own."
        return dict(due=self._due)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned."
        self._due = state['due']


class EpochSchedCB(BaseSchedCB):
    "A schedule stepped after each training epoch."
    unit = 'epochs'
    def total_steps(self, learn: Any) -> int | None: return learn.n_epochs
    def after_epoch(self, learn: Any) -> None: self._step(learn)
