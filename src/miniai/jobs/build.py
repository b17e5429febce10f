"Builds what a configuration names: device, model, optimizer, learning rate, schedule, loss and metrics."
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from miniai.activations import set_seed
from miniai.data import DataLoaders
from miniai.device import def_device
from miniai.distributed.ranks import own_device
from miniai.distributed.torchrun import launched
from miniai.init import init_weights
from miniai.jobs.config import ConfigError, JobConfig, TrainingConfig, parse_options
from miniai.jobs.registry import MODELS, OPTIMIZERS, SCHEDULES
from miniai.metrics.accuracy import accuracy
from miniai.metrics.whole import Whole
from miniai.models.by_name import build_model as build_by_name
from miniai.models.by_name import check_options, function_at

__all__ = ['build_device', 'build_model', 'build_optimizer', 'auto_lr', 'learning_rate', 'epochs', 'build_schedule',
           'build_task']


def build_device(config: JobConfig) -> str:
    "The configured device; under torchrun the kind of it. ConfigError if this machine cannot use it."
    device = def_device if config.device == 'auto' else config.device
    try:
        if launched(): device = own_device(None if config.device == 'auto' else device).type
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError) as e:
        reason = str(e).splitlines()[0].split('. ')[0]
        raise ConfigError(f"cannot use device {device!r} here: {reason}; try cpu or auto") from e
    return device


def build_model(config: JobConfig, dls: DataLoaders) -> nn.Module:
    """The model for these data, with initial weights drawn from the configuration's seed. ConfigError for a model or
    options that do not exist or do not fit."""
    set_seed(config.seed)
    facts = dls.recipe.facts if getattr(dls, 'recipe', None) else {}
    name = config.model if config.model != 'auto' else 'table' if 'numbers' in facts else 'simple'
    try: model = build_by_name(name, facts, **parse_options('net', config.net))
    except (ValueError, TypeError) as e: raise ConfigError(str(e)) from e
    return model.apply(partial(init_weights, leaky=0.1)) if name in MODELS else model


def build_optimizer(config: JobConfig) -> Callable[..., Any]:
    "The function of (params, lr) that makes the optimizer. ConfigError for one that does not exist, or its options."
    options, name = parse_options('opt', config.opt), config.optimizer
    if 'lr' in options: raise ConfigError("the learning rate is no option of --opt: use --lr")
    try: build = OPTIMIZERS[name].build if name in OPTIMIZERS else function_at(name)
    except ValueError as e: raise ConfigError(str(e)) from e
    try: check_options(f'the optimizer {name}', build, options, ('params', 'lr'))
    except TypeError as e: raise ConfigError(str(e)) from e
    made = partial(build, **options)
    try:
        if options: made([torch.zeros(2, 2, requires_grad=True), torch.zeros(1, requires_grad=True)], 0.1)
    except Exception as e:
        raise ConfigError(f"the optimizer {name} cannot be made with {config.opt}: {e}") from e
    return made


def auto_lr(optimizer: str, schedule: str) -> float:
    "The learning rate of `--lr auto`. ConfigError for an optimizer that it was not tuned for."
    if optimizer not in OPTIMIZERS: raise ConfigError(f"no learning rate is known for {optimizer}: give one with --lr")
    lrs = OPTIMIZERS[optimizer].lrs
    return lrs.get(schedule, lrs['constant'])


def learning_rate(config: TrainingConfig, dls: DataLoaders) -> float:
    """The configured learning rate, with 'auto' replaced by its value; for a table by half of it, and by at most 0.2
    with plain SGD, which diverged at 0.4 in a regression of 442 rows."""
    if config.lr != 'auto': return config.lr
    lr = auto_lr(config.optimizer, config.schedule)
    if not _is_table(dls): return lr
    return min(lr/2, 0.2) if config.optimizer == 'sgd' else lr/2


def _is_table(dls: DataLoaders) -> bool: return getattr(getattr(dls, 'recipe', None), 'kind', '') == 'table'


def epochs(config: TrainingConfig, dls: DataLoaders) -> int:
    "The configured number of epochs; by default 5, or for a small table as many as make 150 steps, at most 100."
    if config.epochs != 'auto': return config.epochs
    return min(100, max(5, -(-150//len(dls.train)))) if _is_table(dls) else 5


def build_schedule(config: TrainingConfig, steps: int) -> Callable[[Any], Any]:
    "For a resolved configuration, the function of an optimizer that makes its schedule for `steps` batches."
    row = SCHEDULES.get(config.schedule)
    if row: return partial(row.build, lr=config.lr, steps=steps)
    try: return partial(_of_function, function_at(config.schedule), steps)
    except ValueError as e: raise ConfigError(str(e)) from e


def _of_function(f: Callable, steps: int, opt: Any) -> Any: return f(opt, steps)


def build_task(dls: DataLoaders) -> tuple[Callable, dict[str, Any]]:
    "The loss and the metrics by name: for classes, if the data have any, or for numbers."
    recipe = getattr(dls, 'recipe', None)
    if recipe is None or recipe.classes: return F.cross_entropy, dict(accuracy=accuracy)
    return F.mse_loss, dict(rmse=Whole(partial(_rmse, recipe.target_std)))


def _rmse(std: float, preds: Tensor, targets: Tensor) -> float:
    "Root mean square error in the units of the data."
    return (preds.flatten() - targets.flatten()).square().mean().sqrt().item()*std
