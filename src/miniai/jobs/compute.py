"How a job computes: precision, layout, compilation, each settled for the machine. Knows configurations and callbacks."
import warnings
from dataclasses import replace
from typing import Any, TypeVar

import torch

from miniai.accel import ChannelsLastCB, CompileCB, MixedPrecision
from miniai.jobs.config import JobConfig
from miniai.learner import TrainCB

__all__ = ['resolve', 'build_computing']

Config = TypeVar('Config', bound=JobConfig)


def resolve(config: Config, device: str) -> Config:
    """The configuration with `device`, the precision that will be used on it, and the layout that is quicker there. A
    warning says why a precision is slow, or another than asked for."""
    precision = _precision_on(config.precision, device)
    return replace(config, device=device, precision=precision, layout=_layout_on(config.layout, device, precision))


def _precision_on(precision: str, device: str) -> str:
    if precision == 'float16' and device.startswith('cpu'):
        warnings.warn("precision float16 is many times slower than float32 on a CPU, so bfloat16 is used", stacklevel=3)
        precision = 'bfloat16'
    if precision == 'bfloat16' and not _has_bfloat16(device):
        warnings.warn(f"precision bfloat16: this {device} has no instructions for it and computes it by others, so "
                      f"that float32 may be quicker", stacklevel=3)
    return precision


def _has_bfloat16(device: str) -> bool:
    "Does the device compute bfloat16 by its own instructions? True where it does not tell."
    if device.startswith('cuda'): return torch.cuda.is_bf16_supported(including_emulation=False)
    if not device.startswith('cpu'): return True
    asked = [getattr(torch.cpu, f'_is_{what}_supported', None) for what in ('avx512_bf16', 'amx_tile')]
    return None in asked or any(f() for f in asked)


def _layout_on(layout: str, device: str, precision: str) -> str:
    if layout != 'auto': return layout
    quicker = device.startswith('cpu') or (device.startswith('cuda') and precision != 'float32')
    return 'channels-last' if quicker else 'channels-first'


def build_computing(config: JobConfig) -> list[Any]:
    "The callbacks that compute as a settled configuration says: the phases of a batch, layout and compilation."
    phases = TrainCB() if config.precision == 'float32' else MixedPrecision(dtype=getattr(torch, config.precision))
    layout = [ChannelsLastCB()] if config.layout == 'channels-last' else []
    return [phases, *layout, *([CompileCB()] if config.compile else [])]
