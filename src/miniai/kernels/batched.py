"""The pass of devices without kernels: torch runs each line of a trace on the elements of many tensors at once, copied
into one long vector."""
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from miniai.kernels.math import double
from miniai.kernels.memory import chunks, flat, irregular
from miniai.kernels.python import results_on, values_on
from miniai.kernels.rounding import dithered
from miniai.kernels.trace import Trace

__all__ = ['BatchedPass', 'wide']

# Elements of a batch: on CPUs so few that the vectors of all lines stay in the cache, elsewhere so many that a line
# takes longer to run than to start. They also bound the memory that a step needs.
ON_CPU, ELSEWHERE = 1 << 17, 1 << 22
TOGETHER = 64  # elements that are summed together: few, so that small tensors need little padding


class BatchedPass:
    "A pass, as `miniai.optim.table` describes it, by torch."
    name = 'batched'

    def __init__(self, trace: Trace, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...], runs: list,
                 device: torch.device) -> None:
        self.trace, self.dither, self.device = trace, dither, device
        most = ON_CPU if device.type == 'cpu' else ELSEWHERE
        self.batches = list(_batches(chunks(runs, most), most))

    @staticmethod
    def unsupported(x: Tensor) -> str:
        "Why this pass cannot work on a tensor; '' if it can."
        return irregular(x)

    def prepare(self, addresses: np.ndarray, h: np.ndarray, keys: np.ndarray) -> None:
        "Nothing: there is nothing to compile."

    @torch.no_grad()
    def step(self, addresses: np.ndarray, tensors: Callable, h: np.ndarray, keys: np.ndarray) -> None:
        "Write the new parameters and states."
        columns = [list(map(flat, xs)) for xs in tensors()]
        for pieces in self.batches:
            cut = [_cut(xs, pieces) for xs in columns]
            new = results_on(self.trace, list(map(_joined, cut)), self._hosts(h, pieces))
            new.insert(1, None)  # the gradient stays
            if any(self.dither): key, places = self._dice(pieces, keys)
            lengths = pieces[:, 2].tolist()
            for k, (parts, x) in enumerate(zip(cut, new, strict=True)):
                if k == 1: continue
                if self.dither[k]: x = dithered(x, key, sum(self.dither[:k]), places)
                torch._foreach_copy_(parts, x.split(lengths))

    @torch.no_grad()
    def sums(self, trace: Trace, addresses: np.ndarray, tensors: Callable, h: np.ndarray) -> np.ndarray:
        "For each row the sum of each result of a trace over all elements, in double precision if the device has it."
        columns, found, rows = tensors()[:len(trace.elements)], [np.zeros((len(trace.results), 0))], [np.zeros(0, int)]
        columns = [list(map(flat, xs)) for xs in columns]
        for pieces in self.batches:
            given = [_joined(_cut(xs, pieces)) for xs in columns]
            blocks = -(-pieces[:, 2] // TOGETHER)
            out = [self._block_sums(x, pieces, blocks) for x in values_on(trace, given, self._hosts(h, pieces))]
            found.append(torch.stack(out).cpu().numpy())
            rows.append(np.repeat(pieces[:, 0], blocks))
        rows = np.concatenate(rows)
        return np.stack([np.bincount(rows, x, len(h)) for x in np.concatenate(found, 1)], 1)

    def _block_sums(self, x: Tensor, pieces: np.ndarray, blocks: np.ndarray) -> Tensor:
        "The sums of the blocks of each piece, of which the last may be shorter."
        x, most = double(x), int(blocks.sum())*TOGETHER
        if most > len(x):
            shifts = (blocks.cumsum() - blocks)*TOGETHER - (pieces[:, 2].cumsum() - pieces[:, 2])
            places = self._each(shifts, pieces) + torch.arange(len(x), device=self.device)
            x = x.new_zeros(most).index_copy_(0, places, x)
        return x.view(-1, TOGETHER).sum(1)

    def place(self) -> str:
        "Where it runs, for people."
        return f'on {self.device}'

    def _hosts(self, h: np.ndarray, pieces: np.ndarray) -> list:
        "The numbers of a batch: Python floats if all its rows have the same, else one for each element."
        rows = h[pieces[:, 0]]
        return rows[0].tolist() if (rows == rows[0]).all() else list(self._each(rows.T, pieces).unbind())

    def _dice(self, pieces: np.ndarray, keys: np.ndarray) -> tuple[Tensor, Tensor]:
        "For each element of a batch its key, and its place in the whole tensor."
        starts = pieces[:, 2].cumsum() - pieces[:, 2]
        places = self._each(pieces[:, 3] - starts, pieces)
        places += torch.arange(len(places), device=self.device)
        return self._each(keys[pieces[:, 0], 0].astype(np.int64), pieces), places

    def _each(self, values: np.ndarray, pieces: np.ndarray) -> Tensor:
        "The values of each piece, the last dimension, repeated for all its elements."
        values, lengths = (torch.tensor(x, device=self.device) for x in (values, pieces[:, 2]))
        return values.repeat_interleave(lengths, -1, output_size=int(pieces[:, 2].sum()))


def wide(x: Tensor) -> Tensor:
    "`x` in the precision that rules are computed in: float32 for half types, its own otherwise."
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _cut(xs: list[Tensor], pieces: np.ndarray) -> list[Tensor]:
    return [xs[e] if n == xs[e].numel() else xs[e].narrow(0, first, n) for e, first, n, _ in pieces.tolist()]


def _joined(parts: list[Tensor]) -> Tensor:
    return wide(parts[0] if len(parts) == 1 else torch.cat(parts))


def _batches(pieces: np.ndarray, most: int) -> Iterator[np.ndarray]:
    "Pieces in a row that have at most `most` elements together."
    first, total = 0, 0
    for i, n in enumerate(pieces[:, 2].tolist()):
        if total + n > most:
            yield pieces[first:i]
            first, total = i, 0
        total += n
    if total: yield pieces[first:]
