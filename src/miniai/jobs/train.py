"The main job: train a classifier of Fashion-MNIST and leave a run folder. Knows the parts and where they go."
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from shlex import quote
from typing import Any

import torch.nn.functional as F

from miniai.callbacks.metrics import accuracy
from miniai.events import Callback
from miniai.jobs.build import OPTIMIZERS, build_data, build_device, build_model, build_schedule, rate_of
from miniai.jobs.compute import build_computing, resolve
from miniai.jobs.config import TrainConfig, TrainingConfig
from miniai.jobs.recording import Recording
from miniai.jobs.run_folder import RunFolder
from miniai.learner import DeviceCB, Learner, MetricsCB
from miniai.resume.checkpoint import CheckpointCB
from miniai.sgd import BatchSchedCB

__all__ = ['train', 'learner_of']


def train(config: TrainConfig) -> Learner:
    """Run the job and return its Learner. The run folder gets its configuration and environment before training,
    figures and checkpoints as they come, and the model and pictures at the end, which an error or Ctrl-C does
    not prevent. With `resume` the run in the folder goes on, with its own options (see `TrainConfig.of_run`); one that
    is refused changes nothing. A run that SIGTERM or SIGINT stops says how to go on with it."""
    old = RunFolder.of_run(config.out, 'train') if config.resume else None
    if old: config = _gone_on_with(old, config)
    device, dls, lr = build_device(config), build_data(config), rate_of(config)
    folder, config = old or RunFolder(config.out, 'train'), resolve(replace(config, lr=lr), device)
    begun = BegunCB(partial(folder.write_environment, device, dls.train.source))
    if not old:
        _note_options(folder, config)
        begun.begin()
    recording = Recording(folder, config.profile)
    learn = learner_of(config, dls, [*recording.cbs, CheckpointCB(folder.path/'checkpoints', minutes=10), begun])
    print(f'{config.model} model of {_size(learn.model)} parameters, {config.optimizer}, {config.schedule}, '
          f'lr {lr:g}, on {device}')
    try: _fit(learn, config, recording, begun)
    except SystemExit:
        print(f'stopped: miniai train --resume --out {quote(str(folder.path))} goes on with it', file=sys.stderr)
        raise
    return learn


def _gone_on_with(run: RunFolder, config: TrainConfig) -> TrainConfig:
    print(f'going on with {run.path}')
    return config.of_run(TrainConfig.from_toml(run.path/'config.toml'))


def _fit(learn: Learner, config: TrainConfig, recording: Recording, begun: 'BegunCB') -> None:
    "Train, and leave what there is to leave, whatever happens."
    started = time.perf_counter()
    try:
        learn.fit(config.epochs, resume=config.resume)
        _note_options(recording.folder, config)
    finally:
        if begun.begun: recording.leave(learn)
        recording.leave_profile()
        if begun.begun: print(f'{time.perf_counter() - started:.1f} s; the run is in {recording.folder.path}')


class BegunCB(Callback):
    """Calls `then` once, at the latest when every callback before it has accepted the fit: one that is refused has not
    begun. Says so where a run that goes on has done its epochs already."""
    order = CheckpointCB.order
    def __init__(self, then: Callable[[], None]) -> None: self.then, self.begun = then, False

    def before_fit(self, learn: Any) -> None:
        if not learn.epochs: print(f'the run has done its {learn.n_epochs} epoch(s) already')
        self.begin()

    def begin(self) -> None:
        "Say that it has begun."
        if not self.begun: self.then()
        self.begun = True


def learner_of(config: TrainingConfig, dls: Any, cbs: list) -> Learner:
    "The Learner that a settled configuration says, with `cbs`."
    schedule = build_schedule(config, config.epochs*len(dls.train))
    given = [DeviceCB(config.device), *build_computing(config), MetricsCB(accuracy=accuracy), *cbs]
    return Learner(build_model(config), dls, F.cross_entropy, config.lr, [*given, BatchSchedCB(schedule)],
                   OPTIMIZERS[config.optimizer])


def _note_options(folder: RunFolder, config: TrainConfig) -> None:
    folder.write('config.toml', replace(config, resume=False).to_toml())


def _size(model: Any) -> str: return f'{sum(p.numel() for p in model.parameters()):,}'
