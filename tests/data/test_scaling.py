"Inputs made float: pixels from 0 to 1, means and deviations by channel, measured in double precision."
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from miniai.data.memory import Scaling

MEANS, STDS = st.floats(-2, 2, width=32), st.floats(.0625, 4, width=32)


def ramp(*shape): return (torch.arange(torch.Size(shape).numel()) % 256).to(torch.uint8).reshape(shape)
def scaled(x, **kw): return Scaling(x, **kw)(x.clone())


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=5)))
def test_pixels_are_numbers_from_0_to_1_rounded_once_and_a_channel_comes_to_three_dimensions(x):
    out = scaled(torch.from_numpy(x))
    assert out.dtype == torch.float32
    assert out.shape == (x.shape if x.ndim != 3 else (len(x), 1, *x.shape[1:]))
    assert np.array_equal(out.numpy().reshape(x.shape), (x/255).astype(np.float32))


@given(hnp.arrays(np.uint8, (3, 2, 4, 5)), st.one_of(MEANS, st.lists(MEANS, min_size=2, max_size=2)),
       st.one_of(STDS, st.lists(STDS, min_size=2, max_size=2)))
def test_mean_and_std_are_numbers_or_one_for_each_channel(x, mean, std):
    m, s = (np.reshape(v, (-1, 1, 1)) for v in (mean, std))
    out = scaled(torch.from_numpy(x), mean=mean, std=std)
    np.testing.assert_allclose(out, (x/255 - m)/s, rtol=1e-5, atol=2e-5)


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=4), elements=st.floats(-10, 10)), MEANS, STDS,
       st.sampled_from([torch.float32, torch.float64]))
def test_floats_keep_their_dtype_and_shape(x, mean, std, dtype):
    x = torch.from_numpy(x).to(dtype)
    out = scaled(x, mean=mean, std=std)
    assert (out.dtype, out.shape) == (dtype, x.shape)
    np.testing.assert_allclose(out, (x.double().numpy() - mean)/std, rtol=1e-5, atol=1e-5)


def test_features_of_a_table_may_have_means_of_their_own():
    x = torch.randn(50, 3, dtype=torch.float64)
    torch.testing.assert_close(scaled(x, mean=x.mean(0), std=x.std(0)), (x - x.mean(0))/x.std(0))


@pytest.mark.parametrize('x', [torch.arange(6), torch.arange(6).reshape(2, 3).int(), torch.tensor([True, False]),
                               torch.randn(2, 3), torch.randn(2, 3, 4, 5).half()])
def test_what_is_not_uint8_stays_as_it_is_where_no_mean_is_given(x):
    assert Scaling(x)(x) is x


def test_without_to_float_uint8_stays():
    x = ramp(2, 3, 3)
    assert Scaling(x, to_float=False)(x) is x


def test_one_of_mean_and_std_alone_goes_with_1_and_0():
    x = torch.tensor([1., 4.])
    assert scaled(x, mean=1.).tolist() == [0., 3.]
    assert scaled(x, std=2.).tolist() == [.5, 2.]


@pytest.mark.parametrize(('x', 'kw', 'said'), [
    (torch.arange(3), dict(mean=1.), 'for floats, or for uint8 made float; the inputs are torch.int64'),
    (ramp(3, 2, 2), dict(mean=1., to_float=False), 'the inputs are torch.uint8'),
    (ramp(4, 3, 2, 2), dict(mean=[.1, .2]), r'mean must be a number, or one for each.*dimension 1 of \(4, 3, 2, 2\)'),
    (ramp(4, 3, 3), dict(std=[.1, .2, .3]), r'std must be a number, or one for each.*dimension 1 of \(4, 1, 3, 3\)'),
    (torch.randn(3), dict(mean=[1.]*3), 'one for each of the channels'),
    (torch.randn(3), dict(std=0.), 'std above 0, got 0.0 and 0.0'),
    (torch.randn(3), dict(mean=float('nan')), 'must be finite'),
    (torch.randn(3), dict(std=float('inf')), 'must be finite')])
def test_a_mean_or_std_that_the_inputs_cannot_take_is_an_error(x, kw, said):
    with pytest.raises(ValueError, match=said): Scaling(x, **kw)
