"The main job: train a classifier of Fashion-MNIST and leave a run folder. Knows the parts and where they go."
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F

from miniai.activations import ActivationStats
from miniai.callbacks.checkpoint import CheckpointCB
from miniai.callbacks.profile import ProfileCB
from miniai.events import Callback
from miniai.layers import GeneralRelu
from miniai.learner import DeviceCB, Learner, MetricsCB, ProgressCB
from miniai.measures import accuracy
from miniai.sgd import BatchSchedCB, RecorderCB

from .build import OPTIMIZERS, build_data, build_device, build_model, build_schedule, rate_of
from .compute import build_computing, settled
from .config import TrainConfig, TrainingConfig
from .pictures import activations_figure, curves_figure, profile_figure
from .run_folder import HistoryFileCB, RunFolder, as_json

__all__ = ['train', 'learner_of']


def train(config: TrainConfig) -> Learner:
    """Run the job and return its Learner. The run folder gets its configuration and environment before training,
    figures and checkpoints as they come, and the model and pictures at the end, which an error or Ctrl-C does
    not prevent. With `resume` the run in the folder goes on; one that is refused changes nothing."""
    old = RunFolder.of_run(config.out, 'train') if config.resume else None
    if old: config = config.of_run(TrainConfig.from_toml(old.path/'config.toml'))
    device, dls, lr = build_device(config), build_data(config), rate_of(config)
    folder, config = old or RunFolder(config.out, 'train'), settled(replace(config, lr=lr), device)
    begun = BegunCB(partial(folder.write_environment, device, dls.train.source))
    if not old:
        _note_options(folder, config)
        begun.begin()
    stats, progress, profile = ActivationStats(_is_activation), ProgressCB(), ProfileCB(quiet=True)
    recorder = RecorderCB(lr=lambda cb: cb.pg['lr'])
    cbs = [progress, stats, recorder, HistoryFileCB(folder), *([profile] if config.profile else []),
           CheckpointCB(folder.path/'checkpoints', minutes=10), begun]
    learn = learner_of(config, dls, cbs)
    print(f'{config.model} model of {_size(learn.model)} parameters, {config.optimizer}, {config.schedule}, '
          f'lr {lr:g}, on {device}')
    started = time.perf_counter()
    try:
        learn.fit(config.epochs, resume=config.resume)
        _note_options(folder, config)
    finally:
        if begun.begun: _leave(folder, learn, progress, recorder, stats)
        if profile.rows: _leave_profile(folder, profile)
        if begun.begun: print(f'{time.perf_counter() - started:.1f} s; the run is in {folder.path}')
    return learn


class BegunCB(Callback):
    "Calls `then` once, at the latest when a fit's first epoch begins: a fit that is refused before has not begun."
    order = CheckpointCB.order
    def __init__(self, then: Callable[[], None]) -> None: self.then, self.begun = then, False
    def before_epoch(self, learn: Any) -> None: self.begin()

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


def _is_activation(m: Any) -> bool: return isinstance(m, GeneralRelu)
def _size(model: Any) -> str: return f'{sum(p.numel() for p in model.parameters()):,}'


def _leave(folder: RunFolder, learn: Any, progress: ProgressCB, recorder: RecorderCB, stats: ActivationStats) -> None:
    folder.save_model(learn.model)
    if not progress.losses: return
    curves = curves_figure(learn.history, progress.losses, recorder.recs['lr'], len(learn.dls.train))
    folder.picture('curves.png', curves)
    folder.picture('activations.png', activations_figure(stats))


def _leave_profile(folder: RunFolder, profile: ProfileCB) -> None:
    print(f'\n{profile.table()}\n')
    folder.write('profile.json', as_json(profile.rows, indent=1) + '\n')
    folder.picture('profile.png', profile_figure(profile))
