"Any value of a training batch, recorded by name."
from collections.abc import Callable
from typing import Any

from miniai.callbacks.checks import check_names
from miniai.device import DeferredScalars
from miniai.events import Callback
from miniai.metrics.metrics import takes_learner
from miniai.show.plots import get_grid

__all__ = ['HasLearnCB', 'RecorderCB']


class HasLearnCB(Callback):
    "Keeps the Learner as `self.learn` for the length of a fit."
    learn: Any = None
    def before_fit(self, learn: Any) -> None: self.learn = learn
    def cleanup_fit(self, learn: Any) -> None: self.learn = None


class RecorderCB(HasLearnCB):
    """After each training batch, appends `d[name](self)` to the list `recs[name]`:
    `RecorderCB(lr=lambda cb: cb.pg['lr'])`. `pg` is the optimizer's first parameter group, and `learn` the Learner
    during a fit. A function whose parameter is called `learn` gets the Learner: `RecorderCB(loss=lambda learn: …)`."""
    only_shows = True
    def __init__(self, **d: Callable[[Any], Any]) -> None:
        self.d, self.pg = d, None
        self._scalars = {k: DeferredScalars() for k in d}
        self._of_learner = {k for k, f in d.items() if takes_learner(f)}

    @property
    def recs(self) -> dict[str, list[float]]:
        "The records so far, by name."
        return {k: r.values for k, r in self._scalars.items()}

    @recs.setter
    def recs(self, recs: dict[str, list[float]]) -> None:
        self._scalars = {k: DeferredScalars(v) for k, v in recs.items()}

    def state_dict(self) -> dict[str, Any]:
        "The records so far."
        return dict(self.recs)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned. ValueError if the names differ."
        check_names('records', state, self.d)
        self.recs = state

    def before_fit(self, learn: Any) -> None:
        super().before_fit(learn)
        self._scalars = {k: DeferredScalars() for k in self.d}
        groups = getattr(learn.opt, 'param_groups', None)
        self.pg = groups[0] if groups else None

    def after_batch(self, learn: Any) -> None:
        if not learn.model.training: return
        for k, f in self.d.items(): self._scalars[k].append(f(learn if k in self._of_learner else self))

    def plot(self) -> None:
        "Plot each record over the batches, one panel per record."
        import matplotlib.pyplot as plt
        axs = get_grid(len(self.d), nrows=1, figsize=(5*len(self.d), 3.5), layout='constrained')[1]
        for (k, values), ax in zip(self.recs.items(), axs.flat, strict=True):
            ax.plot(values)
            ax.set(title=k, xlabel='batch')
        plt.show()
