"Sums over tables: numpy's values, and the same bits for any chunks."
import numpy as np
import pytest
import torch

from miniai.kernels.memory import BLOCK, blocks
from miniai.kernels.sums import count_kernel, norm_kernel
from miniai.kernels.trace import trace_rule


def table(*xs):
    "Each tensor as parameter and gradient; the addresses keep no tensor alive."
    return np.array([[x.data_ptr(), x.data_ptr()] for x in xs], np.uint64)


def chunks(sizes, most): return np.array([(e, low, min(most, n - low)) for e, n in enumerate(sizes)
                                          for low in range(0, n, most)], np.int64)


def summed(kernel, xs, most, h, dtype):
    pieces = chunks([x.numel() for x in xs], most)
    at, rows = blocks(pieces)
    sums = np.zeros(len(rows), dtype)
    kernel(sum(x.numel() for x in xs), table(*xs), pieces, h, sums, at)
    return sums, rows


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_squares_are_summed_in_double_precision_to_the_same_bits_for_any_chunks(dtype):
    xs = [torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (1, 4097, 20_000, 4096)]
    few, many = (summed(norm_kernel(dtype), xs, k*BLOCK, np.zeros((1, 1)), np.float64) for k in (8, 1))
    assert all(map(np.array_equal, few, many))
    for e, x in enumerate(xs):
        assert few[0][few[1] == e].sum() == pytest.approx(x.double().square().sum().item(), rel=1e-13)


def test_a_mask_is_counted_tensor_by_tensor():
    trace = trace_rule(lambda p, g, lr: p*lr > g*g, ('p', 'g'), ('lr',))
    xs = [torch.linspace(-1, 2, n) for n in (10, 9000)]
    counts, rows = summed(count_kernel(trace, (torch.float32,)*2), xs, BLOCK, np.full((2, 1), .5, np.float32), np.int64)
    assert np.bincount(rows, counts).tolist() == [(x*.5 > x*x).sum().item() for x in xs]
