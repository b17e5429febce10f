"Schedules: PyTorch's schedulers stepped by batch or by epoch, checked against the length of the fit."
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch.optim import lr_scheduler

from miniai.data.loaders import length_of
from miniai.events import Callback
from miniai.optim.schedules import most_steps

__all__ = ['BaseSchedCB', 'BatchSchedCB', 'EpochSchedCB']


class BaseSchedCB(Callback):
    "Base of schedules: `sched(opt)` makes a torch scheduler when a training fit starts, kept as `schedo`."
    def __init__(self, sched: Callable[[Any], Any]) -> None: self.sched, self.schedo = sched, None

    def before_fit(self, learn: Any) -> None:
        if not learn.trains: return
        self.schedo = self.sched(learn.opt)
        if isinstance(self.schedo, lr_scheduler.ReduceLROnPlateau):
            raise TypeError("ReduceLROnPlateau follows a loss, which schedules by count do not see: step it in a "
                            "callback of your own, after_epoch, with learn.history[-1]['loss']")
        steps, most = self._steps(learn), most_steps(self.schedo)
        if steps is not None and steps > most:
            raise ValueError(f"the schedule {type(self.schedo).__name__} is made for {most} steps, "
                             f"and this fit takes {steps} {self._unit}: pass it a total of {steps}, or fit for less")

    def state_dict(self) -> dict[str, Any]:
        "Where the schedule stands."
        return dict(schedule=_moving(self.schedo.state_dict()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave."
        self.schedo.load_state_dict(deepcopy(state['schedule']))  # torch's CyclicLR takes parts out of it

    def _steps(self, learn: Any) -> int | None: return None

    def _step(self, learn: Any) -> None:
        if learn.training and not learn.skip_backward: self.schedo.step()


def _moving(x: Any) -> Any:
    "A schedule's state without counters: milestones, which never move, and which no checkpoint can hold."
    if isinstance(x, dict): return {k: _moving(v) for k, v in x.items() if not isinstance(v, Counter)}
    return [_moving(y) for y in x] if isinstance(x, list) else x


class BatchSchedCB(BaseSchedCB):
    """A schedule stepped after each training batch. Where several batches make a step of the optimizer, it waits for
    that and then takes theirs at once."""
    _unit, _due = 'batches', 0
    def _steps(self, learn: Any) -> int | None:
        batches = length_of(learn.dls.train)
        return None if batches is None else learn.n_epochs*batches

    def before_fit(self, learn: Any) -> None:
        super().before_fit(learn)
        self._due = 0

    def state_dict(self) -> dict[str, Any]:
        "Where the schedule stands, and how many batches it has yet to count."
        return super().state_dict() | dict(due=self._due)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Go on from what `state_dict` gave."
        super().load_state_dict(state)
        self._due = state['due']

    def before_epoch(self, learn: Any) -> None:
        if learn.training: self._take_due(learn)

    def after_batch(self, learn: Any) -> None:
        if not learn.training: return
        self._due += 1
        if not learn.hold_step: self._take_due(learn)

    def _take_due(self, learn: Any) -> None:
        for _ in range(self._due): self._step(learn)
        self._due = 0


class EpochSchedCB(BaseSchedCB):
    "A schedule stepped after each training epoch."
    _unit = 'epochs'
    def _steps(self, learn: Any) -> int | None: return learn.n_epochs
    def after_epoch(self, learn: Any) -> None: self._step(learn)
