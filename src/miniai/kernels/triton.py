"The pass of GPUs: one kernel by Triton over the addresses of all tensors, and kernels that sum."
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property, lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from miniai.kernels.cache import module_of
from miniai.kernels.math import has_double
from miniai.kernels.memory import BLOCK, chunks, irregular, whole
from miniai.kernels.trace import Trace
from miniai.kernels.triton_source import TYPES, step_source, sum_source

__all__ = ['DEVICES', 'TritonPass', 'missing_triton']

DEVICES = ('cuda', 'xpu')  # torch calls AMD's cuda, too
PIECE = 2048  # elements that a program takes
OPTIONS = dict(num_warps=8, enable_fp_fusion=True)  # groups of threads in a program; products and sums contracted


class TritonPass:
    """A pass, as `miniai.optim.table` describes it, by Triton. What Python computes lies in memory on the device that
    stays where it is: `prepare` writes it there, and `step` only launches a kernel, which a CUDA graph can capture."""
    name = 'fused'

    def __init__(self, trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...], runs: list,
                 device: torch.device) -> None:
        self.dtypes, self.device = dtypes, device
        self.kept, self.compiled = {}, set()
        self.sizes = [len(starts)*n for starts, n in runs]
        self.pieces = chunks(runs, PIECE)
        self.there = torch.from_numpy(self.pieces).to(device)
        self.kernel = _kernel(step_source(trace, dtypes, dither))

    @staticmethod
    def unsupported(x: Tensor) -> str:
        "Why this pass cannot work on a tensor; '' if it can."
        if x.device.type not in DEVICES: return f'no kernel for {x.device.type}'
        if not has_double(x.device): return 'this GPU has no double precision, in which kernels sum'
        return irregular(x) or ('' if x.dtype in TYPES else f'no kernel for {x.dtype}') or missing_triton()

    def prepare(self, addresses: np.ndarray, h: np.ndarray, keys: np.ndarray) -> None:
        "Copy addresses and numbers to the device if they changed. Compile the kernel, if that is still to be done."
        table, h, keys = (self._on_device(*x) for x in dict(table=addresses.view(np.int64), h=h,
                                                            keys=keys.astype(np.int64)).items())
        aligned = _aligned(addresses, self.pieces)
        self.launch = lambda n: self._run(self.kernel, n, PIECE, aligned, table, self.there, h, keys, h)
        if aligned not in self.compiled: self.launch(0)
        self.compiled.add(aligned)

    def step(self, addresses: np.ndarray, tensors: Callable, h: np.ndarray, keys: np.ndarray) -> None:
        "Write the new parameters and states."
        self.launch(len(self.pieces))

    def sums(self, trace: Trace, addresses: np.ndarray, tensors: Callable, h: np.ndarray) -> np.ndarray:
        "For each row the sum of each result of a trace over all elements, in double precision."
        pieces, there = self._blocks
        table, h = self._on_device('table', addresses.view(np.int64)), self._on_device(trace, h)
        out = torch.empty(len(pieces), len(trace.results), dtype=torch.float64, device=self.device)
        kernel = _kernel(sum_source(trace, self.dtypes[:len(trace.elements)]))
        self._run(kernel, len(pieces), BLOCK, _aligned(addresses, pieces), table, there, h, table, out)
        return np.stack([np.bincount(pieces[:, 0], x, len(self.sizes)) for x in out.cpu().numpy().T], 1)

    def place(self) -> str:
        "Where it runs, for people."
        return f'by Triton on {self.device}'

    @cached_property
    def _blocks(self) -> tuple[np.ndarray, Tensor]:
        pieces = chunks(whole(self.sizes), BLOCK)
        return pieces, torch.from_numpy(pieces).to(self.device)

    def _run(self, kernel: Any, programs: int, block: int, aligned: bool, *given: Tensor) -> None:
        "Launch a kernel; without programs it is only compiled."
        on = nullcontext() if self.device.type == 'cpu' else torch.get_device_module(self.device).device(self.device)
        with on: kernel[programs,](*given, COLUMNS=len(self.dtypes), BLOCK=block, ALIGNED=aligned, **OPTIONS)

    def _on_device(self, name: Any, values: np.ndarray) -> Tensor:
        "These values in memory of the device that is the same at each step, copied there only if they changed."
        old, there = self.kept.get(name, (None, None))
        if there is not None and np.array_equal(old, values): return there
        new = torch.from_numpy(values.copy())
        if there is None: there = new.to(self.device)
        else: there.copy_(new if self.device.type == 'cpu' else new.pin_memory(), non_blocking=True)
        self.kept[name] = values.copy(), there
        return there


@lru_cache(maxsize=1)
def missing_triton() -> str:
    "Why there are no kernels by Triton; '' if there are."
    try: import_module('triton')
    except ImportError as e: return f'Triton cannot be imported ({e})'
    return ''


@lru_cache(maxsize=512)
def _kernel(source: str) -> Any: return module_of(source).run  # Triton itself keeps what it compiles on disk


def _aligned(addresses: np.ndarray, pieces: np.ndarray) -> bool:
    "Whether all pieces start where several elements can be moved at a time."
    return not (addresses % 16).any() and not (pieces[:, 1] % 16).any()
