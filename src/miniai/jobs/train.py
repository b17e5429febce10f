"The main job: train a model on pictures or a table."
import sys
import time
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from shlex import quote
from typing import Any

from torch import nn

from miniai.checkpoint import remove_stale
from miniai.distributed.ranks import is_first, world
from miniai.distributed.torchrun import kept
from miniai.events import Callback
from miniai.jobs.build import build_model, build_optimizer, build_schedule, build_task, epochs, learning_rate
from miniai.jobs.compute import build_computing, resolve
from miniai.jobs.config import TrainConfig, TrainingConfig, column_names
from miniai.jobs.data import build_data
from miniai.jobs.json_lines import JSONLines, json_lines
from miniai.jobs.processes import join, placed
from miniai.jobs.recording import Recording, has_activations
from miniai.jobs.records import Status, how_it_ended, write_page
from miniai.jobs.run_folder import RunFolder, samples_of
from miniai.jobs.tracking import Tracking
from miniai.learner import Learner, MetricsCB
from miniai.resume.checkpoint import CheckpointCB
from miniai.sgd import BatchSchedCB
from miniai.show.displays import say

__all__ = ['train', 'build_learner']


def train(config: TrainConfig) -> Learner:
    """Run the job and return its Learner.

    The run folder gets `config.toml` and `environment.json` before training, `metrics.jsonl`, other records and
    checkpoints during it, and model, pictures and report at its end, also after an error or Ctrl-C. With `resume`, the
    run in the folder continues with its own options (`TrainConfig.for_resume`); each process that resumes it adds
    `environment-2.json`, `-3` and so on. A resume that is refused changes no file. Under torchrun the
    processes train together, and the first one prints and writes; after an error it writes no model, as it would need
    the others."""
    with json_lines(config.json) as lines: return _train(config, lines)


def _train(config: TrainConfig, lines: JSONLines) -> Learner:
    config = _restarted(config)
    old = RunFolder.find(config.out) if config.resume else None
    if old:
        say(f'resuming {old.path}')
        config = config.for_resume(TrainConfig.from_toml(old.path/'config.toml'))
    config, device = join(config)
    dls = build_data(config)
    config = resolve(replace(config, lr=learning_rate(config, dls), epochs=epochs(config, dls)), device)
    model, opt_func = build_model(config, dls), build_optimizer(config)  # wrong options leave no folder
    config = replace(config, model=model.recipe['name'])
    folder = old or RunFolder(config.out, 'train')

    def write_options() -> None:
        folder.write('config.toml', config.to_toml())
        folder.write_environment(device, getattr(dls.train, 'source', config.data), samples_of(dls),
                                 len(recording.progress.losses) if old else None)
        if is_first():
            remove_stale(folder.path)  # what a killed run was writing
            kept('run folder', str(folder.path))
        status.start()

    recording = Recording(folder, config.stats and has_activations(model), config.profile, config.health)
    tracking, status = Tracking(folder, column_names(config.track), asdict(config)), Status(folder, config.epochs)
    accepted = AcceptedCB(write_options)
    if not old: accepted.accept()
    cbs = [*recording.cbs, *tracking.cbs, *[lines]*config.json, CheckpointCB(folder.path/'checkpoints', minutes=10),
           accepted]
    learn = build_learner(config, dls, cbs, model, opt_func)
    size = sum(p.numel() for p in model.parameters())
    lines.start(folder.path, dict(config=asdict(config), parameters=size, device=device, batches=len(dls.train)))
    say(f'{config.model} model, {size:,} parameters; {config.optimizer}, {config.schedule}, '
        f'lr {config.lr:g}; {placed(config, device)}')
    started, how = time.perf_counter(), 'stopped'
    try:
        learn.fit(config.epochs, resume=config.resume)
        how = 'finished'
    finally:
        signalled = isinstance(sys.exception(), SystemExit)  # SIGTERM or SIGINT: all processes stop, with a checkpoint
        if accepted.done:
            status.end(how, how_it_ended())
            try:
                if world() == 1 or how == 'finished' or signalled: recording.save(learn)
            finally:
                tracking.finish()
                write_page(folder)
                say(f'{how} after {time.perf_counter() - started:.1f} s; results in {folder.path}')
        if signalled and is_first(): print(f'to continue: {_resuming(config, folder.path)}', file=sys.stderr)
    return learn


def _restarted(config: TrainConfig) -> TrainConfig:
    "The configuration to resume the run of processes that torchrun has restarted; else as it is."
    folder = kept('run folder')
    if folder is None: return config
    config = copy(config)  # which knows what was given
    config.out, config.resume = folder, True
    return config


def _resuming(config: TrainConfig, folder: Path) -> str:
    torchrun, how = ('torchrun … -m ', f'--distributed {config.distributed} ') if world() > 1 else ('', '')
    return f'{torchrun}miniai train {how}--resume --out {quote(str(folder))}'


class AcceptedCB(Callback):
    "Calls `then()` once the callbacks before it have accepted the fit. If one of them refuses to resume, it does not."
    order, only_shows = CheckpointCB.order, True
    def __init__(self, then: Callable[[], None]) -> None: self.then, self.done = then, False

    def before_fit(self, learn: Any) -> None:
        if not learn.epochs: say(f'nothing to train: all {learn.n_epochs} epochs are done')
        if not self.done: self.accept()

    def accept(self) -> None:
        "Call `then()`, and note that in `done`."
        self.then()
        self.done = True


def build_learner(config: TrainingConfig, dls: Any, cbs: list, model: nn.Module, opt_func: Callable) -> Learner:
    "The Learner for a resolved configuration, with `cbs` added."
    schedule, (loss_func, metrics) = build_schedule(config, config.epochs*len(dls.train)), build_task(dls)
    first = [*build_computing(config, getattr(dls.train, 'n_inp', 1)), MetricsCB(**metrics)]
    return Learner(model, dls, loss_func, config.lr, [*first, *cbs, BatchSchedCB(schedule)], opt_func)
