"What every pass must do, on rows of many sizes, whatever runs it."
import math

import numpy as np
import torch

from miniai.kernels.memory import whole
from miniai.kernels.python import host_function
from miniai.kernels.rounding import dithered
from miniai.kernels.trace import trace_rule

SIZES = 1, 0, 9, 5000, 4096, 70_001


def rule(p, g, avg, *, lr, k):
    avg = k*avg + g
    return p - lr*avg, avg


def mask(p, g, avg, *, lr, k): return p*lr > g - k  # true for zeros, which lie outside of what is counted


def rows(dtype):
    "Parameters, gradients and states."
    r = torch.Generator().manual_seed(0)
    return [[torch.randn(n, generator=r).to(dtype) for n in SIZES] for _ in range(3)]


def made(kind, dtype):
    "A pass, columns of tensors, their addresses, and other numbers for each row."
    columns, traces = rows(dtype), [trace_rule(f) for f in (rule, mask)]
    dtypes = (dtype,)*3
    path = kind(*traces, dtypes, (False,)*3, whole(SIZES), torch.device('cpu'))
    addresses = np.array([[x.data_ptr() for x in xs] for xs in columns], np.uint64).T.copy()
    hypers = [dict(lr=.1 + e, k=e/9) for e in range(len(SIZES))]
    h = [np.array([host_function(t)(**x) for x in hypers], np.float64 if dtype is torch.float64 else np.float32)
         for t in traces]
    return path, columns, addresses, hypers, h


def check_a_step_is_the_rule_on_each_row(kind, dtype):
    path, columns, addresses, hypers, (h, _) = made(kind, dtype)
    keys = np.zeros((1, 1), np.uint32)
    want = [rule(*(x.double() for x in row), **x) for *row, x in zip(*columns, hypers, strict=True)]
    kept = [g.clone() for g in columns[1]]
    path.prepare(addresses, h, keys)
    path.step(addresses, lambda: columns, h, keys)
    assert all(map(torch.equal, kept, columns[1]))
    close = dict(rtol=torch.finfo(dtype).eps/2 + 1e-5, atol=1e-6)
    for (new_p, new_avg), p, avg in zip(want, columns[0], columns[2], strict=True):
        assert torch.allclose(p.double(), new_p, **close)
        assert torch.allclose(avg.double(), new_avg, **close)


def check_counts_are_the_masks(kind, dtype):
    path, columns, addresses, hypers, (_, h) = made(kind, dtype)
    want = [mask(*(x.float() if dtype.itemsize == 2 else x for x in row), **x).sum().item()
            for *row, x in zip(*columns, hypers, strict=True)]
    found = path.counts(addresses, lambda: columns, h)
    assert sum(found) > 1000
    assert all(abs(a - b) <= 1 for a, b in zip(found, want, strict=True))  # one near a tie may fall on either side


def check_squares_are_summed_in_double_precision(kind, dtype):
    path, columns, addresses, *_ = made(kind, dtype)
    want = sum(g.double().square().sum().item() for g in columns[1])
    found = [path.sum_of_squares(addresses, lambda: columns) for _ in range(2)]
    assert found[0] == found[1]
    assert abs(found[0]/want - 1) < 1e-12


def check_random_rounding_is_by_places_in_the_whole(kind, dtype):
    gs = [torch.randn(6).to(dtype), torch.tensor([math.inf, -math.inf, 3.3e38, -0., 1., 1e-30]).to(dtype)]
    columns = [[torch.zeros_like(g) for g in gs], gs, [torch.zeros(6, dtype=torch.bfloat16) for _ in gs]]
    trace = trace_rule(lambda p, g, s, *, lr: (p, g/lr))
    runs, keys = [([10, 40], 3), ([0], 6)], np.array([[7], [0x9abcdef1]], np.uint32)
    path = kind(trace, None, (dtype, dtype, torch.bfloat16), (False, False, True), runs, torch.device('cpu'))
    addresses = np.array([[x.data_ptr() for x in xs] for xs in columns], np.uint64).T.copy()
    h = np.full((2, 1), 3, np.float64 if dtype is torch.float64 else np.float32)
    path.prepare(addresses, h, keys)
    path.step(addresses, lambda: columns, h, keys)
    places = [10, 11, 12, 40, 41, 42], list(range(6))
    for g, s, at, key in zip(gs, columns[2], places, keys[:, 0].tolist(), strict=True):
        assert torch.equal(s, dithered((g.float() if dtype.itemsize == 2 else g)/3, key, 0, torch.tensor(at)))


CHECKS = (check_a_step_is_the_rule_on_each_row, check_counts_are_the_masks,
          check_squares_are_summed_in_double_precision, check_random_rounding_is_by_places_in_the_whole)
