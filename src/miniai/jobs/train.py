"The main job: train an image classifier."
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from shlex import quote
from typing import Any

import torch.nn.functional as F

from miniai.events import Callback
from miniai.jobs.build import build_data, build_device, build_model, build_schedule, learning_rate
from miniai.jobs.compute import build_computing, resolve
from miniai.jobs.config import TrainConfig, TrainingConfig
from miniai.jobs.recording import Recording
from miniai.jobs.registry import OPTIMIZERS
from miniai.jobs.run_folder import RunFolder
from miniai.learner import DeviceCB, Learner, MetricsCB
from miniai.metrics.accuracy import accuracy
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
    folder, config = old or RunFolder(config.out, 'train'), resolve(replace(config, lr=learning_rate(config)), device)

    def write_options() -> None:
        folder.write('config.toml', config.to_toml())
        folder.write_environment(device, dls.train.source)

    recording, accepted = Recording(folder, config.stats, config.profile), AcceptedCB(write_options)
    if not old: accepted.accept()
    learn = build_learner(config, dls, [*recording.cbs, CheckpointCB(folder.path/'checkpoints', minutes=10), accepted])
    size = sum(p.numel() for p in learn.model.parameters())
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


def build_learner(config: TrainingConfig, dls: Any, cbs: list) -> Learner:
    "The Learner for a resolved configuration, with `cbs` added."
    schedule = build_schedule(config, config.epochs*len(dls.train))
    first = [DeviceCB(config.device), *build_computing(config), MetricsCB(accuracy=accuracy)]
    return Learner(build_model(config), dls, F.cross_entropy, config.lr, [*first, *cbs, BatchSchedCB(schedule)],
                   OPTIMIZERS[config.optimizer].build)
