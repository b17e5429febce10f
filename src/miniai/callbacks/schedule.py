"Schedules: PyTorch's schedulers stepped by batch or by epoch, checked against the length of the fit."
from collections.abc import Callable
from typing import Any

from torch.optim import lr_scheduler

from miniai.data.loaders import length_of
from miniai.events import Callback
from miniai.optim.schedules import most_steps

__all__ = ['BaseSchedCB', 'BatchSchedCB', 'EpochSchedCB']


class BaseSchedCB(Callback):
    "Base class of schedules: `sched(opt)` makes a torch scheduler when a training fit starts, kept as `schedo`."
    unit = ''
    def __init__(self, sched: Callable[[Any], Any]) -> None: self.sched, self.schedo = sched, None

    def before_fit(self, learn: Any) -> None:
        if not learn.trains: return
        self.schedo = self.sched(learn.opt)
        if isinstance(self.schedo, lr_scheduler.ReduceLROnPlateau):
            raise TypeError("ReduceLROnPlateau needs a loss, which this callback does not pass to it: step it in "
                            "your own callback, in after_epoch, with learn.history[-1]['loss']")
        steps, most = self.total_steps(learn), most_steps(self.schedo)
        if steps is not None and steps > most:
            raise ValueError(f"the schedule {type(self.schedo).__name__} is made for {most} steps, but this fit takes "
                             f"{steps} {self.unit}: pass it a total of {steps}, or train for fewer epochs")

    def total_steps(self, learn: Any) -> int | None:
        "How many steps the fit will take; None if that is not known."
        return None

    def _step(self, learn: Any) -> None:
        if learn.training and not learn.skip_backward: self.schedo.step()


class BatchSchedCB(BaseSchedCB):
    """A schedule stepped after each training batch. If several batches make one step of the optimizer, it waits and
    then takes all their steps at once."""
    unit, _due = 'batches', 0  # steps that are still to be taken

    def total_steps(self, learn: Any) -> int | None:
        batches = length_of(learn.dls.train)
        return None if batches is None else learn.n_epochs*batches

    def before_fit(self, learn: Any) -> None:
        super().before_fit(learn)
        self._due = 0

    def after_batch(self, learn: Any) -> None:
        if not learn.training: return
        self._due += 1
        if not learn.hold_step: self._take_due(learn)

    def after_epoch(self, learn: Any) -> None:
        if learn.training: self._take_due(learn)

    def _take_due(self, learn: Any) -> None:
        for _ in range(self._due): self._step(learn)
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
