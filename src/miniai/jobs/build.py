"What a configuration names, built: data, model, optimizer, schedule. Knows configurations and the library's parts."
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler

from miniai.activations import set_seed
from miniai.data import DataLoaders, fashion_mnist, image_loaders
from miniai.device import def_device
from miniai.init import get_model, init_weights
from miniai.jobs.config import ConfigError, JobConfig, TrainingConfig
from miniai.models.layers import act_gr
from miniai.optim import SGD, Adam, AdamW, Momentum, RMSProp
from miniai.resnet import get_resnet

__all__ = ['OPTIMIZERS', 'build_device', 'build_data', 'build_model', 'rate_of', 'build_schedule']

OPTIMIZERS = dict(sgd=SGD, momentum=Momentum, rmsprop=RMSProp, adam=Adam, adamw=AdamW)
_LRS = dict(sgd     = dict(constant=0.4,  cosine=0.8,  onecycle=1.),
            momentum= dict(constant=1.5,  cosine=2.,   onecycle=3.),
            rmsprop = dict(constant=3e-3, cosine=6e-3, onecycle=1e-2),
            adam    = dict(constant=6e-3, cosine=2e-2, onecycle=6e-2),
            adamw   = dict(constant=6e-3, cosine=2e-2, onecycle=6e-2))


def build_device(config: JobConfig) -> str:
    "The device that the configuration names, tried. ConfigError where this machine has none such."
    device = def_device if config.device == 'auto' else config.device
    try: torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as e:
        raise ConfigError(f"device {device!r} cannot be used here: {_first_sentence(e)}; try cpu or auto") from e
    return device


def _first_sentence(e: Exception) -> str: return str(e).splitlines()[0].split('. ')[0]


def build_data(config: JobConfig) -> DataLoaders:
    "Loaders of Fashion-MNIST; prints where it came from. ConfigError for a batch size that the model cannot take."
    known = dict(auto={}, hub=dict(source='hub'), sample=dict(source='sample'))
    data = fashion_mnist(**known.get(config.data, dict(folder=config.data)))
    _check_last_batch(config, len(data.x_train))
    return image_loaders(data, config.batch_size, config.seed)


def _check_last_batch(config: JobConfig, n: int) -> None:
    "The resnet's last block gives one pixel a channel, and batch norm needs two values of each."
    if config.model != 'resnet' or (n - 1) % config.batch_size: return
    raise ConfigError(f"batch_size {config.batch_size} leaves a last batch of one image out of {n:,}, "
                      f"of which resnet's batch norm can make no statistics: choose another")


def build_model(config: JobConfig) -> nn.Module:
    "The model, its weights drawn from the configuration's seed."
    set_seed(config.seed)
    model = get_model(act_gr, norm=nn.BatchNorm2d) if config.model == 'simple' else get_resnet(act_gr)
    return model.apply(partial(init_weights, leaky=0.1))


def rate_of(config: TrainingConfig) -> float:
    "The configuration's learning rate; for 'auto' one that suits, the course's where it has one."
    return _LRS[config.optimizer][config.schedule] if config.lr == 'auto' else config.lr


def build_schedule(config: TrainingConfig, steps: int) -> Callable[[Any], Any]:
    "What BatchSchedCB takes: a function from an optimizer to a torch scheduler over `steps` batches."
    if config.schedule == 'constant': return partial(lr_scheduler.ConstantLR, factor=1.)
    if config.schedule == 'cosine': return partial(lr_scheduler.CosineAnnealingLR, T_max=steps)
    cycles = config.optimizer not in ('sgd', 'rmsprop')
    return partial(lr_scheduler.OneCycleLR, max_lr=rate_of(config), total_steps=steps, cycle_momentum=cycles)
