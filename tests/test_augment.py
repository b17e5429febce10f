"Augmentation by the batch, and the Learner's methods that look without training."
import random

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

import miniai.augment
import miniai.callbacks.capture
import miniai.diagnosis.summary
from miniai.activations import set_seed
from miniai.augment import RandCopy, RandErase, rand_copy, rand_erase
from miniai.learner import Learner
from small import learner, same, weights

sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))
pcts = st.floats(.05, 1.)
seeds = st.integers(0, 10**6)
FUNCTIONS = pytest.mark.parametrize('f', [rand_erase, rand_copy])


def noise(shape): return torch.from_numpy(np.random.default_rng(0).normal(size=shape)).float()


def seeded(f, seed, *args, **kwargs):
    set_seed(seed)
    return f(*args, **kwargs)


@FUNCTIONS
@given(sizes, pcts, st.integers(0, 5), seeds)
def test_patches_keep_shape_dtype_and_range_are_made_in_place_and_repeat_under_a_seed(f, size, pct, max_num, seed):
    x = noise(size)
    assume(x.numel() > 1)
    out = seeded(f, seed, y := x.clone(), pct, max_num)
    assert out is y
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert out.min() >= x.min()
    assert out.max() <= x.max()
    assert torch.equal(seeded(f, seed, x.clone(), pct, max_num), out)


@FUNCTIONS
@given(sizes, pcts, st.integers(0, 5), seeds)
def test_at_most_max_num_rectangles_change_each_pct_of_the_sides(f, size, pct, max_num, seed):
    x = noise(size)
    assume(x.numel() > 1)
    changed = (seeded(f, seed, x.clone(), pct, max_num) != x).any(0).any(0)
    assert changed.sum() <= max_num*int(pct*size[2])*int(pct*size[3])


@FUNCTIONS
@given(st.floats(.2, .9), seeds)
def test_one_patch_is_a_rectangle_at_the_same_place_in_every_image(f, pct, seed):
    x = noise((3, 2, 10, 15))
    extreme = (x == x.min()) | (x == x.max())       # clamped noise may hit these two again
    changed = seeded(f, seed, x.clone(), pct, 1) != x
    if f is rand_erase: assert ((changed == changed.any(0).any(0)) | extreme).all()
    changed = changed.any(0).any(0)
    rows, cols = changed.any(1), changed.any(0)
    assert torch.equal(changed, rows[:, None] & cols)
    if changed.any():
        assert (rows.sum(), cols.sum()) == (int(pct*10), int(pct*15)) or f is rand_copy
        for line in (rows, cols): assert line.nonzero().diff(dim=0).eq(1).all()


@given(sizes, pcts, seeds)
def test_rand_copy_puts_there_pixels_of_the_same_image_and_channel(size, pct, seed):
    x = noise(size)
    out = seeded(rand_copy, seed, x.clone(), pct)
    for new, old in zip(out.flatten(0, 1), x.flatten(0, 1), strict=True):
        assert set(new.flatten().tolist()) <= set(old.flatten().tolist())


def test_rand_copy_moves_a_patch_whole_even_over_itself():
    x = torch.arange(100.).reshape(1, 1, 10, 10)
    moved = 0
    for seed in range(20):
        changed = (out := seeded(rand_copy, seed, x.clone(), .7, 1)) != x
        moved += bool(changed.any())
        shift = (out - x)[changed]
        assert len(shift.unique()) <= 1  # every pixel comes from the same distance away
    assert moved > 5


def test_rand_copy_takes_bytes_too():
    x = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    assert seeded(rand_copy, 1, x.clone(), .5).dtype == torch.uint8


def test_rand_erase_puts_there_noise_of_the_batch_s_mean_and_deviation():
    x = noise((20, 1, 40, 40))*2 + 3
    out = next(o for s in range(9) if not torch.equal(o := seeded(rand_erase, s, x.clone(), 1., 1), x))
    assert (out != x).float().mean() > .99
    assert out.mean().item() == pytest.approx(x.mean().item(), abs=.1)
    assert out.std().item() == pytest.approx(x.std().item(), abs=.1)


def test_the_number_of_patches_takes_every_value_from_none_to_max_num():
    areas = set()
    for seed in range(60):
        x = torch.arange(40.**2).reshape(1, 1, 40, 40)
        areas.add(-(-(seeded(rand_erase, seed, x.clone(), .05, 2) != x).sum().item() // 4))
    assert areas == {0, 1, 2}


@FUNCTIONS
def test_max_num_0_changes_nothing(f):
    x = noise((2, 1, 5, 5))
    assert torch.equal(f(x.clone(), max_num=0), x)


@FUNCTIONS
def test_what_is_no_batch_of_images_or_no_share_is_an_error(f):
    said = r'must have shape \(N, C, H, W\), got \(28, 28\)'
    with pytest.raises(ValueError, match=said): f(torch.rand(28, 28))
    for pct in (0, -.1, 1.5):
        said = rf"share of the image's, must be in \(0, 1\], got {pct}"
        with pytest.raises(ValueError, match=said): f(noise((1, 1, 4, 4)), pct)


@pytest.mark.parametrize(('layer', 'f'), [(RandErase, rand_erase), (RandCopy, rand_copy)])
def test_the_layers_are_the_functions(layer, f):
    x = noise((2, 3, 12, 12))
    m = layer(.3, 5)
    assert isinstance(m, nn.Module)
    assert (m.pct, m.max_num) == (.3, 5)
    for seed in range(5): assert torch.equal(seeded(m, seed, x.clone()), seeded(f, seed, x.clone(), .3, 5))
    assert (layer().pct, layer().max_num) == (.2, 4)
    out = layer(generator=torch.Generator().manual_seed(1))(x.clone())
    assert torch.equal(out, f(x.clone(), generator=torch.Generator().manual_seed(1)))


def test_patches_draw_their_places_from_random_so_that_set_seed_repeats_them():
    random.seed(3)
    first = rand_copy(noise((1, 1, 9, 9)), .5)
    random.seed(3)
    assert torch.equal(rand_copy(noise((1, 1, 9, 9)), .5), first)


def drawn_by_hand(f, x, pct, max_num, rand, randn):
    "What `f` does, by its own description: the number of patches, then each one's top and left, a copy's source first."
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


@FUNCTIONS
def test_without_a_generator_the_draws_are_those_of_random_and_of_torchs_own(f):
    for seed in range(10):
        set_seed(seed)
        want = drawn_by_hand(f, noise((2, 3, 12, 15)), .4, random.randint(0, 4), random.random, torch.randn_like)
        assert torch.equal(seeded(f, seed, noise((2, 3, 12, 15)), .4), want)


@FUNCTIONS
def test_a_generator_draws_everything_and_leaves_the_others_alone(f):
    def g(seed): return torch.Generator().manual_seed(seed)
    states = random.getstate(), torch.get_rng_state()
    for seed in range(10):
        rng = g(seed)
        def rand(rng=rng): return torch.rand((), generator=rng).item()
        want = drawn_by_hand(f, noise((2, 3, 12, 15)), .4, int(rand()*5), rand,
                             lambda p, rng=rng: torch.randn(p.shape, generator=rng))
        assert torch.equal(f(noise((2, 3, 12, 15)), .4, generator=g(seed)), want)
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])


@FUNCTIONS
@given(sizes, st.sampled_from([torch.float64, torch.float16, torch.bfloat16]), seeds,
       st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_patches_keep_any_float_type_and_memory_format(f, size, dtype, seed, fmt):
    x = noise(size).to(dtype).contiguous(memory_format=fmt)
    strides, low, high = x.stride(), x.min(), x.max()
    f(x, .7, generator=torch.Generator().manual_seed(seed))
    assert (x.dtype, x.stride()) == (dtype, strides)
    assert (x.min() >= low, x.max() <= high) == (True, True)


@FUNCTIONS
def test_a_single_pixel_stays_and_an_empty_batch_too(f):
    for seed in range(5): assert seeded(f, seed, torch.full((1, 1, 1, 1), 3.), 1., 3).item() == 3.
    assert seeded(f, 0, torch.zeros(0, 1, 5, 5)).shape == (0, 1, 5, 5)


def test_rand_erase_of_bytes_is_an_error_that_says_what_to_do():
    with pytest.raises(TypeError, match=r'needs a batch of floats, got torch\.uint8: use x\.float\(\)'):
        rand_erase(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))


# The Learner's methods, by the names that user code imports

def image_learner():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2*36, 3))
    learn = learner(model=model)
    g = torch.Generator().manual_seed(0)
    batch = lambda n: (torch.rand(n, 1, 6, 6, generator=g), torch.randint(0, 3, (n,), generator=g))  # noqa: E731
    learn.dls.train, learn.dls.valid = [batch(12), batch(12)], [batch(7), batch(4)]
    return learn


def test_the_learner_s_methods_are_these_functions():
    for name in ('summary', 'show_image_batch', 'capture_preds'):
        home = miniai.diagnosis.summary if name == 'summary' else miniai.callbacks.capture
        assert getattr(Learner, name) is getattr(miniai.augment, name) is getattr(home, name)
    assert miniai.augment.CapturePreds is miniai.callbacks.capture.CapturePreds


def test_capture_preds_gives_predictions_and_targets_of_the_whole_valid_set_and_inputs():
    learn = image_learner()
    before = weights(learn)
    xs, ys = (torch.cat(b) for b in zip(*learn.dls.valid, strict=True))
    preds, targets = learn.capture_preds()
    torch.testing.assert_close(preds, learn.model(xs).detach())
    assert torch.equal(targets, ys)
    assert torch.equal(learn.capture_preds(inps=True)[2], xs)
    assert same(weights(learn), before)


def test_summary_totals_parameters_and_multiply_adds():
    learn = image_learner()
    before = weights(learn)
    table = learn.summary()
    assert table.params == 2*9 + 2 + 72*3 + 3
    assert table.mflops == pytest.approx((2*9*36 + 72*3)/1e6, rel=.02)
    assert all(name in str(table) for name in ('Conv2d', 'ReLU', 'Flatten', 'Linear', '(12, 1, 6, 6)', '(12, 3)'))
    assert same(weights(learn), before)


def test_show_image_batch_draws_max_n_of_the_first_training_batch():
    learn = image_learner()
    before = weights(learn)
    learn.show_image_batch(max_n=4, imsize=.5)
    shown = [ax.images[0].get_array() for ax in plt.gcf().axes if ax.images]
    assert len(shown) == 4
    for im, x in zip(shown, learn.dls.train[0][0], strict=False): np.testing.assert_allclose(im, x[0])
    assert same(weights(learn), before)
