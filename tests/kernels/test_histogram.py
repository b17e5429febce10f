"One pass over a tensor: mean, deviation and histogram are numpy's and torch's, on both paths, whatever the memory."
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai.diagnosis import activations as stats
from miniai.kernels import histogram as tally
from miniai.kernels import numba

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def drawn(n, scale=3., dtype=torch.float32, seed=0, offset=0.):
    return (torch.randn(n, generator=torch.Generator().manual_seed(seed))*scale + offset).to(dtype)


def powers(x):
    "By frexp in double precision."
    size = np.abs(np.asarray(x, np.float64).ravel())
    exponent = np.clip(np.where(size == 0, -99, np.frexp(size)[1] - 1), -32, 8)
    return np.array([(exponent[np.isfinite(size)] == e).sum() for e in range(-32, 8)])


@pytest.mark.parametrize('dtype', FLOATS)
@pytest.mark.parametrize('n', [2, 7, 4096, 4097, 33_000, 100_001])
def test_figures_are_those_of_double_precision_and_the_histogram_is_torchs(dtype, n):
    x = drawn(n, dtype=dtype)
    mean, std, hist = tally.tally(x)
    assert mean.item() == pytest.approx(x.double().mean().item(), rel=1e-5, abs=1e-6)
    assert std.item() == pytest.approx(x.double().std().item(), rel=1e-5)
    assert torch.equal(hist, x.float().abs().histc(40, 0, 10))
    assert (mean.ndim, std.ndim, hist.shape) == (0, 0, (40,))


@settings(max_examples=50)
@given(st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=2, max_size=50))
def test_both_histograms_hold_for_any_numbers_on_both_paths(xs):
    x = torch.tensor(xs, dtype=torch.float32)
    assert torch.equal(tally.tally(x)[2], x.abs().histc(40, 0, 10))
    assert tally.tally_powers(x)[2].tolist() == powers(x).tolist()
    assert tally._histogram_of_powers(x).tolist() == powers(x).tolist()


@pytest.mark.parametrize('dtype', [*FLOATS, torch.complex64])
@pytest.mark.parametrize('shape', [(), (1,), (1, 1)])
def test_one_number_has_itself_as_mean_and_deviates_by_0(dtype, shape):
    x = torch.full(shape, 3., dtype=dtype)
    for f, bin_ in ((tally.tally, 12), (tally.tally_powers, 33)):
        mean, std, hist = f(x)
        assert (mean.item(), std.item(), hist.nonzero().tolist()) == (3., 0., [[bin_]])


@settings(max_examples=30)
@given(st.integers(2, 200), st.floats(-1e6, 1e6), st.floats(1e-3, 1e3))
def test_a_large_mean_does_not_spoil_the_deviation(n, offset, scale):
    x = drawn(n, scale, torch.float64, offset=offset)
    assert tally.tally(x)[1].item() == pytest.approx(x.std().item(), rel=1e-5)


@pytest.mark.parametrize('view', [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.transpose(1, 2),
                                  lambda x: x[:, ::2], nn.Parameter, lambda x: x.double().requires_grad_()])
def test_layout_makes_no_difference(view):
    x = view(drawn((3, 4, 8, 5)))
    with torch.no_grad():
        for f in (tally.tally, tally.tally_powers):
            for a, b in zip(f(x), f(x.clone(memory_format=torch.contiguous_format)), strict=True):
                assert torch.allclose(a, b, rtol=1e-6)


def test_bits_are_the_same_for_any_number_of_threads(monkeypatch):
    x = drawn(300_000)
    one = tally.tally(x)
    monkeypatch.setattr(numba, 'WORTH_IT', 0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try: two = tally.tally(x)
    finally: torch.set_num_threads(before)
    assert all(map(torch.equal, one, two))


def test_without_numba_torch_gives_the_same_figures(monkeypatch):
    x = drawn(5000)
    want = tally.tally(x), tally.tally_powers(x)
    monkeypatch.setattr(numba, 'missing_numba', lambda: 'Numba is not installed')
    monkeypatch.setattr(tally, '_kernel', None)
    for a, b in zip(want, (tally.tally(x), tally.tally_powers(x)), strict=True):
        assert all(torch.allclose(u, v, rtol=1e-5) for u, v in zip(a, b, strict=True))


def test_the_tensor_is_left_as_it_is_and_the_hooks_use_the_pass(monkeypatch):
    x, calls = drawn(100), []
    before = x.clone()
    monkeypatch.setattr(stats, 'tally', lambda t: calls.append(t) or tally.tally(t))
    hook = type('Hook', (), {})()
    stats.append_stats(hook, None, None, x)
    assert torch.equal(x, before)
    assert len(calls) == 1
