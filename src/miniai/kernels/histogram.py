"Mean, standard deviation and histogram of a tensor in one pass over its memory; by torch if there is no kernel for it."
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from miniai.kernels.numba import Kernel, unsupported
from miniai.kernels.source import POINTERS, SIZES

__all__ = ['BINS', 'SIZES_UP_TO', 'LOWEST_POWER', 'tally', 'tally_powers']

BINS, SIZES_UP_TO, LOWEST_POWER = 40, 10, -32
_BLOCK, _CHUNK = 1 << 12, 1 << 15
SOURCE = '''"Generated; safe to delete."
import numpy as np
from numba import carray, njit, prange

from miniai.kernels.pointers import bits_of, f32_at, f64_at, u16_at, widened

PLAIN = dict(fastmath={{'contract', 'nsz'}}, error_model='numpy', nogil=True)
SUMS = PLAIN | dict(fastmath={{'contract', 'nsz', 'reassoc'}})
BINS, TOP, LOWEST = {bins}, np.float32({top}), {lowest}


@njit(**SUMS)
def moments(a, n, origin):
    s, q = 0., 0.
    for j in range(n):
        d = np.float64({load}) - origin
        s += d
        q += d*d
    return s, q


@njit(**PLAIN)
def place_by_size(x):
    size = abs(np.float32(x))
    return np.uint8(min(np.int32(size*np.float32(BINS)/TOP), BINS - 1) if size <= TOP else BINS)


@njit(**PLAIN)
def place_by_power(x):
    power = np.int32((bits_of(np.float32(x)) >> np.uint32(23)) & np.uint32(255)) - 127 - LOWEST
    return np.uint8(min(max(power, 0), BINS))


@njit(**PLAIN)
def piece(address, first, n, sums, counts, k):
    places, bins = np.empty({block}, np.uint8), np.zeros((4, BINS + 1), np.int64)
    a = carray({pointer}(address), 1)
    origin = np.float64({load_first})
    for low in range(0, n, {block}):
        m = min({block}, n - low)
        a = carray({pointer}(address + np.uint64((first + low)*{size})), m)
        s, q = moments(a, m, origin)
        sums[k, 0] += s
        sums[k, 1] += q
        for j in range(m): places[j] = {place}({load})
        for j in range(m): bins[j & 3, places[j]] += 1
    for i in range(BINS): counts[k, i] = bins[0, i] + bins[1, i] + bins[2, i] + bins[3, i]
    sums[k, 2] = origin


@njit(**PLAIN)
def serial(table, chunks, sums, counts):
    for k in range(chunks.shape[0]): piece(table[0, 0], chunks[k, 1], chunks[k, 2], sums, counts, k)


@njit(parallel=True, **PLAIN)
def parallel(table, chunks, sums, counts):
    for k in prange(chunks.shape[0]): piece(table[0, 0], chunks[k, 1], chunks[k, 2], sums, counts, k)
'''


def tally(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and a histogram of abs(x) as torch.histc makes it: 40 bins from 0 to 10, larger values
    left out. On the device of `x`. Complex numbers count by their size; a single number has deviation 0."""
    return _tally(x, 'place_by_size', lambda x: x.abs().histc(BINS, 0, SIZES_UP_TO))


def tally_powers(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, standard deviation and a histogram of abs(x) by powers of two: 40 bins from 2**-32 to 2**8, smaller values
    in the lowest, larger ones left out. On the device of `x`. Complex numbers count by their size; a single number has
    deviation 0."""
    return _tally(x, 'place_by_power', _histogram_of_powers)


def _histogram_of_powers(x: Tensor) -> Tensor:
    power = torch.where(x == 0, 0, torch.frexp(x).exponent - 1 - LOWEST_POWER).clamp(0, BINS)
    power = torch.where(x.isfinite(), power, BINS)
    return torch.zeros(BINS + 1, device=x.device).index_add_(0, power.flatten(), torch.ones_like(x).flatten())[:BINS]


def _tally(x: Tensor, place: str, histogram: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    "By the kernel that sorts into bins by `place`; by torch and `histogram` if kernels cannot work on `x`."
    if x.is_complex(): x = x.abs()
    n = x.numel()
    if n < 2 or unsupported(x):
        x = x.float()
        return x.mean(), x.std() if n > 1 else x.new_zeros(()), histogram(x)
    chunks = _chunks(n)
    sums, counts = np.zeros((len(chunks), 3)), np.zeros((len(chunks), BINS), np.int64)
    _kernel(x.dtype, place)(n, np.array([[x.data_ptr()]], np.uint64), chunks, sums, counts)
    s, q, _ = sums.sum(0).tolist()
    figures = sums[0, 2] + s/n, (max(q - s*s/n, 0.)/(n - 1))**.5
    return *torch.tensor(figures, dtype=torch.float32), torch.from_numpy(counts.sum(0)).float()


@lru_cache(maxsize=32)
def _chunks(n: int) -> np.ndarray:
    return np.array([(0, low, min(_CHUNK, n - low)) for low in range(0, n, _CHUNK)], np.int64)


@lru_cache(maxsize=8)
def _kernel(dtype: torch.dtype, place: str) -> Kernel:
    load = 'widened(a[{}])' if dtype is torch.bfloat16 else 'a[{}]'
    return Kernel(SOURCE.format(bins=BINS, top=SIZES_UP_TO, lowest=LOWEST_POWER, block=_BLOCK, place=place,
                                pointer=POINTERS[dtype], size=SIZES[dtype], load=load.format('j'),
                                load_first=load.format(0)))
