"The main job: train a model on pictures or a table."
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from shlex import quote
from typing import Any

from torch import nn

from miniai.events import Callback
from miniai.jobs.build import (
    build_device,
    build_model,
    build_optimizer,
    build_schedule,
    build_task,
    epochs,
    learning_rate,
)
from miniai.jobs.compute import build_computing, resolve
from miniai.jobs.config import TrainConfig, TrainingConfig
from miniai.jobs.data import build_data
from miniai.jobs.recording import Recording, has_activations
from miniai.jobs.run_folder import RunFolder, samples_of
from miniai.learner import DeviceCB, Learner, MetricsCB
from miniai.resume.checkpoint import CheckpointCB
from miniai.sgd import BatchSchedCB

__all__ = ['train', 'build_learner']


def train(config: TrainConfig) -> Learner:
    """Run the job and return its Learner.

    The run folder gets `config.toml` and `environment.json` before training, `metrics.jsonl` and checkpoints during it,
    and the model and pictures at its end, also after an error or Ctrl-C. With `resume`, the run in the folder continues
    with its own options (`TrainConfig.for_resume`); each process that resumes it adds `environment-2.json`, `-3` and so
    on. A resume that is refused changes no file."""
    old = RunFolder.find(config.out, 'train') if config.resume else None
    if old:
        print(f'resuming {old.path}')
        config = config.for_resume(TrainConfig.from_toml(old.path/'config.toml'))
    device, dls = build_device(config), build_data(config)
    config = resolve(replace(config, lr=learning_rate(config, dls), epochs=epochs(config, dls)), device)
    model, opt_func = build_model(config, dls), build_optimizer(config)  # wrong options leave no folder
    config = replace(config, model=model.recipe['name'])
    folder = old or RunFolder(config.out, 'train')

    def write_options() -> None:
        folder.write('config.toml', config.to_toml())
        folder.write_environment(device, getattr(dls.train, 'source', config.data), samples_of(dls))

    recording = Recording(folder, config.stats and has_activations(model), config.profile)
    accepted = AcceptedCB(write_options)
    if not old: accepted.accept()
    cbs = [*recording.cbs, CheckpointCB(folder.path/'checkpoints', minutes=10), accepted]
    learn = build_learner(config, dls, cbs, model, opt_func)
    size = sum(p.numel() for p in model.parameters())
    print(f'{config.model} model, {size:,} parameters; {config.optimizer}, {config.schedule}, '
          f'lr {config.lr:g}; {device}')
    started, how = time.perf_counter(), 'stopped'
    try:
        learn.fit(config.epochs, resume=config.resume)
        how = 'finished'
    finally:
        if accepted.done:
            recording.save(learn)
            print(f'{how} after {time.perf_counter() - started:.1f} s; results in {folder.path}')
        if isinstance(sys.exception(), SystemExit):  # stopped by SIGTERM or SIGINT, with a checkpoint
            print(f'to continue: miniai train --resume --out {quote(str(folder.path))}', file=sys.stderr)
    return learn


class AcceptedCB(Callback):
    "Calls `then()` once the callbacks before it have accepted the fit. If one of them refuses to resume, it does not."
    order, only_shows = CheckpointCB.order, True
    def __init__(self, then: Callable[[], None]) -> None: self.then, self.done = then, False

    def before_fit(self, learn: Any) -> None:
        if not learn.epochs: print(f'nothing to train: all {learn.n_epochs} epochs are done')
        if not self.done: self.accept()

    def accept(self) -> None:
        "Call `then()`, and note that in `done`."
        self.then()
        self.done = True


def build_learner(config: TrainingConfig, dls: Any, cbs: list, model: nn.Module, opt_func: Callable) -> Learner:
    "The Learner for a resolved configuration, with `cbs` added."
    schedule, (loss_func, metrics) = build_schedule(config, config.epochs*len(dls.train)), build_task(dls)
    first = [DeviceCB(config.device), *build_computing(config, getattr(dls.train, 'n_inp', 1)), MetricsCB(**metrics)]
    return Learner(model, dls, loss_func, config.lr, [*first, *cbs, BatchSchedCB(schedule)], opt_func)
