"TrackCB: the figures, configuration, pictures, verdicts and model of a run, kept by a tracker such as TensorBoard."
import time
import warnings
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.nn.parameter import is_lazy

from miniai.data.loaders import length_of
from miniai.device import DeferredScalars, is_number
from miniai.distributed.ranks import is_first
from miniai.events import Callback, is_cancel
from miniai.metrics.direction import row_of_pass
from miniai.optim.groups import rate_of
from miniai.trackers import TRACKERS

__all__ = ['TrackCB', 'verdicts_of']

MOST_POINTS = 1000  # of a figure that is recorded by batch, in one fit


def verdicts_of(learn: Any) -> list[Any]:
    "The verdicts so far of the Learner's callbacks, such as HealthCB."
    return [v for cb in learn.cbs for v in getattr(cb, 'verdicts', ()) if hasattr(v, 'says')]


class TrackCB(Callback):
    """Tracks a run with `tracker`: 'tensorboard', 'trackio', 'wandb', 'mlflow' or 'csv', in a store in `folder`. `name`
    is what the run is called, by default the time. It gets the rows of `learn.history`, loss and rate of every `every`
    batches, by default so that a fit has at most 1000, facts of the Learner and what `config` holds, verdicts of a
    HealthCB, and at the end, if `model`, the file of `learn.save_model`. `options` go to the tracker's library: see
    docs/tracking.md. A tracker that is missing or fails gives a warning, and the run continues without it. A fit that
    resumes continues in the same run of the tracker. Dry runs and fits that only validate are not tracked. With
    `keep_open` the tracker is open until `close()`."""
    order, only_shows = 1000, True  # after callbacks that end an epoch or put the best weights back
    tracker = None  # the open one

    def __init__(self, tracker: str, folder: str | Path = 'track', *, name: str | None = None, every: int | None = None,
                 config: Mapping[str, Any] | None = None, model: bool = True, keep_open: bool = False,
                 **options: Any) -> None:
        if tracker not in TRACKERS:
            near = get_close_matches(str(tracker), TRACKERS, n=1)
            raise ValueError(f"TrackCB: tracker must be {', '.join(TRACKERS)}, got {tracker!r}"
                             f"{f'; did you mean {near[0]!r}?' if near else ''}")
        if every is not None and (type(every) is not int or every < 1):
            raise ValueError(f"TrackCB: every must be a whole number of batches above 0, got {every!r}")
        self.kind, self.folder, self.name, self.every, self.config = tracker, Path(folder), name, every, config or {}
        self.model, self.keep_open, self.options = model, keep_open, options
        self.view = ''
        self._forget()

    def _forget(self) -> None:
        "Forget the last fit: the next one is a new run."
        self.run, self.step, self.told, self.failed, self.active = None, 0, [], False, False
        self._losses, self._points, self._rows = DeferredScalars(), [], []
        self._ended, self._config = 'stopped', dict(self.config)

    def __getstate__(self) -> dict[str, Any]: return {k: x for k, x in vars(self).items() if k != 'tracker'}

    # Event by event

    def before_fit(self, learn: Any) -> None:
        self.close()
        self._forget()
        self.active = bool(getattr(learn, 'trains', True)) and not getattr(learn, 'dry_run', False)
        self._name = self.name or time.strftime('%Y-%m-%d_%H%M%S')
        id_file = self._id_file()  # of a run that was killed before its first checkpoint, which would know the id
        if getattr(learn, 'resume', False) and id_file.exists(): self.run = id_file.read_text('utf-8')

    def before_epoch(self, learn: Any) -> None:
        if not self.active: return
        if self.tracker is None: self._begin(learn)
        if learn.model.training: self._next_write = time.perf_counter() + 1

    def after_batch(self, learn: Any) -> None:
        if not (self.active and learn.model.training): return
        self.step += 1
        if self.step % self._stride or not is_number(learn.loss): return
        self._losses.append(learn.loss)
        groups = getattr(learn.opt, 'param_groups', None)
        self._points.append((self.step, {'batch/lr': rate_of(groups[0])} if groups else {}))
        if time.perf_counter() >= self._next_write: self._write(learn)

    def cleanup_epoch(self, learn: Any) -> None:
        if not self.active: return
        if row := row_of_pass(learn): self._rows.append((self.step, _figures(row)))
        self._write(learn)

    def cleanup_fit(self, learn: Any) -> None:
        started, self.active = self.active and learn.epoch is not None, False
        if not started: return
        self._write(learn)
        well = learn.ended_by is None or is_cancel(learn.ended_by)
        if self.model and well: self._save_model(learn)
        failed = isinstance(learn.ended_by, Exception) and not well
        self._ended = 'finished' if well else 'failed' if failed else 'stopped'
        if not self.keep_open: self.close()

    # What the tracker gets

    def _begin(self, learn: Any) -> None:
        batches = length_of(learn.dl if learn.model.training else learn.dls.train)
        self._stride = self.every or max(1, -(-learn.n_epochs*(batches or 0)//MOST_POINTS) if batches else 10)
        self._next_write = 0.
        self._config = _facts(learn) | dict(self.config)
        self._tell('config', self._config)

    def _write(self, learn: Any) -> None:
        "Give the tracker what has been recorded since the last time."
        by_batch = [(step, {'batch/loss': loss} | rates)
                    for (step, rates), loss in zip(self._points, self._losses.values, strict=True)]
        rows, self._points, self._losses = by_batch + self._rows, [], DeferredScalars()
        self._rows, self._next_write = [], time.perf_counter() + 1
        if rows: self._tell('figures', rows)
        for verdict in verdicts_of(learn):
            title = f'{verdict.name} {verdict.where}'.strip()
            if title in self.told: continue
            self.told.append(title)
            self._tell('alert', title, f'{verdict.says} {verdict.do}', self.step)

    def picture(self, name: str, figure: Any) -> None:
        "Give the tracker a matplotlib figure, or the path of a PNG file, during the fit or after it."
        with TemporaryDirectory() as folder:
            path = figure if isinstance(figure, Path) else Path(folder)/f'{name}.png'
            if path is not figure: figure.savefig(path, format='png', dpi=100)
            self._tell('picture', name, path, self.step)
        self._close_if_done()

    def file(self, path: str | Path) -> None:
        "Give the tracker a file, such as a trained model."
        self._tell('file', Path(path))
        self._close_if_done()

    def _save_model(self, learn: Any) -> None:
        path = self.folder/self._name/'model.safetensors'
        try:
            if is_first(): path.parent.mkdir(parents=True, exist_ok=True)
            learn.save_model(path)
        except Exception as e: return self._warn(f"the model was not saved: {type(e).__name__}: {e}")
        self._tell('file', path)

    def close(self) -> None:
        "Let the tracker write everything, and end its run. `picture` and `file` continue it."
        if self.tracker is not None: self._tell('close', self._ended)
        self.tracker = None

    def _close_if_done(self) -> None:
        if not (self.active or self.keep_open): self.close()

    # The tracker, which must not stop a run

    def _tell(self, method: str, *args: Any) -> None:
        "Call a method of the tracker, in the first process. If it fails, warn, and do without it until the next fit."
        if self.failed or not is_first(): return
        try:
            if self.tracker is None:
                self._open()
                if method != 'config': self.tracker.config(self._config)
            getattr(self.tracker, method)(*args)
        except Exception as e:
            self.failed, self.tracker = True, None
            package = TRACKERS[self.kind].package
            self._warn(f"this run is not tracked: {e}. To track it: pip install {package}" if isinstance(e, ImportError)
                       else f"{self.kind} failed, and the rest of this run is not tracked: {type(e).__name__}: {e}. "
                            f"Check the options of TrackCB and its folder {self.folder}")

    def _open(self) -> None:
        self.tracker = TRACKERS[self.kind](self.folder, self._name, self.run, self.step, **self.options)
        self.run, self.view = self.tracker.run, self.tracker.view
        if self.name: self._id_file().write_text(self.run, 'utf-8')

    def _id_file(self) -> Path: return self.folder/f'.{self.kind}-{self._name}'

    def _warn(self, text: str) -> None: warnings.warn(f"TrackCB: {text}", stacklevel=3)

    # Resume

    def state_dict(self) -> dict[str, Any]:
        "The run of the tracker, the batches trained, and the verdicts that the tracker has."
        return dict(kind=self.kind, run=self.run, step=self.step, told=self.told)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        "Restore what `state_dict` returned, if it is of the same tracker."
        if state['kind'] != self.kind: return
        self.run, self.step, self.told = state['run'] or self.run, state['step'], list(state['told'])


def _figures(row: Mapping[str, Any]) -> dict[str, float]:
    "The numbers in a row of `learn.history`, also those in dicts and lists, by names such as 'valid/accuracy'."
    phase, found = 'train' if row['phase'] == 'train' else 'valid', {'epoch': row['epoch'] + 1}
    def add(name: str, x: Any) -> None:
        parts = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ()
        for part, value in parts: add(f'{name}/{part}', value)
        if is_number(x): found[name] = float(x)
    for nm, x in row.items():
        if nm not in ('epoch', 'phase'): add(f'{phase}/{nm}', x)
    return found


def _facts(learn: Any) -> dict[str, Any]:
    "What a Learner trains, and how."
    parameters = sum(p.numel() for p in getattr(learn.model, 'parameters', list)() if not is_lazy(p))
    options = {f'opt.{k}': x for k, x in getattr(learn.opt, 'defaults', {}).items()
               if isinstance(x, bool | int | float | str | tuple | list)}
    return dict(model=type(learn.model).__name__, parameters=parameters, optimizer=type(learn.opt).__name__,
                loss=getattr(learn.loss_func, '__name__', type(learn.loss_func).__name__), lr=learn.lr,
                epochs=learn.n_epochs, batches=length_of(learn.dls.train), **options)
