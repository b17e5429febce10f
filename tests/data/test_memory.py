"Batches from memory: each sample once an epoch, in an order of (seed, epoch) alone."
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniai.data import MemoryLoader
from miniai.data.memory import as_tensors, permutation

seeds = st.integers(-2**40, 2**40)


def images(n): return (torch.arange(n*4) % 256).to(torch.uint8).reshape(n, 2, 2), torch.arange(n)


def labels(loader): return [y.tolist() for _, y in loader]
def order(batches): return [i for b in batches for i in b]


@given(st.integers(0, 40), st.integers(1, 17), seeds, st.booleans())
def test_every_sample_comes_exactly_once_an_epoch_in_batches_of_bs(n, bs, seed, shuffle):
    loader = MemoryLoader(*images(n), bs=bs, shuffle=shuffle, seed=seed)
    for _ in range(2):
        batches = labels(loader)
        assert sorted(order(batches)) == list(range(n))
        assert [len(b) for b in batches] == [bs]*(n // bs) + [n % bs]*(n % bs > 0)
        assert len(loader) == len(batches)
        if not shuffle: assert order(batches) == list(range(n))


@given(st.integers(1, 40), st.integers(1, 17), st.integers(1, 17), seeds, st.integers(0, 9))
def test_the_order_depends_on_seed_and_epoch_alone(n, bs, other_bs, seed, global_seed):
    a, b = (MemoryLoader(*images(n), bs=k, shuffle=True, seed=seed) for k in (bs, other_bs))
    first = [order(labels(a)) for _ in range(3)]
    torch.manual_seed(global_seed)
    next(iter(b))  # an epoch that is left after a batch counts as one
    assert [order(labels(b)) for _ in range(2)] == first[1:]


def test_epochs_and_seeds_differ_in_order():
    loaders = [MemoryLoader(*images(50), bs=8, shuffle=True, seed=seed) for seed in (0, 1, -1)]
    assert len({tuple(order(labels(loader))) for loader in loaders*3}) == 9


def test_shuffling_draws_no_random_number_of_the_user_s():
    before = torch.get_rng_state()
    list(MemoryLoader(*images(10), bs=3, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@given(st.floats(-1, 1, width=32), st.floats(.125, 2, width=32))
def test_images_become_floats_from_0_to_1_less_mean_over_std_with_a_channel(mean, std):
    x, y = images(70)
    (xb, yb), = MemoryLoader(x, y, bs=70, mean=mean, std=std)
    assert (xb.dtype, xb.shape) == (torch.float32, (70, 1, 2, 2))
    torch.testing.assert_close(xb.double()[:, 0], (x.double()/255 - mean)/std, rtol=1e-5, atol=1e-6)
    assert torch.equal(yb, y)


@pytest.mark.parametrize('dtype', [torch.uint8, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize('given', [{}, dict(mean=.3, std=.2)])
@pytest.mark.parametrize('shuffle', [True, False])
def test_arrays_in_memory_stay_as_they_came_whatever_is_done_to_a_batch(dtype, given, shuffle):
    if dtype == torch.int64: given = {}
    x, y = images(10)
    x = x.to(dtype)
    kept = x.clone(), y.clone()
    for xb, yb in MemoryLoader(x, y, bs=3, shuffle=shuffle, **given): xb.zero_(), yb.zero_()
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])


def test_inputs_stay_with_their_targets():
    x, y = images(64)
    for xb, yb in MemoryLoader(x, y, bs=5, shuffle=True):
        assert torch.equal((xb[:, 0]*255).round().to(torch.uint8), x[yb])


def test_a_batch_size_below_1_or_unequal_lengths_are_errors():
    x, y = images(4)
    with pytest.raises(ValueError, match='the batch size must be 1 or more, got 0'): MemoryLoader(x, y, bs=0)
    said = 'inputs and targets must have the same length, got 4 and 3'
    with pytest.raises(ValueError, match=said): MemoryLoader(x, y[:3], bs=2)


def loader(n, bs, shuffle=True, seed=0, **kw):
    return MemoryLoader(torch.arange(n), bs=bs, shuffle=shuffle, seed=seed, **kw)


def drawn(batches): return [x.tolist() for x, in batches]


@given(st.integers(0, 40), st.integers(1, 17), seeds, st.integers(0, 2**40), st.booleans(), st.booleans(), st.data())
def test_starting_at_batch_k_equals_skipping_k_batches(n, bs, seed, epoch, shuffle, drop_last, data):
    dl = loader(n, bs, shuffle, seed, drop_last=drop_last)
    k = data.draw(st.integers(0, len(dl)))
    assert drawn(dl.batches(epoch, k)) == drawn(dl.batches(epoch))[k:]
    assert dl.epoch == 0


@given(st.integers(1, 40), st.integers(1, 17), seeds, st.integers(0, 9))
def test_a_pass_is_that_of_the_epoch_that_was_set_whatever_came_before(n, bs, seed, epoch):
    a, b = loader(n, bs, seed=seed), loader(n, bs, seed=seed)
    for _ in range(epoch): list(a)
    b.epoch = epoch
    assert drawn(a) == drawn(b) == drawn(loader(n, bs, seed=seed).batches(epoch))
    assert a.epoch == b.epoch == epoch + 1


def test_starting_late_gathers_nothing_of_what_came_before(monkeypatch):
    gathered, index_select = [], torch.Tensor.index_select
    monkeypatch.setattr(torch.Tensor, 'index_select', lambda t, d, i: gathered.append(len(i)) or index_select(t, d, i))
    assert len(list(loader(100, 10).batches(3, start=9))) == 1
    assert gathered == [10]


@pytest.mark.parametrize('start', [-1, 5])
def test_a_start_outside_the_epoch_is_an_error_at_once(start):
    with pytest.raises(ValueError, match=f'start must lie in 0 to 4, the number of batches, got {start}'):
        loader(10, 3).batches(0, start)


def test_the_order_is_torch_s_randperm_of_one_generator():
    generator = torch.Generator().manual_seed(7*1_000_003 + 2)
    assert permutation(50, 7, 2).tolist() == torch.randperm(50, generator=generator).tolist()
    assert [i for b in drawn(loader(50, 8, seed=7).batches(2)) for i in b] == permutation(50, 7, 2).tolist()


@given(st.integers(0, 40), st.integers(1, 17), st.booleans())
def test_drop_last_leaves_out_a_smaller_last_batch_alone(n, bs, shuffle):
    dl, whole = loader(n, bs, shuffle, drop_last=True), loader(n, bs, shuffle)
    assert drawn(dl) == [b for b in drawn(whole) if len(b) == bs]
    assert len(dl) == n // bs


@given(st.sets(st.integers(0, 19)), st.integers(1, 7), st.booleans())
def test_rows_are_the_only_ones_that_come(rows, bs, shuffle):
    rows = sorted(rows)
    dl = loader(20, bs, shuffle, rows=torch.tensor(rows, dtype=torch.int64))
    for _ in range(2):
        found = order(drawn(dl))
        assert (sorted(found) if shuffle else found) == rows


def test_tensors_arrays_and_memory_maps_are_not_copied(tmp_path):
    np.save(tmp_path/'a.npy', np.arange(12, dtype=np.uint8).reshape(3, 4))
    fixed = np.arange(3.)
    fixed.flags.writeable = False
    arrays = [torch.arange(3), np.arange(3, dtype=np.int16), fixed, np.load(tmp_path/'a.npy', mmap_mode='r')]
    dl = MemoryLoader(*arrays, bs=2)
    for t, a in zip(dl.tensors, arrays, strict=True):
        assert t.data_ptr() == (a.data_ptr() if isinstance(a, torch.Tensor) else a.ctypes.data)
    assert [t.dtype for t in dl.tensors] == [torch.int64, torch.int16, torch.float64, torch.uint8]


def test_any_number_of_arrays_come_as_they_are_but_for_the_first_of_uint8():
    a = torch.arange(40, dtype=torch.uint8).reshape(10, 2, 2)
    arrays = [a, a, torch.arange(10, dtype=torch.float64), np.arange(10) > 4, list(range(10))]
    first, *others = next(iter(MemoryLoader(*arrays, bs=4)))
    assert (first.dtype, first.shape) == (torch.float32, (4, 1, 2, 2))
    assert [o.dtype for o in others] == [torch.uint8, torch.float64, torch.bool, torch.int64]
    assert all(torch.equal(o, torch.as_tensor(t)[:4]) for o, t in zip(others, arrays[1:], strict=True))


@pytest.mark.parametrize('strided', [np.arange(10)[::-1], torch.arange(20).reshape(10, 2).t()[0].expand(10)])
def test_strided_arrays_give_their_own_values(strided):
    (x,), = MemoryLoader(strided, bs=10)
    assert x.tolist() == strided.tolist()


def test_batches_go_to_the_device_as_they_came_and_are_made_float_there():
    moved, to = [], torch.Tensor.to
    class Watched(torch.Tensor):
        def to(self, *args): return moved.append((self.dtype, args)) or to(self, *args)
    x, y = images(10)
    xb, yb = next(iter(MemoryLoader(x.as_subclass(Watched), y, bs=4, device='meta', mean=.3, std=.2)))
    assert moved[0] == (torch.uint8, ('meta',))
    assert [(t.device.type, t.dtype) for t in (xb, yb)] == [('meta', torch.float32), ('meta', torch.int64)]
    assert xb.shape == (4, 1, 2, 2)


def test_pack_makes_the_batch():
    dl = MemoryLoader(*images(4), bs=4, pack=lambda ts: dict(image=ts[0], label=ts[1]))
    batch, = dl
    assert list(batch) == ['image', 'label']
    assert batch['label'].tolist() == [0, 1, 2, 3]


def test_a_loader_says_what_it_holds():
    assert repr(MemoryLoader(*images(1000), bs=64, shuffle=True, seed=3)) == (
        '1,000 samples in memory (uint8 (2, 2), int64 ()), shuffled by seed 3, in 16 batches of 64')
    assert 'in order' in repr(MemoryLoader(*images(3), bs=2))


@pytest.mark.parametrize(('arrays', 'error', 'said'), [
    ([], TypeError, 'no arrays'), ([torch.tensor(3)], TypeError, 'no dimensions.*go by name'),
    ([[[1], [2, 3]]], TypeError, 'a list that torch cannot take'), ([np.array(['a'])], TypeError, 'ndarray that torch'),
    ([None], TypeError, 'NoneType'), ([[1, 2], [1]], ValueError, 'the same length, got 2 and 1')])
def test_what_is_no_array_of_numbers_is_an_error_that_says_so(arrays, error, said):
    with pytest.raises(error, match=said): as_tensors(*arrays)
