"Batches from memory: each sample once an epoch, in an order of (seed, epoch) alone."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai.data import DataLoaders, ImageSet, MemoryLoader, image_loaders
from miniai.data.fmnist import CLASSES, MEAN, STD

seeds = st.integers(-2**40, 2**40)


def images(n): return (torch.arange(n*4) % 256).to(torch.uint8).reshape(n, 2, 2), torch.arange(n)


def labels(loader): return [y.tolist() for _, y in loader]
def order(batches): return [i for b in batches for i in b]


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 17), seeds, st.booleans())
def test_every_sample_comes_exactly_once_an_epoch_in_batches_of_bs(n, bs, seed, shuffle):
    loader = MemoryLoader(*images(n), bs, shuffle, seed)
    for _ in range(2):
        batches = labels(loader)
        assert sorted(order(batches)) == list(range(n))
        assert [len(b) for b in batches] == [bs]*(n // bs) + [n % bs]*(n % bs > 0)
        assert len(loader) == len(batches)
        if not shuffle: assert order(batches) == list(range(n))


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 17), seeds, st.integers(0, 9))
def test_the_order_depends_on_seed_and_epoch_alone(n, bs, other_bs, seed, global_seed):
    a, b = MemoryLoader(*images(n), bs, True, seed), MemoryLoader(*images(n), other_bs, True, seed)
    first = [order(labels(a)) for _ in range(3)]
    torch.manual_seed(global_seed)
    next(iter(b))  # an epoch that is left after a batch counts as one
    assert [order(labels(b)) for _ in range(2)] == first[1:]


def test_epochs_and_seeds_differ_in_order():
    loaders = [MemoryLoader(*images(50), 8, True, seed) for seed in (0, 1, -1)]
    assert len({tuple(order(labels(loader))) for loader in loaders*3}) == 9


def test_shuffling_draws_no_random_number_of_the_user_s():
    before = torch.get_rng_state()
    list(MemoryLoader(*images(10), 3, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@settings(deadline=None)
@given(st.floats(-1, 1, width=32), st.floats(.125, 2, width=32))
def test_images_become_floats_from_0_to_1_less_mean_over_std_with_a_channel(mean, std):
    x, y = images(70)
    (xb, yb), = MemoryLoader(x, y, 70, mean=mean, std=std)
    assert (xb.dtype, xb.shape) == (torch.float32, (70, 1, 2, 2))
    torch.testing.assert_close(xb.double()[:, 0], (x.double()/255 - mean)/std, rtol=1e-5, atol=1e-6)
    assert torch.equal(yb, y)


def test_images_in_memory_stay_as_they_came():
    x, y = images(10)
    kept = x.clone()
    for xb, _ in MemoryLoader(x, y, 3, shuffle=True, mean=.3, std=.2): xb.zero_()
    assert torch.equal(x, kept)


def test_inputs_stay_with_their_targets():
    x, y = images(64)
    for xb, yb in MemoryLoader(x, y, 5, shuffle=True): assert torch.equal((xb[:, 0]*255).round().to(torch.uint8), x[yb])


def test_a_batch_size_below_1_or_unequal_lengths_are_errors():
    x, y = images(4)
    with pytest.raises(ValueError, match='the batch size must be 1 or more, got 0'): MemoryLoader(x, y, 0)
    said = 'inputs and targets must have the same length, got 4 and 3'
    with pytest.raises(ValueError, match=said): MemoryLoader(x, y[:3], 2)


def test_image_loaders_shuffle_training_by_seed_and_keep_validation_in_order_twice_as_large():
    x, y = torch.randint(0, 256, (30, 28, 28), dtype=torch.uint8), torch.arange(30)
    dls = image_loaders(ImageSet(x, y, x[:20], y[:20], CLASSES, 'here'), 8, seed=3)
    assert isinstance(dls, DataLoaders)
    assert labels(dls.valid) == [list(range(16)), list(range(16, 20))]
    assert labels(dls.train) == labels(MemoryLoader(x, y, 8, shuffle=True, seed=3))
    for dl in (dls.train, dls.valid):
        xb, yb = next(iter(dl))
        torch.testing.assert_close(xb, (x[yb][:, None]/255 - MEAN)/STD)
