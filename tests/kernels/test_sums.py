"Sums over tables: numpy's values, and the same bits for any chunks."
import numpy as np
import pytest
import torch

from miniai.kernels.math import double
from miniai.kernels.memory import BLOCK, blocks
from miniai.kernels.packed import PER_BLOCK, packed, unpacked
from miniai.kernels.sums import block_of, sum_kernel
from miniai.kernels.trace import trace_rule


def squares(p, g): return double(g)*double(g), double(p > g)


def chunks(sizes, most): return np.array([(e, low, min(most, n - low)) for e, n in enumerate(sizes)
                                          for low in range(0, n, most)], np.int64)


def summed(rows, most, dtypes):
    "The sums of the squares and of the mask for each block, by chunks of `most` elements."
    trace, sizes = trace_rule(squares, ('p', 'g')), [p.numel() for p, _ in rows]
    pieces = chunks(sizes, most)
    at, where = blocks(pieces, block_of(dtypes))
    sums, table = np.zeros((len(where), 2)), np.array([[x.data_ptr() for x in row] for row in rows], np.uint64)
    h = np.tile(np.array([[1., 0.]], np.float32), (len(rows), 1))  # what the mask counts as
    sum_kernel(trace, dtypes)(sum(sizes), table, pieces, h, sums, at)
    return sums, where


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_summed_in_double_precision_to_the_same_bits_for_any_chunks(dtype):
    r = torch.Generator().manual_seed(0)
    rows = [[torch.randn(n, generator=r).to(dtype) for _ in 'pg'] for n in (1, 4097, 20_000, 4096)]
    few, many = (summed(rows, k*BLOCK, (dtype,)*2) for k in (8, 1))
    assert all(map(np.array_equal, few, many))
    for e, (p, g) in enumerate(rows):
        total, count = few[0][few[1] == e].sum(0)
        assert total == pytest.approx(g.double().square().sum().item(), rel=1e-13)
        assert count == (p > g).sum()


def test_numbers_in_8_bits_are_summed_as_what_they_stand_for():
    p, x = torch.zeros(1000), torch.randn(1000, generator=torch.Generator().manual_seed(0))
    small = packed(x, p, 0, 0)
    sums, where = summed([(p, small)], 2*PER_BLOCK, (torch.float32, torch.uint8))
    assert where.tolist() == [0]*4
    assert sums[:, 0].sum() == pytest.approx(unpacked(small, p).double().square().sum().item(), rel=1e-13)
