"Every row is in one part, and mean and deviation are numpy's in double precision."
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from miniai.data.split import mean_std, other_rows, split_rows


@given(st.integers(2, 200), st.floats(.01, .99), st.integers(-2**40, 2**40))
def test_every_row_is_in_one_part_and_a_fraction_of_them_in_the_second(n, fraction, seed):
    if not 0 < round(n*fraction) < n: return
    train, valid = split_rows(n, fraction, seed)
    assert sorted(train.tolist() + valid.tolist()) == list(range(n))
    assert len(valid) == round(n*fraction)
    assert train.tolist() == sorted(train.tolist())
    assert torch.equal(split_rows(n, fraction, seed)[1], valid)


def test_seeds_split_differently():
    assert len({tuple(split_rows(100, .2, seed)[1].tolist()) for seed in range(20)}) == 20


@pytest.mark.parametrize('fraction', [0, 1, -.1, 1.5, float('nan')])
def test_a_fraction_outside_0_to_1_is_an_error(fraction):
    with pytest.raises(ValueError, match=f'must be between 0 and 1, got {fraction}'): split_rows(10, fraction, 0)


@pytest.mark.parametrize(('fraction', 'part'), [(.01, 'validation'), (.99, 'training')])
def test_a_fraction_that_leaves_a_part_empty_is_an_error(fraction, part):
    with pytest.raises(ValueError, match=f'of 10 samples leaves none for {part}'): split_rows(10, fraction, 0)


@given(st.integers(2, 50), st.data())
def test_the_rows_that_are_not_for_validation_are_for_training(n, data):
    valid = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=n - 1, unique=True))
    mask = np.isin(np.arange(n), valid)
    for given_as in (valid, tuple(valid), np.array(valid), np.array(valid, 'i4'), torch.tensor(valid)):
        rows = [r.tolist() for r in other_rows(n, given_as)]
        assert rows == [[i for i in range(n) if i not in valid], valid]
    for given_as in (mask, torch.tensor(mask)):
        assert [r.tolist() for r in other_rows(n, given_as)] == [rows[0], sorted(valid)]


@pytest.mark.parametrize(('valid', 'said'), [
    ([3, 10], 'indices from 3 to 10, but there are 10'), ([-1], 'indices from -1 to -1'), ([2, 2], 'same index twice'),
    ([], 'has 0 of 10 samples, which leaves none for validation'), (range(10), 'leaves none for training'),
    ([.5], 'got torch.float32'), (np.zeros((2, 2), int), r'of shape \(2, 2\)'),
    (np.ones(3, bool), 'a mask of 10 bools, got torch.bool')])
def test_indices_that_are_not_a_part_of_the_rows_are_an_error(valid, said):
    with pytest.raises(ValueError, match=said): other_rows(10, valid if isinstance(valid, np.ndarray) else list(valid))


@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=4), elements=st.floats(-100, 100)),
       st.integers(1, 30), st.floats(-1e4, 1e4))
def test_mean_and_deviation_of_a_channel_are_numpy_s_in_blocks_of_any_size(x, most, far):
    x, axes = x + far, tuple(d for d in range(x.ndim) if d != 1)
    mean, std = mean_std(x, most=most)
    np.testing.assert_allclose(mean, x.mean(axes).squeeze(), rtol=1e-9, atol=1e-9)
    expected = x.std(axes).squeeze()
    np.testing.assert_allclose(std, np.where(expected < 1e-9, np.where(std < .5, expected, 1), expected), atol=1e-7)


@pytest.mark.parametrize('shape', [(70, 4, 4), (70, 3, 4, 4), (70, 5), (70,)])
def test_images_are_measured_as_floats_from_0_to_1_over_the_rows_given(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    rows = torch.arange(0, 70, 3)
    used = x[::3]/255
    axes = None if len(shape) == 3 else tuple(d for d in range(len(shape)) if d != 1)
    mean, std = mean_std(x, rows, most=100)
    np.testing.assert_allclose(mean, used.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(std, used.std(axes), rtol=1e-6)


def test_what_never_changes_has_a_deviation_of_1():
    x = np.array([[1., 5.], [3., 5.]])
    mean, std = mean_std(x)
    assert (mean.tolist(), std.tolist()) == ([2., 5.], [1., 1.])


@pytest.mark.parametrize(('x', 'said'), [([1, 2], 'needs floats or uint8 images, got torch.int64'),
                                         ([1., float('nan')], 'needs finite inputs'),
                                         ([[1., float('inf')]], 'needs finite inputs')])
def test_inputs_without_a_mean_are_an_error(x, said):
    with pytest.raises(ValueError, match=said): mean_std(torch.tensor(x))
