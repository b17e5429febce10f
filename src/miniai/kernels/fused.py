"The pass of CPUs: one kernel by Numba over the addresses of all tensors, and the kernels that count and sum."
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch

from miniai.kernels.memory import BLOCK, blocks, chunks, whole
from miniai.kernels.numba import Kernel, serial_reason, step_kernel, unsupported
from miniai.kernels.sums import count_kernel, norm_kernel
from miniai.kernels.trace import Trace

__all__ = ['CHUNK', 'FusedPass']

CHUNK = 1 << 15  # elements that a thread takes at a time


class FusedPass:
    "A pass, as `miniai.optim.table` describes it, by Numba."
    name, unsupported = 'fused', staticmethod(unsupported)

    def __init__(self, trace: Trace, mask: Trace | None, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...],
                 runs: list, device: torch.device) -> None:
        self.mask, self.dtypes = mask, dtypes
        self.sizes = [len(starts)*n for starts, n in runs]
        self.elements, self.chunks = sum(self.sizes), chunks(runs, CHUNK)
        self.kernel = step_kernel(trace, dtypes, dither)

    def prepare(self, addresses: np.ndarray, h: np.ndarray, keys: np.ndarray) -> None:
        "Compile the kernel, if that is still to be done."
        self.run = self.kernel.ready(self.elements, h, keys)

    def step(self, addresses: np.ndarray, tensors: Callable, h: np.ndarray, keys: np.ndarray) -> None:
        "Write the new parameters and states."
        self.run(addresses, self.chunks, h, keys)

    def sum_of_squares(self, addresses: np.ndarray, tensors: Callable) -> float:
        "The sum of squares of the gradients, in double precision."
        return float(self._block_sums(norm_kernel(self.dtypes[0]), addresses, np.zeros((1, 1)), np.float64)[0].sum())

    def counts(self, addresses: np.ndarray, tensors: Callable, h: np.ndarray) -> list[float]:
        "For each row the number of elements for which the mask holds."
        kernel = count_kernel(self.mask, self.dtypes)
        sums, rows = self._block_sums(kernel, addresses, h, np.int64)
        return np.bincount(rows, sums, len(self.sizes)).tolist()

    def _block_sums(self, kernel: Kernel, addresses: np.ndarray, h: np.ndarray, dtype: Any) -> tuple:
        "A kernel's sum for each block, and the row that each block lies in."
        pieces, at, rows = self._blocks
        sums = np.zeros(len(rows), dtype)
        kernel(self.elements, addresses, pieces, h, sums, at)
        return sums, rows

    @cached_property
    def _blocks(self) -> tuple[np.ndarray, ...]:
        pieces = chunks(whole(self.sizes), -(-CHUNK // BLOCK)*BLOCK)
        return pieces, *blocks(pieces)

    def place(self) -> str:
        "Where it runs, for people."
        why = serial_reason(self.elements)
        return f'on one thread, because {why}' if why else f'on {torch.get_num_threads()} threads'
