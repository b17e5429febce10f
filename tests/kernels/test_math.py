"The functions that rules may use: the same values for Python floats and for tensors."
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from miniai.kernels.math import has_double, widest
from miniai.optim import maximum, minimum, sign, sqrt, where

numbers = st.floats(allow_nan=True, allow_infinity=True)
quick = settings(max_examples=80)


def tensor(*xs): return torch.tensor(xs, dtype=torch.float64)
def same(a, b): return (math.isnan(a) and math.isnan(b)) or a == b


@given(st.floats(min_value=0))
@quick
def test_sqrt_of_a_float_is_that_of_a_tensor(x): assert sqrt(x) == pytest.approx(sqrt(tensor(x)).item(), rel=1e-15)


@given(st.floats(allow_nan=False))
@example(-2.)
@example(-0.)
@quick
def test_sign_of_a_float_is_that_of_a_tensor(x):
    want = 1. if x > 0 else -1. if x < 0 else 0.
    assert sign(x) == sign(tensor(x)).item() == want


def test_sign_of_nan_is_nan_for_floats_and_tensors():
    assert math.isnan(sign(math.nan))
    assert math.isnan(sign(tensor(math.nan)).item())


@given(numbers, numbers)
@example(1., math.nan)
@example(math.nan, 1.)
@quick
def test_maximum_and_minimum_of_floats_are_those_of_tensors_and_nan_wins(a, b):
    nan = math.isnan(a) or math.isnan(b)
    for f, plain in ((maximum, max), (minimum, min)):
        want = math.nan if nan else plain(a, b)
        assert same(f(a, b), want)
        assert same(f(tensor(a), tensor(b)).item(), want)
        assert same(f(tensor(a), b).item(), want)
        assert same(f(a, tensor(b)).item(), want)


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_maximum_and_minimum_with_a_number_keep_the_tensors_dtype_and_shape(dtype):
    x = torch.tensor([[-1., .5], [2., 3.]], dtype=dtype)
    assert maximum(x, 1.).tolist() == maximum(1., x).tolist() == [[1., 1.], [2., 3.]]
    assert minimum(x, 1).tolist() == minimum(1, x).tolist() == [[-1., .5], [1., 1.]]
    assert {f(*ab).dtype for f in (maximum, minimum) for ab in ((x, 1.), (1., x), (x, x))} == {dtype}


def test_where_takes_the_first_where_the_condition_holds_and_else_the_second():
    assert where(True, 1., 2.) == 1.
    assert where(False, 1., 2.) == 2.
    x = tensor(-1., 3.)
    assert where(x > 0, x, -x).tolist() == [1., 3.]
    assert where(x > 0, x, .1).tolist() == [.1, 3.]
    assert where(x > 0, .1, x).tolist() == [-1., .1]
    assert where(0. < 1., x, 0.).tolist() == [-1., 3.]


def test_where_between_two_numbers_loses_no_precision_of_a_float64_rule():
    x = tensor(-1., 3.)
    assert (x * where(x > 0, .1, .2)).tolist() == [-1*.2, 3*.1]


def test_where_takes_a_condition_given_as_numbers():
    assert where(tensor(1., 0.), tensor(5., 6.), 7.).tolist() == [5., 7.]
    assert where(tensor(1., 0.), 5., 7.).tolist() == [5., 7.]


def test_what_is_summed_is_summed_in_double_precision_where_the_device_has_it(monkeypatch):
    assert widest(torch.zeros(1)) is torch.float64
    assert not has_double(torch.device('mps'))
    monkeypatch.setattr(torch.xpu, 'get_device_properties', lambda device: SimpleNamespace(has_fp64=device.index == 0))
    assert [has_double(torch.device('xpu', i)) for i in (0, 1)] == [True, False]


def test_abs_of_python_serves_rules_on_floats_and_tensors():
    assert abs(-2.) == 2.
    assert abs(tensor(-2., 1.)).tolist() == [2., 1.]


@pytest.mark.parametrize('f', [sqrt, sign, where, maximum, minimum])
def test_every_function_says_what_it_does(f): assert f.__doc__
