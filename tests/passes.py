"What every pass must do, on rows of many sizes, whatever runs it."
import math

import numpy as np
import torch

from miniai.kernels.math import double
from miniai.kernels.memory import whole
from miniai.kernels.python import host_function
from miniai.kernels.rounding import dithered
from miniai.kernels.trace import trace_rule

SIZES = 1, 0, 9, 5000, 4096, 70_001


def rule(p, g, avg, *, lr, k):
    avg = k*avg + g
    return p - lr*avg, avg


def values(p, g, avg, *, lr, k):
    "A count that is true for zeros, which lie outside of what is counted; squares; and a number."
    return double(p*lr > g - k), double(avg)*double(avg), k


def rows(dtype):
    "Parameters, gradients and states."
    r = torch.Generator().manual_seed(0)
    return [[torch.randn(n, generator=r).to(dtype) for n in SIZES] for _ in range(3)]


def made(kind, dtype):
    "A pass, columns of tensors, their addresses, and other numbers for each row."
    columns, traces = rows(dtype), [trace_rule(rule), trace_rule(values, ('p', 'g', 'avg'), ('lr', 'k'))]
    dtypes = (dtype,)*3
    path = kind(traces[0], dtypes, (False,)*3, whole(SIZES), torch.device('cpu'))
    addresses = np.array([[x.data_ptr() for x in xs] for xs in columns], np.uint64).T.copy()
    hypers = [dict(lr=.1 + e, k=e/9) for e in range(len(SIZES))]
    h = [np.array([host_function(t)(**x) for x in hypers], np.float64 if dtype is torch.float64 else np.float32)
         for t in traces]
    return path, columns, addresses, hypers, h, traces[1]


def check_a_step_is_the_rule_on_each_row(kind, dtype):
    path, columns, addresses, hypers, (h, _), _ = made(kind, dtype)
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


def check_values_are_summed_row_by_row_in_double_precision(kind, dtype):
    path, columns, addresses, hypers, (_, h), trace = made(kind, dtype)
    found, again = (path.sums(trace, addresses, lambda: columns, h) for _ in range(2))
    assert np.array_equal(found, again)
    for (count, squares, number), p, g, avg, x in zip(found, *columns, hypers, strict=True):
        want = (p.double()*x['lr'] > g.double() - x['k']).sum().item()
        assert abs(count - want) <= 1  # one near a tie may fall on either side
        assert abs(squares - avg.double().square().sum().item()) <= 1e-12*squares
        assert abs(number - len(p)*x['k']) <= 1e-6*number
    assert found[:, 0].sum() > 1000


def check_sums_may_need_only_the_first_columns(kind, dtype):
    path, columns, addresses, *_ = made(kind, dtype)
    trace = trace_rule(lambda p, g: double(g)*double(g), ('p', 'g'))
    found = path.sums(trace, addresses, lambda: columns, np.zeros((len(SIZES), 0), np.float32))
    assert np.allclose(found[:, 0], [g.double().square().sum().item() for g in columns[1]], rtol=1e-12, atol=0)


def check_random_rounding_is_by_places_in_the_whole(kind, dtype):
    gs = [torch.randn(6).to(dtype), torch.tensor([math.inf, -math.inf, 3.3e38, -0., 1., 1e-30]).to(dtype)]
    columns = [[torch.zeros_like(g) for g in gs], gs, [torch.zeros(6, dtype=torch.bfloat16) for _ in gs]]
    trace = trace_rule(lambda p, g, s, *, lr: (p, g/lr))
    runs, keys = [([10, 40], 3), ([0], 6)], np.array([[7], [0x9abcdef1]], np.uint32)
    path = kind(trace, (dtype, dtype, torch.bfloat16), (False, False, True), runs, torch.device('cpu'))
    addresses = np.array([[x.data_ptr() for x in xs] for xs in columns], np.uint64).T.copy()
    h = np.full((2, 1), 3, np.float64 if dtype is torch.float64 else np.float32)
    path.prepare(addresses, h, keys)
    path.step(addresses, lambda: columns, h, keys)
    places = [10, 11, 12, 40, 41, 42], list(range(6))
    for g, s, at, key in zip(gs, columns[2], places, keys[:, 0].tolist(), strict=True):
        assert torch.equal(s, dithered((g.float() if dtype.itemsize == 2 else g)/3, key, 0, torch.tensor(at)))


CHECKS = (check_a_step_is_the_rule_on_each_row, check_values_are_summed_row_by_row_in_double_precision,
          check_sums_may_need_only_the_first_columns, check_random_rounding_is_by_places_in_the_whole)
