"Batches from memory: each sample once an epoch, in an order that depends on (seed, epoch); inputs scaled to floats."
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from miniai.data import MemoryLoader
from miniai.data.memory import Scaling, as_tensors, permutation, rows_of

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
def test_changes_to_a_batch_do_not_change_the_arrays(dtype, given, shuffle):
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
def test_a_pass_has_the_order_of_the_epoch_that_was_set(n, bs, seed, epoch):
    a, b = loader(n, bs, seed=seed), loader(n, bs, seed=seed)
    for _ in range(epoch): list(a)
    b.epoch = epoch
    assert drawn(a) == drawn(b) == drawn(loader(n, bs, seed=seed).batches(epoch))
    assert a.epoch == b.epoch == epoch + 1


def test_a_snapshot_puts_the_epoch_back():
    dl = loader(10, 3)
    list(dl)
    restore = dl.snapshot()
    expected = drawn(dl)
    list(dl)
    restore()
    assert dl.epoch == 1
    assert drawn(dl) == expected


def test_starting_late_gathers_no_earlier_batches(monkeypatch):
    gathered, index_select = [], torch.Tensor.index_select
    monkeypatch.setattr(torch.Tensor, 'index_select', lambda t, d, i: gathered.append(len(i)) or index_select(t, d, i))
    assert len(list(loader(100, 10).batches(3, start=9))) == 1
    assert gathered == [10]


@pytest.mark.parametrize('start', [-1, 5])
def test_a_start_outside_the_epoch_is_an_error_at_once(start):
    with pytest.raises(ValueError, match=f'start must be from 0 to 4, the number of batches, got {start}'):
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
def test_only_the_given_rows_come(rows, bs, shuffle):
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


def test_all_arrays_but_the_first_keep_their_dtype_and_shape():
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


def test_batches_go_to_the_device_before_they_become_floats():
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


def test_a_loader_shows_what_it_holds():
    assert repr(MemoryLoader(*images(1000), bs=64, shuffle=True, seed=3)) == (
        '1,000 samples in memory (uint8 2x2, int64), 16 batches of 64, shuffled with seed 3')
    assert repr(MemoryLoader(torch.zeros(3, 2), bs=4)) == '3 samples in memory (float32 2), 1 batch of 4, in order'


@pytest.mark.parametrize(('arrays', 'error', 'said'), [
    ([], TypeError, 'no arrays'), ([torch.tensor(3)], TypeError, '0 dimensions.*bs by name'),
    ([[[1], [2, 3]]], TypeError, 'cannot make a tensor from type list'),
    ([np.array(['a'])], TypeError, 'tensor from type ndarray'),
    ([None], TypeError, 'NoneType'), ([[1, 2], [1]], ValueError, 'the same length, got 2 and 1')])
def test_anything_but_an_array_of_numbers_is_an_error(arrays, error, said):
    with pytest.raises(error, match=said): as_tensors(*arrays)


# Scaling

MEANS, STDS = st.floats(-2, 2, width=32), st.floats(.0625, 4, width=32)


def ramp(*shape): return (torch.arange(torch.Size(shape).numel()) % 256).to(torch.uint8).reshape(shape)
def scaled(x, **kw): return Scaling(x, **kw)(x.clone())


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=5)))
def test_pixels_become_floats_from_0_to_1_rounded_once_and_three_dimensions_get_a_channel(x):
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
def test_anything_but_uint8_stays_as_it_is_without_a_mean(x):
    assert Scaling(x)(x) is x


def test_without_to_float_uint8_stays():
    x = ramp(2, 3, 3)
    assert Scaling(x, to_float=False)(x) is x


def test_without_std_it_is_1_and_without_mean_it_is_0():
    x = torch.tensor([1., 4.])
    assert scaled(x, mean=1.).tolist() == [0., 3.]
    assert scaled(x, std=2.).tolist() == [.5, 2.]


@pytest.mark.parametrize(('x', 'kw', 'said'), [
    (torch.arange(3), dict(mean=1.), 'need inputs of floats, or of uint8 with to_float=True, got torch.int64'),
    (ramp(3, 2, 2), dict(mean=1., to_float=False), 'got torch.uint8'),
    (ramp(4, 3, 2, 2), dict(mean=[.1, .2]), r'mean must be a number, or one for each.*dimension 1 of \(4, 3, 2, 2\)'),
    (ramp(4, 3, 3), dict(std=[.1, .2, .3]), r'std must be a number, or one for each.*dimension 1 of \(4, 1, 3, 3\)'),
    (torch.randn(3), dict(mean=[1.]*3), 'one for each channel, dimension 1'),
    (torch.randn(3), dict(std=0.), 'std above 0, got 0.0 and 0.0'),
    (torch.randn(3), dict(mean=float('nan')), 'must be finite'),
    (torch.randn(3), dict(std=float('inf')), 'must be finite')])
def test_a_mean_or_std_that_does_not_fit_the_inputs_is_an_error(x, kw, said):
    with pytest.raises(ValueError, match=said): Scaling(x, **kw)


# Dtypes, images with channels last, several inputs

def batch(*arrays, **kw): return next(iter(MemoryLoader(*arrays, bs=4, **kw)))


@pytest.mark.parametrize('target', [True, False])
@pytest.mark.parametrize(('dtype', 'becomes'), [
    ('f8', torch.float32), ('f4', torch.float32), ('f2', torch.float16), ('i4', torch.int64), ('i8', torch.int64),
    ('i2', torch.int64), ('i1', torch.int64), ('u2', torch.int64), ('u4', torch.int64), ('?', torch.bool),
    ('c16', torch.complex128)])
def test_arrays_of_double_precision_or_of_integers_become_what_models_and_losses_take(dtype, becomes, target):
    a = np.arange(10).astype(dtype)
    loader = MemoryLoader(a, a, bs=4, shuffle=True)
    got = next(iter(loader))[target]
    assert got.dtype == becomes
    assert got.tolist() == a[permutation(10, 0, 0).numpy()][:4].tolist()
    assert np.shares_memory(a, loader.tensors[target].numpy())


def test_a_tensor_keeps_its_dtype_a_list_has_that_of_its_numbers_and_pixels_are_labels_only_as_targets():
    for dtype in (torch.float64, torch.int32, torch.int8): assert batch(torch.zeros(5, dtype=dtype))[0].dtype == dtype
    x, y = batch([np.float64(1), 2., 3.], [1, 2, 3])
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    mask = np.arange(4, dtype=np.uint8).reshape(4, 1)
    x, y = batch(mask, mask)
    assert (x.dtype, y.dtype, y.tolist()) == (torch.float32, torch.int64, [[0], [1], [2], [3]])


@pytest.mark.parametrize('shuffle', [True, False])
def test_images_with_channels_last_come_with_channels_first(shuffle):
    x = np.random.default_rng(0).integers(0, 256, (6, 7, 8, 3), np.uint8)
    loader = MemoryLoader(x, np.arange(6), bs=4, shuffle=shuffle, channels_last=True, mean=[.1, .2, .3])
    expected = x.transpose(0, 3, 1, 2)/255 - np.reshape([.1, .2, .3], (3, 1, 1))
    for xb, yb in loader:
        np.testing.assert_allclose(xb, expected[yb], rtol=1e-5, atol=1e-6)
        assert xb.is_contiguous()
    said = r'needs images \(N, H, W, C\), got shape \(6, 7, 8\)'
    with pytest.raises(ValueError, match=said): MemoryLoader(x[..., 0], bs=2, channels_last=True)


@pytest.mark.parametrize('device', [None, 'cpu'])
def test_double_precision_is_normalized_before_it_is_rounded(device):
    x = 1.6e9 + np.arange(10.)  # seconds since 1970, which float32 rounds to multiples of 128
    got = batch(x, mean=x.mean(), std=x.std(), device=device)[0]
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got, ((x - x.mean())/x.std())[:4], rtol=1e-6)


def test_each_of_several_inputs_has_a_scaling_of_its_own():
    image, table, ids, y = np.full((5, 2, 2), 51, np.uint8), np.ones((5, 2)), np.arange(5), np.arange(5, dtype='u1')
    means, stds = [.1, torch.tensor([1., 0.]), None], [.5, 2., None]
    got = batch(image, table, ids, y, n_inp=3, mean=means, std=stds)
    assert [t.dtype for t in got] == [torch.float32, torch.float32, torch.int64, torch.int64]
    torch.testing.assert_close(got[0], torch.full((4, 1, 2, 2), (.2 - .1)/.5))
    assert got[1].tolist() == [[0., .5]]*4
    assert got[2].tolist() == got[3].tolist() == [0, 1, 2, 3]


def test_a_loader_like_another_scales_its_inputs_in_the_same_way_and_goes_in_order():
    x, y = np.random.default_rng(0).random((20, 3)), np.arange(20)
    first = MemoryLoader(x, y, bs=4, shuffle=True, drop_last=True, mean=.3, std=.2, seed=1)
    new = first.like(x[:6] + 1, y[:6])
    got = [torch.cat(ts) for ts in zip(*new, strict=True)]
    np.testing.assert_allclose(got[0], (x[:6] + 1 - .3)/.2, rtol=1e-5)
    assert got[1].tolist() == list(range(6))
    assert (len(first), first.n, first.shuffle, first.epoch) == (5, 20, True, 0)
    bare, = next(iter(first.like(x)))
    np.testing.assert_allclose(bare, (x[:4] - .3)/.2, rtol=1e-5)
    said = r'x must have the same dtype and row shape in both loaders, got torch.float32 \(3,\) and torch.float32 \(2,'
    with pytest.raises(ValueError, match=said): first.like(x[:, :2], y)
    with pytest.raises(ValueError, match=r'y must have the same dtype .*got torch.int64'): first.like(x, y/2)


@given(st.integers(1, 20), st.integers(1, 25), st.integers(0, 2))
def test_the_first_rows_of_each_input_come_as_they_are_kept(n, wanted, kind):
    x, ids, y = torch.arange(n*4, dtype=torch.uint8).reshape(n, 2, 2), torch.arange(n), torch.arange(n)
    rows = [None, torch.arange(n).flip(0), torch.arange(n)[::2]][kind]
    loader = MemoryLoader(x, ids, y, bs=3, n_inp=2, rows=rows, mean=[.5, None], std=[.1, None])
    order = torch.arange(n) if rows is None else rows
    first, second = rows_of(loader, wanted)
    assert torch.equal(first, x[order[:wanted]])
    assert torch.equal(second, ids[order[:wanted]])
    first.zero_()
    assert torch.equal(x, torch.arange(n*4, dtype=torch.uint8).reshape(n, 2, 2))


class Stand:
    "Stands for a tensor, and tells what it was asked for."
    dtype, device, ndim, keep = torch.uint8, torch.device('cpu'), 2, False
    def __init__(self, n): self.shape, self.asked = torch.Size((n, 1)), []
    def __len__(self): return self.shape[0]
    def gathered(self, order, bs):
        self.asked.append((order.tolist(), bs))
        yield from (part.to(torch.uint8)[:, None] for part in order.split(bs))


@given(st.integers(1, 20), st.integers(1, 7), st.booleans(), st.booleans(), st.data())
def test_what_can_gather_stands_for_a_tensor_and_is_asked_for_the_rows_of_a_pass_alone(n, bs, shuffle, some, data):
    stand, t = Stand(n), torch.arange(n, dtype=torch.uint8)[:, None]
    given = dict(bs=bs, shuffle=shuffle, seed=3, rows=torch.arange(n).flip(0) if some else None)
    a, b = MemoryLoader(stand, torch.arange(n), **given), MemoryLoader(t, torch.arange(n), **given)
    start = data.draw(st.integers(0, len(a)))
    batches = [list(dl.batches(2, start)) for dl in (a, b)]
    for x, y in zip(*batches, strict=True): assert all(map(torch.equal, x, y))
    assert stand.asked == ([([i for _, y in batches[1] for i in y.tolist()], bs)] if start < len(a) else [])
    assert torch.equal(rows_of(a, 3)[0], rows_of(b, 3)[0])
    assert f'{n:,} samples read again in each epoch (uint8 1, int64)' in repr(a)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3, 4]))
def test_the_layout_of_pixels_in_memory_makes_no_difference_to_the_bits_and_stays(n, h, w, channels):
    x = torch.randint(0, 256, (n, h, w, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    scaling = Scaling(x, mean=torch.rand(channels), std=torch.rand(channels) + .1)
    assert torch.equal(scaling(x), scaling(x.contiguous()))
    assert scaling(x).stride() == x.float().stride()
