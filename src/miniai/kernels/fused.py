"The pass of CPUs: one kernel by Numba over the addresses of all tensors, and kernels that sum."
from collections.abc import Callable

import numpy as np
import torch

from miniai.kernels.memory import BLOCK, blocks, chunks, whole
from miniai.kernels.numba import serial_reason, step_kernel, unsupported
from miniai.kernels.sums import block_of, sum_kernel
from miniai.kernels.trace import Trace

__all__ = ['CHUNK', 'FusedPass']

CHUNK = 1 << 15  # elements that a thread takes at a time


class FusedPass:
    "A pass, as `miniai.optim.table` describes it, by Numba."
    name, unsupported = 'fused', staticmethod(unsupported)

    def __init__(self, trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...], runs: list,
                 device: torch.device) -> None:
        self.dtypes, self.blocks = dtypes, {}
        self.sizes = [len(starts)*n for starts, n in runs]
        self.elements, self.chunks = sum(self.sizes), chunks(runs, CHUNK)
        self.kernel = step_kernel(trace, dtypes, dither)

    def prepare(self, addresses: np.ndarray, h: np.ndarray, keys: np.ndarray) -> None:
        "Compile the kernel, if that is still to be done."
        self.run = self.kernel.ready(self.elements, h, keys)

    def step(self, addresses: np.ndarray, tensors: Callable, h: np.ndarray, keys: np.ndarray) -> None:
        "Write the new parameters and states."
        self.run(addresses, self.chunks, h, keys)

    def sums(self, trace: Trace, addresses: np.ndarray, tensors: Callable, h: np.ndarray) -> np.ndarray:
        "For each row the sum of each result of a trace over all elements, in double precision."
        dtypes = self.dtypes[:len(trace.elements)]
        pieces, at, rows = self._blocks(block_of(dtypes))
        sums = np.zeros((len(rows), len(trace.results)))
        sum_kernel(trace, dtypes)(self.elements, addresses, pieces, h, sums, at)
        return np.stack([np.bincount(rows, column, len(self.sizes)) for column in sums.T], 1)

    def _blocks(self, size: int) -> tuple[np.ndarray, ...]:
        if size not in self.blocks:
            pieces = chunks(whole(self.sizes), -(-CHUNK // BLOCK)*BLOCK)
            self.blocks[size] = pieces, *blocks(pieces, size)
        return self.blocks[size]

    def place(self) -> str:
        "Where it runs, for people."
        why = serial_reason(self.elements)
        return f'on one thread, because {why}' if why else f'on {torch.get_num_threads()} threads'
