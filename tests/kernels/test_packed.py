"Numbers in 8 bits: what a byte can hold, rounded so that the mean is right, and the same bits by torch and by kernels."
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.kernels.memory import chunks, whole
from miniai.kernels.numba import step_kernel
from miniai.kernels.packed import PER_BLOCK, ROW, is_packed, new_packed, packed, unpacked
from miniai.kernels.trace import trace_rule

FORMATS = {'with signs': lambda x: x, 'positive': lambda x: x.square() + 1e-30}
floats = partial(st.floats, width=32, allow_nan=False, allow_infinity=False)
numbers = st.lists(floats(), min_size=1, max_size=600)
normal = st.lists(floats(allow_subnormal=False), min_size=1, max_size=600)  # of subnormal ones alone, 0 is kept


def again(x, key=1): return unpacked(packed(x, x, key), x)


@given(normal, st.integers(0, 2**32 - 1), st.integers(0, 2))
def test_what_a_byte_holds_is_packed_into_the_same_bytes_by_any_key(xs, key, turn):
    x = torch.tensor(xs, dtype=torch.float32)
    first = packed(x, x, key, turn)
    y = unpacked(first, x)
    assert torch.equal(packed(y, y, key ^ 12345, turn), first)
    assert first.shape == (-(-len(xs)//PER_BLOCK), ROW)


@given(numbers, st.integers(0, 2**32 - 1))
def test_a_number_is_rounded_to_a_neighbor_within_an_eighth_or_a_sixteenth(xs, key):
    x = torch.tensor(xs, dtype=torch.float32)
    y = again(x, key)
    for a, b in zip(x.split(PER_BLOCK), y.split(PER_BLOCK), strict=True):
        top, signed = a.abs().max(), bool(torch.signbit(a).any())
        kept = (a.abs() >= top*2**-14) & (top >= 2**-126)
        error = ((b.double() - a.double()).abs()/a.double().abs())[kept & (a != 0)]
        assert (error <= (1/8 if signed else 1/16)).all()
        assert (b[~kept].abs() <= top*2**-13).all()
        assert ((b > 0) == (a > 0)).all() or signed or top < 2**-126


@pytest.mark.parametrize('form', FORMATS)
def test_the_mean_of_what_is_stored_is_the_number(form):
    x = FORMATS[form](torch.randn(PER_BLOCK))
    runs = 4000
    mean = sum(again(x, 7919*k + 13).double() for k in range(runs))/runs
    spread = x.abs().double()/8/np.sqrt(runs)  # of the mean, at most
    kept = x.abs() > x.abs().max()*1e-3
    assert ((mean - x.double()).abs() < 6*spread)[kept & (x < x.max())].all()


def test_zeros_stay_and_a_block_that_is_not_finite_is_not_finite_afterwards():
    assert torch.equal(again(torch.zeros(300)), torch.zeros(300))
    x = torch.ones(600)
    x[300] = torch.nan
    y = again(x)
    assert torch.equal(y[:256], x[:256])
    assert not y[256:512].isfinite().any()
    assert torch.equal(y[512:], x[512:])


def test_shape_and_memory_layout_are_those_of_the_parameter():
    x = torch.randn(4, 5, 6, 7).to(memory_format=torch.channels_last)
    y = again(x)
    assert (y.shape, y.stride()) == (x.shape, x.stride())
    assert torch.equal(again(x.permute(0, 2, 3, 1).contiguous()), y.permute(0, 2, 3, 1))
    assert is_packed(new_packed(5, x.device))
    assert torch.equal(unpacked(new_packed(300, x.device), torch.ones(300)), torch.zeros(300))


def rule(p, g, a, b, c, *, lr): return p - lr*(a + b + c), a + g, b + g*g, c - g*g*g


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 1000), st.integers(0, 2**32 - 1), st.integers(-30, 30))
def test_a_kernel_writes_the_same_bytes(n, key, exponent):
    generator = torch.Generator().manual_seed(key)
    p, g = torch.randn(2, n, generator=generator)
    g *= 2.**exponent
    states, wanted = [new_packed(n, p.device) for _ in range(3)], [torch.zeros(n)]*3
    dtypes, dither = (torch.float32,)*2 + (torch.uint8,)*3, (False,)*2 + (True,)*3
    kernel = step_kernel(trace_rule(rule), dtypes, dither)
    for step in range(3):
        addresses = np.array([[x.data_ptr() for x in (p, g, *states)]], np.uint64)
        new = rule(p.clone(), g, *wanted, lr=.5)
        kernel(n, addresses, chunks(whole([n]), 512), np.array([[.5]], np.float32), np.array([[key ^ step]], np.uint32))
        packs = [packed(x, x, key ^ step, turn) for turn, x in enumerate(new[1:])]
        assert all(map(torch.equal, states, packs))
        wanted = [unpacked(x, p) for x in packs]
        assert torch.allclose(p, new[0], rtol=1e-5, atol=1e-5*2.**max(3*exponent, 0))
