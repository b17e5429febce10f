"""The pass of devices without kernels: torch runs each line of a trace on the elements of many tensors at once, copied
into one long vector."""
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from miniai.kernels.math import widest
from miniai.kernels.memory import BLOCK, chunks, flat, irregular
from miniai.kernels.python import element_function, results_on
from miniai.kernels.rounding import dithered
from miniai.kernels.trace import Trace

__all__ = ['BatchedPass', 'squares', 'wide']

# Elements of a batch: on CPUs so few that the vectors of all lines stay in the cache, elsewhere so many that a line
# takes longer to run than to start. They also bound the memory that a step needs.
ON_CPU, ELSEWHERE = 1 << 17, 1 << 22


class BatchedPass:
    "A pass, as `miniai.optim.table` describes it, by torch."
    name = 'batched'

    def __init__(self, trace: Trace, mask: Trace | None, dtypes: tuple[torch.dtype, ...], dither: tuple[bool, ...],
                 runs: list, device: torch.device) -> None:
        self.trace, self.mask, self.dither, self.device = trace, mask, dither, device
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
    def sum_of_squares(self, addresses: np.ndarray, tensors: Callable) -> float:
        "The sum of squares of the gradients, in double precision."
        gs = list(map(flat, tensors()[1]))
        sums = [squares(_joined(_cut(gs, pieces))) for pieces in self.batches]
        return sum(torch.cat(sums).tolist()) if sums else 0.

    @torch.no_grad()
    def counts(self, addresses: np.ndarray, tensors: Callable, h: np.ndarray) -> list[float]:
        "For each row the number of elements for which the mask holds."
        columns, found = [list(map(flat, xs)) for xs in tensors()], []
        for pieces in self.batches:
            given = [_joined(_cut(xs, pieces)) for xs in columns]
            holds, = element_function(self.mask)(*given, *self._hosts(h, pieces))
            ends = torch.from_numpy(pieces[:, 2].cumsum() - 1).to(self.device)
            found.append(F.pad(holds.cumsum(0, dtype=torch.int32)[ends], (1, 0)).diff())
        if not found: return [0.]*len(h)
        rows = np.concatenate([pieces[:, 0] for pieces in self.batches])
        return np.bincount(rows, torch.cat(found).cpu().numpy(), len(h)).tolist()

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


def squares(x: Tensor) -> Tensor:
    "The sums of squares of the blocks of a vector, in double precision; the same bits for any number of threads."
    return F.pad(x.to(widest(x)).square(), (0, -len(x) % BLOCK)).view(-1, BLOCK).sum(1)


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
