"Image augmentation, against slow loops over images and pixels, and torch's own padding."
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from miniai.images import (
    RandCopy,
    RandCrop,
    RandErase,
    RandFlip,
    RandTranslate,
    mirror,
    rand_copy,
    rand_crop,
    rand_erase,
    rand_flip,
    rand_translate,
)
from miniai.randomness import set_seed

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


def test_mirroring_twice_gives_the_image_back():
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
    centers = f(places, generator=seeded(2))[:, 0, 2, 2].long()
    counts = torch.bincount(centers, minlength=25)
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
    (partial(rand_flip, p=1.5), r'p \(the probability of a flip\) must be in \[0, 1\], got 1.5'),
    (partial(rand_crop, pad=-1), 'pad must be an integer of at least 0, got -1'),
    (partial(rand_crop, pad=1.5), 'pad must be an integer of at least 0, got 1.5'),
    (partial(rand_crop, mode='wrap'), "one of reflect, replicate, constant, got 'wrap'"),
    (partial(rand_crop, fill=0), "fill needs mode='constant', got mode='reflect'"),
    (partial(rand_crop, pad=4), "images of 4 by 5 pixels by up to 4 and 4: .*mode='replicate'"),
    (partial(rand_translate, most=2), r"share of the image's sides\) must be in \[0, 1\], got 2"),
    (partial(rand_translate, most=1., mode='reflect'), 'up to 4 and 5: ')])
def test_a_bad_argument_is_an_error_that_says_so(f, says):
    with pytest.raises(ValueError, match=says): f(pictures((2, 1, 4, 5)))


@pytest.mark.parametrize('f', [mirror, rand_flip, rand_crop, rand_translate, rand_erase, rand_copy])
def test_anything_but_a_batch_of_images_is_an_error(f):
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
    assert torch.equal(under_seed(layer(), 7, x), under_seed(f, 7, x))


@pytest.mark.parametrize(('layer', 'f'), [(RandFlip, rand_flip), (RandCrop, rand_crop),
                                          (RandTranslate, rand_translate)])
def test_layers_and_functions_have_the_same_defaults(layer, f):
    x = pictures((6, 3, 12, 12))
    assert torch.equal(layer(generator=seeded(3))(x), f(x, generator=seeded(3)))


# Patches

PATCHES = pytest.mark.parametrize('f', [rand_erase, rand_copy])
patch_sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))


def noise(size): return torch.from_numpy(np.random.default_rng(0).normal(size=size)).float()


def under_seed(f, seed, *args):
    set_seed(seed)
    return f(*args)


@PATCHES
@given(patch_sizes, st.floats(.05, 1.), st.integers(0, 5), seeds, formats,
       st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
def test_patches_are_in_place_keep_type_format_and_range_and_repeat_under_a_seed(f, size, pct, n, seed, fmt, dtype):
    x = noise(size).to(dtype).contiguous(memory_format=fmt)
    y, strides = x.clone(), x.stride()
    assert under_seed(f, seed, y, pct, n) is y
    assert (y.shape, y.dtype, y.stride()) == (x.shape, dtype, strides)
    assert (y.min() >= x.min(), y.max() <= x.max()) == (True, True)
    assert torch.equal(under_seed(f, seed, x.clone(), pct, n), y)


@PATCHES
@given(st.floats(.2, .9), seeds)
def test_one_patch_is_a_rectangle_at_the_same_place_in_every_image(f, pct, seed):
    x = noise((3, 2, 10, 15))
    extreme = (x == x.min()) | (x == x.max())       # clamped noise may hit these two again
    changed = under_seed(f, seed, x.clone(), pct, 1) != x
    if f is rand_erase: assert ((changed == changed.any(0).any(0)) | extreme).all()
    changed = changed.any(0).any(0)
    rows, cols = changed.any(1), changed.any(0)
    assert torch.equal(changed, rows[:, None] & cols)
    if changed.any():
        assert (rows.sum(), cols.sum()) == (int(pct*10), int(pct*15)) or f is rand_copy
        for line in (rows, cols): assert line.nonzero().diff(dim=0).eq(1).all()


def test_rand_copy_moves_a_whole_patch_even_onto_itself():
    x = torch.arange(100.).reshape(1, 1, 10, 10)
    moved = 0
    for seed in range(20):
        changed = (out := under_seed(rand_copy, seed, x.clone(), .7, 1)) != x
        moved += bool(changed.any())
        assert len((out - x)[changed].unique()) <= 1  # every pixel comes from the same distance away
    assert moved > 5


def test_rand_erase_fills_with_noise_of_the_batchs_mean_and_deviation():
    x = noise((20, 1, 40, 40))*2 + 3
    out = next(o for s in range(9) if not torch.equal(o := under_seed(rand_erase, s, x.clone(), 1., 1), x))
    assert (out != x).float().mean() > .99
    assert out.mean().item() == pytest.approx(x.mean().item(), abs=.1)
    assert out.std().item() == pytest.approx(x.std().item(), abs=.1)


@pytest.mark.parametrize('max_num', [0, 2])
def test_the_number_of_patches_takes_every_value_from_0_to_max_num(max_num):
    areas = set()
    for seed in range(60):
        x = torch.arange(40.**2).reshape(1, 1, 40, 40)
        areas.add(-(-(under_seed(rand_erase, seed, x.clone(), .05, max_num) != x).sum().item() // 4))
    assert areas == set(range(max_num + 1))


def drawn_by_hand(f, x, pct, max_num, rand, randn):
    "What `f` promises: the number of patches, then the top and left of each one; for a copy, the source's first."
    mean, std, low, high = x.mean(), x.std(), x.min(), x.max()
    size = [int(pct*n) for n in x.shape[2:]]
    def span(n, m): return slice(a := int(rand()*(1 - pct)*n), a + m)
    def patch(): return tuple(map(span, x.shape[2:], size))
    for _ in range(max_num):
        if f is rand_copy: source, target = patch(), patch()
        else: target = patch()
        new = x[..., *source].clone() if f is rand_copy else (randn(x[..., *target])*std + mean).clamp(low, high)
        x[..., *target] = new
    return x


@PATCHES
def test_without_a_generator_numbers_come_from_random_and_noise_from_torch(f):
    for seed in range(10):
        set_seed(seed)
        want = drawn_by_hand(f, noise((2, 3, 12, 15)), .4, random.randint(0, 4), random.random, torch.randn_like)
        assert torch.equal(under_seed(f, seed, noise((2, 3, 12, 15)), .4), want)


@PATCHES
def test_a_generator_draws_everything_and_the_global_ones_are_not_used(f):
    states = random.getstate(), torch.get_rng_state()
    for seed in range(10):
        rng = seeded(seed)
        def rand(rng=rng): return torch.rand((), generator=rng).item()
        want = drawn_by_hand(f, noise((2, 3, 12, 15)), .4, int(rand()*5), rand,
                             lambda p, rng=rng: torch.randn(p.shape, generator=rng))
        assert torch.equal(f(noise((2, 3, 12, 15)), .4, generator=seeded(seed)), want)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


@PATCHES
def test_a_single_pixel_stays_and_so_does_an_empty_batch(f):
    for seed in range(5): assert under_seed(f, seed, torch.full((1, 1, 1, 1), 3.), 1., 3).item() == 3.
    assert f(torch.zeros(0, 1, 5, 5)).shape == (0, 1, 5, 5)


@PATCHES
def test_a_bad_share_is_an_error(f):
    for pct in (0, -.1, 1.5):
        said = rf"share of the image's\) must be in \(0, 1\], got {pct}"
        with pytest.raises(ValueError, match=said): f(noise((1, 1, 4, 4)), pct)


def test_rand_copy_accepts_bytes_and_rand_erase_says_what_to_do_with_them():
    x = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert under_seed(rand_copy, 1, x.clone(), .5).dtype == torch.uint8
    said = r'needs a batch of floats, got torch\.uint8: use x\.float\(\)'
    with pytest.raises(TypeError, match=said): rand_erase(x)


@pytest.mark.parametrize(('layer', 'f'), [(RandErase, rand_erase), (RandCopy, rand_copy)])
def test_the_layers_of_patches_are_the_functions(layer, f):
    x, m = noise((2, 3, 12, 12)), layer(.3, 5)
    assert isinstance(m, nn.Module)
    for seed in range(5): assert torch.equal(under_seed(m, seed, x.clone()), under_seed(f, seed, x.clone(), .3, 5))
    assert (layer().pct, layer().max_num) == (.2, 4)
    assert torch.equal(layer(generator=seeded(1))(x.clone()), f(x.clone(), generator=seeded(1)))
