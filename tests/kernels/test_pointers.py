"What kernels do with bits: bfloat16 as torch has it, for every bit pattern."
import numpy as np
import torch
from numba import njit

from miniai.kernels.pointers import dithered, drawn, high, low, rounded, widened
from miniai.kernels.rounding import dithered as dithered_by_torch


@njit
def over(f, xs, out):
    for i in range(len(xs)): out[i] = f(xs[i])


@njit
def dither_all(xs, key, out):
    for i in range(len(xs)):
        noise = drawn(np.int64(i), key)
        out[0, i], out[1, i] = dithered(xs[i], low(noise)), dithered(xs[i], high(noise))


def test_every_bfloat16_is_widened_as_torch_does():
    bits, out = np.arange(1 << 16, dtype=np.uint16), np.zeros(1 << 16, np.float32)
    over(widened, bits, out)
    want = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()
    assert np.array_equal(out, want, equal_nan=True)


def floats():
    "Numbers of all sizes, ties between two bfloat16, NaN and infinities."
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 100_000, dtype=np.uint64).astype(np.uint32)
    ties = (bits[:1000] & np.uint32(0xffff0000)) | np.uint32(0x8000)
    return np.concatenate([bits, ties, np.array([0, 0x80000000, 0x7f800000, 0xff800000], np.uint32)]).view(np.float32)


def as_bfloat16(bits): return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)


def test_numbers_are_rounded_to_the_nearest_bfloat16_as_torch_does():
    xs = floats()
    out = np.zeros(len(xs), np.uint16)
    over(rounded, xs, out)
    assert torch.equal(as_bfloat16(out).nan_to_num(7.), torch.from_numpy(xs).bfloat16().nan_to_num(7.))


def test_stochastic_rounding_gives_the_same_bits_in_kernels_and_by_torch():
    xs, key = floats(), 12345
    out = np.zeros((2, len(xs)), np.uint16)
    dither_all(xs, np.uint32(key), out)
    for turn in (0, 1):
        want = dithered_by_torch(torch.from_numpy(xs), key, turn)
        assert torch.equal(as_bfloat16(out[turn]).nan_to_num(7.), want.nan_to_num(7.))
