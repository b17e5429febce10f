"Builds what a configuration names: device, data, model, learning rate and schedule."
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from miniai.activations import set_seed
from miniai.data import DataLoaders, fashion_mnist, image_loaders
from miniai.device import def_device
from miniai.init import init_weights
from miniai.jobs.config import ConfigError, JobConfig, TrainingConfig
from miniai.jobs.registry import DATA, MODELS, OPTIMIZERS, SCHEDULES

__all__ = ['build_device', 'build_data', 'build_model', 'auto_lr', 'learning_rate', 'build_schedule']


def build_device(config: JobConfig) -> str:
    "The configured device. ConfigError if this machine cannot use it."
    device = def_device if config.device == 'auto' else config.device
    try: torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as e:
        reason = str(e).splitlines()[0].split('. ')[0]
        raise ConfigError(f"cannot use device {device!r} here: {reason}; try cpu or auto") from e
    return device


def build_data(config: JobConfig) -> DataLoaders:
    "The loaders. Prints where the data comes from. ConfigError for a batch size that the model cannot train on."
    load = DATA[config.data].load if config.data in DATA else partial(fashion_mnist, folder=config.data)
    data = load()
    n = len(data.x_train)
    # The resnet ends in one value per image and channel, and batch norm needs two of them for its statistics.
    if config.model == 'resnet' and (n - 1) % config.batch_size == 0:
        raise ConfigError(f"batch_size {config.batch_size} leaves a last batch of 1 out of {n:,} images, and the batch "
                          f"norm in resnet needs at least 2: choose another batch size")
    return image_loaders(data, config.batch_size, config.seed)


def build_model(config: JobConfig) -> nn.Module:
    "The model, with initial weights drawn from the configuration's seed."
    set_seed(config.seed)
    return MODELS[config.model].build().apply(partial(init_weights, leaky=0.1))


def auto_lr(optimizer: str, schedule: str) -> float:
    "The learning rate of `--lr auto`."
    lrs = OPTIMIZERS[optimizer].lrs
    return lrs.get(schedule, lrs['constant'])


def learning_rate(config: TrainingConfig) -> float:
    "The configured learning rate, with 'auto' replaced by its value."
    return auto_lr(config.optimizer, config.schedule) if config.lr == 'auto' else config.lr


def build_schedule(config: TrainingConfig, steps: int) -> Callable[[Any], Any]:
    "The function for BatchSchedCB: takes an optimizer, returns a torch scheduler for `steps` batches."
    return partial(SCHEDULES[config.schedule].build, lr=learning_rate(config), steps=steps)
