"How a job computes: precision, memory layout and compilation, chosen for the machine."
import warnings
from dataclasses import replace
from typing import Any, TypeVar

import torch

from miniai.accel import ChannelsLastCB, CompileCB, MixedPrecision
from miniai.distributed.callback import DistributedCB
from miniai.jobs.config import ConfigError, JobConfig
from miniai.learner import DeviceCB, TrainCB

__all__ = ['resolve', 'build_computing']

Config = TypeVar('Config', bound=JobConfig)


def resolve(config: Config, device: str) -> Config:
    """The configuration with the device, precision and layout that will be used. Warns where the precision is slow on
    this device, or has to be replaced."""
    on_cpu, precision, layout = device.startswith('cpu'), config.precision, config.layout
    if precision == 'float16' and on_cpu:
        warnings.warn("float16 is many times slower than float32 on a CPU: using bfloat16 instead", stacklevel=2)
        precision = 'bfloat16'
    if precision == 'bfloat16' and not _has_bfloat16(device):
        warnings.warn(f"{device} has no bfloat16 instructions and emulates them: float32 may be faster", stacklevel=2)
    sharded = getattr(config, 'distributed', 'auto') == 'fsdp'  # fully_shard takes weights in their usual layout only
    if sharded and layout == 'channels-last': raise ConfigError(
        "--layout channels-last does not work with --distributed fsdp: leave it out, or train with ddp")
    if layout == 'auto':  # convolutions are faster with channels last on CPUs, and on tensor cores
        last = not sharded and (on_cpu or (device.startswith('cuda') and precision != 'float32'))
        layout = 'channels-last' if last else 'channels-first'
    return replace(config, device=device, precision=precision, layout=layout)


def _has_bfloat16(device: str) -> bool:
    "Whether the device has instructions for bfloat16; True if torch cannot tell."
    if device.startswith('cuda'): return torch.cuda.is_bf16_supported(including_emulation=False)
    if not device.startswith('cpu'): return True
    checks = [getattr(torch.cpu, f'_is_{feature}_supported', None) for feature in ('avx512_bf16', 'amx_tile')]
    return None in checks or any(supported() for supported in checks)


def build_computing(config: JobConfig, n_inp: int = 1) -> list[Any]:
    """The callbacks for a resolved configuration and a model of `n_inp` inputs: the device or the processes, the phases
    of a batch, memory layout and compilation."""
    half, how = config.precision != 'float32', getattr(config, 'distributed', 'auto')
    cbs = [DeviceCB(config.device) if how == 'auto' else DistributedCB(how, config.device),
           MixedPrecision(n_inp, getattr(torch, config.precision)) if half else TrainCB(n_inp)]
    if config.layout == 'channels-last': cbs.append(ChannelsLastCB())
    if config.compile: cbs.append(CompileCB())
    return cbs
