"Images mirrored and shifted, each by its own draw: against loops over images, and torch's own padding."
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai.augment import RandCrop, RandFlip, RandTranslate, mirror, rand_crop, rand_flip, rand_translate

fewer = settings(max_examples=60)
sizes = st.tuples(st.integers(0, 5), st.sampled_from([1, 3]), st.integers(1, 13), st.integers(1, 13))
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64])
formats = st.sampled_from([torch.contiguous_format, torch.channels_last])
seeds = st.integers(0, 10**6)
moves = st.one_of(st.builds(lambda p: partial(rand_flip, p=p), st.floats(0, 1)),
                  st.builds(lambda pad, mode: partial(rand_crop, pad=pad, mode=mode), st.integers(0, 6),
                            st.sampled_from(['replicate', 'constant'])),
                  st.just(partial(rand_crop, pad=0)),
                  st.builds(lambda most, mode: partial(rand_translate, most=most, mode=mode), st.floats(0, .99),
                            st.sampled_from(['reflect', 'replicate', 'constant'])))


def seeded(seed): return torch.Generator().manual_seed(seed)
def pictures(size, dtype=torch.float32, seed=0):
    return torch.randint(3, 250, size, generator=seeded(seed)).to(dtype)


@fewer
@given(moves, sizes, dtypes, formats, seeds)
def test_moves_keep_shape_dtype_format_and_range_leave_their_input_and_repeat_under_a_seed(f, size, dtype, fmt, seed):
    x = pictures(size, dtype).contiguous(memory_format=fmt)
    before = x.clone()
    out = f(x, generator=seeded(seed))
    assert torch.equal(x, before)
    assert out is not x
    assert (out.shape, out.dtype, out.device) == (x.shape, x.dtype, x.device)
    assert out.is_contiguous(memory_format=fmt)
    assert out.is_contiguous() == x.is_contiguous()
    if x.numel(): assert (out.min() >= x.min(), out.max() <= x.max()) == (True, True)
    assert torch.equal(f(x, generator=seeded(seed)), out)
    torch.manual_seed(seed)
    assert torch.equal(f(x), out)


def shifts_of(x, most, seed):
    "What a uniform draw of a row shift, then of a column shift, gives each image."
    g = seeded(seed)
    dy, dx = (torch.randint(-m, m + 1, (len(x), 1), generator=g).flatten().tolist() for m in most)
    return zip(dy, dx, strict=True)


def shifted_slowly(im, dy, dx, beyond):
    "The image (C, H, W) whose pixel (i, j) is `beyond(im, i + dy, j + dx)`."
    h, w = im.shape[1:]
    return torch.stack([torch.stack([beyond(im, i + dy, j + dx) for j in range(w)], -1) for i in range(h)], -2)


def clamped(im, i, j): return im[:, min(max(i, 0), im.shape[1] - 1), min(max(j, 0), im.shape[2] - 1)]
def filled(im, i, j, fill):
    inside = 0 <= i < im.shape[1] and 0 <= j < im.shape[2]
    return im[:, i, j] if inside else fill


@settings(max_examples=25)
@given(st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 7), st.integers(1, 7)), st.floats(0, 1),
       dtypes, seeds)
def test_a_shift_is_that_of_a_slow_loop_over_images_and_pixels(size, most, dtype, seed):
    x = pictures(size, dtype)
    pixels = int(most*size[2]), int(most*size[3])
    black = x.transpose(0, 1).flatten(1).min(1).values
    nines = x.new_tensor(9).expand(size[1])
    for kwargs, beyond in ((dict(mode='replicate'), clamped), (dict(fill=9), partial(filled, fill=nines)),
                           (dict(), partial(filled, fill=black))):
        slow = [shifted_slowly(im, *d, beyond) for im, d in zip(x, shifts_of(x, pixels, seed), strict=True)]
        assert torch.equal(rand_translate(x, most, generator=seeded(seed), **kwargs), torch.stack(slow))


@fewer
@given(st.integers(1, 6), st.sampled_from([1, 3]), st.integers(7, 15), st.integers(7, 15), st.integers(0, 6),
       st.sampled_from(['reflect', 'replicate', 'constant']), seeds)
def test_a_crop_is_a_window_of_what_torch_pads(n, c, h, w, pad, mode, seed):
    x = pictures((n, c, h, w))
    padded = F.pad(x, (pad,)*4, mode=mode, **(dict(value=-1.5) if mode == 'constant' else {}))
    windows = [im[:, pad + dy:pad + dy + h, pad + dx:pad + dx + w]
               for im, (dy, dx) in zip(padded, shifts_of(x, (pad, pad), seed), strict=True)]
    fill = -1.5 if mode == 'constant' else None
    assert torch.equal(rand_crop(x, pad, mode, fill, generator=seeded(seed)), torch.stack(windows))


@fewer
@given(st.floats(0, 1), sizes, seeds)
def test_a_flip_is_that_of_a_slow_loop_over_images(p, size, seed):
    x = pictures(size)
    draws = torch.rand(size[0], generator=seeded(seed)).tolist()
    slow = [torch.stack([im[..., j] for j in reversed(range(size[3]))], -1) if u < p else im
            for im, u in zip(x, draws, strict=True)]
    out = rand_flip(x, p, generator=seeded(seed))
    assert len(out) == len(slow)
    assert all(map(torch.equal, out, slow))


def test_a_mirror_image_of_a_mirror_image_is_the_image():
    x = pictures((2, 3, 4, 5))
    assert mirror(x)[0, 1, 2].tolist() == x[0, 1, 2].tolist()[::-1]
    assert torch.equal(mirror(mirror(x)), x)


@pytest.mark.parametrize('p', [0, .25, 1])
def test_images_are_flipped_with_probability_p(p):
    x = torch.tensor([0., 1.]).expand(20_000, 1, 1, 2)
    share = rand_flip(x, p, generator=seeded(1))[:, 0, 0, 0].mean().item()
    assert share == p if p in (0, 1) else abs(share - p) < 4*(p*(1 - p)/20_000)**.5


@pytest.mark.parametrize('f', [partial(rand_crop, pad=2), partial(rand_translate, most=.4, mode='replicate')])
def test_every_shift_is_as_likely_rows_and_columns_apart(f):
    places = torch.arange(25.).view(1, 1, 5, 5).expand(50_000, 1, 5, 5)
    centres = f(places, generator=seeded(2))[:, 0, 2, 2].long()
    counts = torch.bincount(centres, minlength=25)
    chi2 = ((counts - 2000)**2/2000).sum().item()
    assert chi2 < 51                                    # 24 degrees of freedom: exceeded once in a thousand


def test_black_is_each_channels_smallest_value_in_the_batch():
    x = pictures((4, 2, 6, 6)).sub(100) * torch.tensor([1., .1])[:, None, None]
    out = rand_translate(x, 1., generator=seeded(0))
    for c in range(2): assert out[:, c].min() == x[:, c].min()
    assert (out[:, 0] == x[:, 0].min()).float().mean() > .2
    assert (out[:, 1] == x[:, 1].min()).float().mean() > .2


def test_a_part_of_a_larger_tensor_is_moved_like_a_copy_of_it():
    x = pictures((4, 3, 9, 9))[:, ::2, 1:, ::2]
    for f in (rand_flip, partial(rand_crop, pad=2), rand_translate):
        assert torch.equal(f(x, generator=seeded(5)), f(x.contiguous(), generator=seeded(5)))


def test_gradients_flow_back_to_the_pixels_they_came_from():
    x = pictures((3, 1, 4, 4), torch.float64).requires_grad_()
    for f in (rand_flip, partial(rand_crop, pad=2), partial(rand_translate, most=.5, fill=0)):
        assert torch.autograd.gradcheck(lambda x, f=f: f(x, generator=seeded(1)), x)


@pytest.mark.parametrize(('f', 'says'), [
    (partial(rand_flip, p=1.5), r'p, the probability of a mirror image, must be in \[0, 1\], got 1.5'),
    (partial(rand_crop, pad=-1), 'pad must be a whole number, 0 or more, got -1'),
    (partial(rand_crop, pad=1.5), 'pad must be a whole number, 0 or more, got 1.5'),
    (partial(rand_crop, mode='wrap'), "one of reflect, replicate, constant, got 'wrap'"),
    (partial(rand_crop, fill=0), "fill is for mode='constant', and mode is 'reflect'"),
    (partial(rand_crop, pad=4), "images of 4 by 5 were to move by up to 4 and 4 pixels.*mode='replicate'"),
    (partial(rand_translate, most=2), r"share of the image's sides, must be in \[0, 1\], got 2"),
    (partial(rand_translate, most=1., mode='reflect'), 'up to 4 and 5 pixels')])
def test_a_bad_argument_is_an_error_that_says_so(f, says):
    with pytest.raises(ValueError, match=says): f(pictures((2, 1, 4, 5)))


@pytest.mark.parametrize('f', [mirror, rand_flip, rand_crop, rand_translate])
def test_what_is_no_batch_of_images_is_an_error(f):
    with pytest.raises(ValueError, match=r'must have shape \(N, C, H, W\), got \(28, 28\)'): f(torch.rand(28, 28))


@pytest.mark.parametrize(('layer', 'f'), [
    (partial(RandFlip, .3), partial(rand_flip, p=.3)),
    (partial(RandCrop, 2, 'constant', .5), partial(rand_crop, pad=2, mode='constant', fill=.5)),
    (partial(RandTranslate, .2, 'replicate'), partial(rand_translate, most=.2, mode='replicate'))])
def test_the_layers_are_the_functions_and_keep_their_generator(layer, f):
    x, g = pictures((6, 3, 12, 12)), seeded(1)
    m = layer(generator=seeded(1))
    assert isinstance(m, nn.Module)
    for _ in range(3): assert torch.equal(m(x), f(x, generator=g))
    torch.manual_seed(7)
    out = layer()(x)
    torch.manual_seed(7)
    assert torch.equal(out, f(x))


def test_layers_of_no_arguments_are_the_functions_defaults():
    x = pictures((6, 3, 12, 12))
    for layer, f in ((RandFlip, rand_flip), (RandCrop, rand_crop), (RandTranslate, rand_translate)):
        assert torch.equal(layer(generator=seeded(3))(x), f(x, generator=seeded(3)))
