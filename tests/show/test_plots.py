"Plots: grids have room, images are drawn as they are, functions as curves."
import math

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from miniai.show.plots import get_grid, plot_func, show_image, show_images, subplots

few = settings(max_examples=20)


def drawn(ax):
    assert len(ax.images) == 1
    return np.asarray(ax.images[0].get_array())


@few
@given(st.integers(1, 14))
def test_get_grid_has_room_for_n_as_square_as_possible_with_unused_axes_off(n):
    fig, axs = get_grid(n, imsize=1)
    assert isinstance(axs, np.ndarray)
    rows, cols = axs.shape if axs.ndim == 2 else (1, axs.size)
    assert rows*cols >= n
    assert abs(rows - cols) <= 1
    assert (rows - 1)*cols < n
    assert rows*(cols - 1) < n
    assert [ax.axison for ax in axs.flat] == [i < n for i in range(axs.size)]
    plt.close(fig)


@few
@given(st.integers(1, 12), st.integers(1, 5), st.booleans())
def test_get_grid_has_the_given_rows_or_columns(n, given_number, by_rows):
    fig, axs = get_grid(n, **{'nrows' if by_rows else 'ncols': given_number}, imsize=1)
    other = math.ceil(n / given_number)
    assert axs.size == given_number*other
    shape = fig.axes[0].get_subplotspec().get_gridspec().get_geometry()
    assert shape == ((given_number, other) if by_rows else (other, given_number))
    assert sum(ax.axison for ax in axs.flat) == n
    plt.close(fig)


def test_get_grid_has_a_title_in_weight_and_size():
    fig, _ = get_grid(2, title='Two', weight='normal', size=9)
    assert fig.get_suptitle() == 'Two'
    assert (fig._suptitle.get_weight(), fig._suptitle.get_size()) == ('normal', 9)
    bold = get_grid(2, title='Two')[0]._suptitle
    assert (bold.get_weight(), bold.get_size()) == ('bold', 14)


def test_get_grid_says_that_rows_by_columns_has_no_room():
    with pytest.raises(ValueError, match='2 by 3 has no room for 7 images'): get_grid(7, nrows=2, ncols=3)
    assert get_grid(6, nrows=2, ncols=3)[1].shape == (2, 3)


def test_a_grid_of_no_image_is_an_error():
    for n in (0, -1):
        with pytest.raises(ValueError, match=f'at least one image, got n={n}'): get_grid(n)
    with pytest.raises(ValueError, match='at least one image, got n=0'): show_images([])


def test_subplots_has_imsize_inches_per_image_unless_figsize_is_given():
    assert tuple(subplots(2, 3)[0].get_size_inches()) == (9, 6)
    assert tuple(subplots(2, 3, imsize=1)[0].get_size_inches()) == (3, 2)
    assert tuple(subplots(2, 3, figsize=(5, 4))[0].get_size_inches()) == (5, 4)


def test_subplots_returns_an_array_of_axes_and_takes_suptitle_and_plts_arguments():
    fig, axs = subplots(suptitle='Head')
    assert isinstance(axs, np.ndarray)
    assert axs.size == 1
    assert fig.get_suptitle() == 'Head'
    assert subplots(2, 2)[0].get_suptitle() == ''
    _, (left, right) = subplots(1, 2, sharey=True)
    assert left.get_shared_y_axes().joined(left, right)
    assert subplots(1, 1, squeeze=False)[1].shape == (1, 1)


GRAY, RGB, RGBA = (torch.rand(s) for s in ((6, 7), (6, 7, 3), (6, 7, 4)))
IMAGES = dict(
    gray_tensor=(GRAY, GRAY), gray_1hw=(GRAY[None], GRAY), gray_hw1=(GRAY[..., None], GRAY),
    rgb_hwc=(RGB, RGB), rgb_chw=(RGB.permute(2, 0, 1), RGB),
    rgba_hwc=(RGBA, RGBA), rgba_chw=(RGBA.permute(2, 0, 1), RGBA),
    numpy_chw=(RGB.permute(2, 0, 1).numpy(), RGB), numpy_hwc=(RGB.numpy(), RGB), numpy_gray=(GRAY.numpy(), GRAY),
    bytes_chw=((RGB*255).byte().permute(2, 0, 1), (RGB*255).byte()),
    half=(RGB.half().permute(2, 0, 1), RGB.half().float()),
    bfloat16=(GRAY.bfloat16()[None], GRAY.bfloat16().float()),
    with_gradient=(GRAY[None].clone().requires_grad_(), GRAY),
    pil_gray=(Image.fromarray((GRAY*255).byte().numpy()), (GRAY*255).byte()),
    pil_rgb=(Image.fromarray((RGB*255).byte().numpy()), (RGB*255).byte()), nested_list=(GRAY.tolist(), GRAY),
    low_and_wide=(torch.rand(3, 2, 9).permute(1, 2, 0), None), high_and_narrow=(torch.rand(9, 2, 3), None))


@pytest.mark.parametrize('name', IMAGES)
def test_show_image_draws_the_pixels_as_they_are(name):
    im, pixels = IMAGES[name]
    np.testing.assert_allclose(drawn(show_image(im)), np.asarray(im if pixels is None else pixels), rtol=1e-6)


@pytest.mark.parametrize('size', [1, 2, 3, 4])
def test_show_image_drops_the_channel_of_a_tensor_of_any_size(size):
    kernel = torch.rand(1, size, size)
    np.testing.assert_allclose(drawn(show_image(kernel)), kernel[0])


@pytest.mark.parametrize('name', IMAGES)
def test_images_of_one_channel_are_gray_unless_cmap_is_given(name):
    im, _ = IMAGES[name]
    if drawn(ax := show_image(im)).ndim == 2: assert ax.images[0].get_cmap().name == 'gray'
    assert show_image(im, cmap='viridis').images[0].get_cmap().name == 'viridis'


def test_show_image_draws_on_the_given_axis_with_title_and_imshows_arguments():
    _, axs = subplots(1, 2)
    ax = show_image(GRAY, ax=axs[1], title='one', cmap='plasma', origin='lower')
    assert ax is axs[1]
    assert not axs[0].images
    assert ax.get_title() == 'one'
    assert (ax.images[0].get_cmap().name, ax.images[0].origin) == ('plasma', 'lower')


def test_show_image_makes_an_axis_of_figsize_without_ticks_and_frame():
    ax = show_image(GRAY, figsize=(2, 5))
    assert tuple(ax.figure.get_size_inches()) == (2, 5)
    assert not ax.axison
    framed = show_image(GRAY, noframe=False)
    assert framed.axison
    assert len(framed.get_xticks()) == len(framed.get_yticks()) == 0


def test_show_images_draws_each_with_its_title_and_switches_the_rest_off():
    show_images(torch.rand(3, 1, 6, 6), titles=['a', 'b'], title='all', imsize=1)
    axs = plt.gcf().axes
    assert [len(ax.images) for ax in axs] == [1, 1, 1, 0]
    assert [ax.get_title() for ax in axs] == ['a', 'b', '', '']
    assert not axs[3].axison
    assert plt.gcf().get_suptitle() == 'all'


def test_show_images_takes_rows_and_columns():
    show_images([GRAY, GRAY], 2, 1)
    assert plt.gcf().axes[0].get_subplotspec().get_gridspec().get_geometry() == (2, 1)


@pytest.mark.parametrize('titles', [('a', 'b'), np.array(['a', 'b']), {'a': 1, 'b': 2}, iter(['a', 'b', 'c'])],
                         ids=['tuple', 'numpy', 'dict', 'one too many'])
def test_titles_may_be_any_iterable(titles):
    show_images([GRAY, GRAY], titles=titles)
    assert [ax.get_title() for ax in plt.gcf().axes] == ['a', 'b']


def test_plot_func_draws_f_over_steps_points_with_axes_through_the_origin():
    plot_func(torch.sin, start=-2., end=3., steps=11)
    curve, *axes = plt.gca().lines
    x = np.linspace(-2, 3, 11)
    np.testing.assert_allclose(curve.get_xdata(), x, rtol=1e-6)
    np.testing.assert_allclose(curve.get_ydata(), np.sin(x), rtol=1e-5)
    spans = [(list(np.unique(a.get_xdata())), list(np.unique(a.get_ydata()))) for a in axes]
    assert spans == [([0, 1], [0]), ([0], [0, 1])]


def test_plot_func_takes_modules_with_parameters():
    plot_func(torch.nn.PReLU())
    curve = plt.gca().lines[0]
    assert len(curve.get_xdata()) == 100
    np.testing.assert_allclose(curve.get_ydata()[0], -5*.25, rtol=1e-6)
