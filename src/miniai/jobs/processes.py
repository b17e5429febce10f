"The processes that a job runs on, if torchrun started it."
from dataclasses import replace
from typing import TypeVar

from miniai.distributed.ranks import start
from miniai.distributed.torchrun import launched
from miniai.jobs.build import build_device
from miniai.jobs.config import ConfigError, FolderConfig

__all__ = ['join', 'placed']

Config = TypeVar('Config', bound=FolderConfig)


def join(config: Config) -> tuple[Config, str]:
    """Join the processes that torchrun started. Returns the configuration with the way in which they train together,
    and the device. ConfigError for such a way without torchrun."""
    device, there = build_device(config), launched()
    if there is None and config.distributed != 'auto': raise ConfigError(
        f"--distributed {config.distributed} needs processes that torchrun starts: "
        f"torchrun --nproc-per-node N -m miniai train --distributed {config.distributed} …")
    if there is None: return config, device
    start(device)
    if config.distributed == 'auto':
        print(f'torchrun started {there[1]} process{"es"*(there[1] > 1)}: training with --distributed ddp')
        config = replace(config, distributed='ddp')
    return config, device


def placed(config: FolderConfig, device: str) -> str:
    "The device, and how many processes train in which way."
    return device if launched() is None else f'{device}, {launched()[1]} processes, {config.distributed}'
