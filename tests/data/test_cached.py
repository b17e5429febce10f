"A cached loader gives exactly the samples of the original, or an error, or a warning and the original."
import random
import warnings
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)

from miniai.data import DataLoaders, MemoryLoader, cached, get_dls
from miniai.data.cached import cached_loader
from screen import shown as shown

hf = pytest.importorskip('datasets')
Pair = namedtuple('Pair', 'x y')


class Items:
    "A dataset whose items are what `item(i)` gives; `seen` counts how often each was asked for."
    def __init__(self, n, item): self.n, self.item, self.seen = n, item, [0]*n
    def __len__(self): return self.n

    def __getitem__(self, i):
        self.seen[i] += 1
        return self.item(i)


def images(n):
    features = hf.Features(image=hf.Image(), label=hf.Value('int64'))
    pixels = np.random.default_rng(0).integers(0, 256, (n, 6, 5), np.uint8)
    return hf.Dataset.from_dict(dict(image=[Image.fromarray(p) for p in pixels], label=list(range(n))), features)


def as_bytes(b): return b | dict(image=[torch.from_numpy(np.array(im)) for im in b['image']])
def as_floats(b): return b | dict(image=[(torch.from_numpy(np.array(im))/255 - .28)/.35 for im in b['image']])


def flipped(b):
    return b | dict(image=[x.flip(-1) if torch.rand(1) < .5 else x for x in as_bytes(b)['image']])


def noisy_by_numpy(b): return b | dict(image=[x + np.random.rand() for x in as_bytes(b)['image']])
def shifted_by_random(b): return b | dict(image=[x.roll(random.randrange(5), 1) for x in as_bytes(b)['image']])


@pytest.fixture(scope='module')
def dd(): return hf.DatasetDict(train=images(30), test=images(11))


def items(n=10): return Items(n, lambda i: (torch.full((3,), i/7), i))
def cache(dl, memory=10**9, **kw): return cached_loader(dl, 'train', memory, **kw)


@pytest.mark.parametrize('transform', [as_bytes, as_floats])
@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('as_tuple', [True, False])
def test_a_hugging_face_dataset_cached_gives_exactly_the_samples_of_its_loader(dd, transform, workers, as_tuple):
    dls = DataLoaders.from_dd(dd.with_transform(transform), 4, as_tuple=as_tuple, num_workers=workers)
    mem = dls.cached(check='all')
    for mine, theirs in zip(mem.valid, dls.valid, strict=True):
        assert type(mine) is type(theirs)
        pairs = zip(mine, theirs, strict=True) if as_tuple else ((mine[k], theirs[k]) for k in theirs)
        for a, b in pairs: assert (a.dtype, a.shape, a.tolist()) == (b.dtype, b.shape, b.tolist())
    x, y = (dls.train.dataset[:][k] for k in ('image', 'label'))
    batches = [b if as_tuple else (b['image'], b['label']) for b in mem.train]
    assert sorted(i for _, yb in batches for i in yb.tolist()) == y
    for xb, yb in batches: assert torch.equal(xb, torch.stack([x[i] for i in yb]))


@pytest.mark.parametrize('transform', [flipped, noisy_by_numpy, shifted_by_random])
@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('check', ['some', 'all'])
def test_random_transforms_are_an_error(dd, transform, workers, check):
    dls = DataLoaders.from_dd(dd.with_transform(transform), 8, num_workers=workers)
    with pytest.raises(ValueError, match=r'sample \d+ in batch\[0\] of train differs when .*BatchTransformCB'):
        dls.cached(check=check)


def test_the_error_names_the_sample_and_all_finds_one_that_some_may_miss():
    def item(i): return torch.tensor([0., float(i == 137 and ds.seen[i])])
    ds = Items(300, item)
    assert 137 not in cached._spread(300, 64)
    cache(DataLoader(ds, 8))
    ds.seen = [0]*300
    with pytest.raises(ValueError, match='sample 137 in batch of train differs'):
        cache(DataLoader(ds, 8), check='all')


@pytest.mark.parametrize('n', [1, 2, 3, 64, 65, 500])
def test_some_are_the_first_the_last_and_62_others(n):
    some = cached._spread(n, 64)
    assert len(set(some)) == len(some) == min(n, 64)
    assert {0, n - 1} <= set(some) <= set(range(n))
    assert sorted(cached._spread(n, n)) == list(range(n))


def test_a_collate_function_with_random_numbers_is_an_error():
    def noisy(b): return default_collate(b) + torch.rand(len(b))
    with pytest.raises(ValueError, match='differs when it is loaded again'):
        cache(DataLoader(torch.arange(10), 4, collate_fn=noisy))


def test_each_sample_is_decoded_once_and_those_checked_once_more():
    ds = items(100)
    list(cache(DataLoader(ds, 8)))
    assert sorted(ds.seen) == [1]*36 + [2]*64
    ds = items(100)
    cache(DataLoader(ds, 8), check='all')
    assert ds.seen == [2]*100


def test_nan_is_equal_to_itself():
    x = torch.tensor([float('nan'), 1., float('inf')])
    (xb,), = cache(DataLoader(TensorDataset(x), 3))
    torch.testing.assert_close(xb, x, equal_nan=True)


@pytest.mark.parametrize('workers', [0, 2])
def test_caching_draws_no_random_number_of_the_user_s(workers):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    cache(DataLoader(items(), 4, shuffle=True, num_workers=workers))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_shuffled_loaders_get_the_order_of_seed_and_epoch_and_others_stay_in_order():
    train, valid = get_dls(items(20), items(9), 4, drop_last=True)
    dls = DataLoaders(train, valid).cached(seed=5)
    own = MemoryLoader(torch.arange(20), bs=4, shuffle=True, seed=5)
    for _ in range(2): assert [y.tolist() for _, y in dls.train] == [y.tolist() for y, in own]
    assert [y.tolist() for _, y in dls.valid] == [list(range(8))]
    assert (len(dls.train), len(dls.valid)) == (5, 1)
    assert [y.tolist() for _, y in dls.train.batches(1, 3)] == [y.tolist() for y, in own.batches(1, 3)]


@pytest.mark.parametrize('collate', [default_collate, lambda b: Pair(*default_collate(b)),
                                     lambda b: default_collate(b)[1],
                                     lambda b: dict(a=[default_collate(b)[0]], b=dict(c=default_collate(b)[1]))])
def test_batches_have_the_structure_that_the_collate_function_gives(collate):
    dl = DataLoader(items(), 4, collate_fn=collate)
    for mine, theirs in zip(cache(dl), dl, strict=True):
        assert repr(mine) == repr(theirs)
        assert type(mine) is type(theirs)


def test_a_change_to_a_batch_does_not_change_what_is_kept():
    mem = cache(DataLoader(items(), 5))
    for x, _ in mem: x.zero_()
    assert next(iter(mem))[0][1].tolist() == pytest.approx([1/7]*3)


def test_samples_of_unequal_shapes_are_an_error_that_says_what_to_do():
    ds = Items(8, lambda i: torch.zeros(3 if i < 4 else 5))
    said = r'batch in batch 1 of train has rows torch.float32 \(5,\), the .* before have torch.float32 \(3,\).*pad the'
    with pytest.raises(ValueError, match=said): cache(DataLoader(ds, 4))


@pytest.mark.parametrize(('collate', 'error', 'said'), [
    (lambda b: (torch.stack([x for x, _ in b]), [str(i) for _, i in b]), TypeError, r'batch\[1\]\[0\] is a str: only'),
    (lambda b: torch.zeros(3), ValueError, r'batch in batch 0 of train has shape \(3,\), .* its 4 samples'),
    (lambda b: torch.tensor(1.), ValueError, r'shape \(\), and needs one row for each of its 4 samples'),
    (lambda b: {str(b[0][1] > 3): torch.zeros(len(b))}, ValueError, r"holds batch\['True'\], the .* before hold b"),
    (lambda b: torch.zeros(len(b), dtype=torch.int8 if b[0][1] else torch.int16), ValueError, 'rows torch.int8')])
def test_batches_that_cannot_be_kept_row_by_row_are_an_error(collate, error, said):
    with pytest.raises(error, match=said): cache(DataLoader(items(), 4, collate_fn=collate))


@pytest.mark.parametrize(('item', 'collate', 'said'), [
    (lambda i: (torch.zeros(2), 'a'), default_collate, r'batch\[1\]\[0\] is a str'),
    (lambda i: dict(x=torch.zeros(2), name=b'a'), default_collate, r"batch\['name'\]\[0\] is a bytes"),
    (lambda i: (torch.zeros(2), 0), lambda b: (*default_collate(b), None), r'batch\[2\] is a NoneType'),
    (lambda i: (torch.zeros(2), None), default_collate, r'sample\[1\] is a NoneType'),
    (lambda i: dict(x=torch.zeros(2), y=[1, None]), default_collate, r"sample\['y'\]\[1\] is a NoneType"),
    (lambda i: (i, torch.zeros(2) if i < 6 else None), default_collate, r'sample\[1\] is a NoneType'),
    (lambda i: (i, i if i < 6 else object()), default_collate, r'sample\[1\] is a object')])
@pytest.mark.parametrize('workers', [0, 1])
def test_anything_but_a_tensor_is_an_error_that_names_it_and_says_what_to_do(item, collate, said, workers):
    with pytest.raises(TypeError, match=f'{said}: only .* can be cached. Leave it out in'):
        cache(DataLoader(Items(8, item), 4, collate_fn=collate, num_workers=workers))


@pytest.mark.parametrize('item', [lambda i: 'no' + 1, lambda i: (i, None)])
def test_a_type_error_from_the_dataset_or_the_collate_function_stays(item):
    def collate(b): raise TypeError('mine')
    with pytest.raises(TypeError, match=r'^(mine|can only concatenate str)'):
        cache(DataLoader(Items(8, item), 4, collate_fn=collate))


def test_an_unknown_check_and_a_negative_memory_are_errors():
    dls = DataLoaders(*get_dls(items(), items(), 4))
    with pytest.raises(ValueError, match="'some' or 'all', got 'none'"): dls.cached(check='none')
    with pytest.raises(ValueError, match='0 or more, got -1'): dls.cached(memory=-1)


NEED = 10*(3*4 + 8)


def test_a_loader_that_does_not_fit_stays_with_a_warning_that_names_both_sizes():
    ds = items()
    dl = DataLoader(ds, 4, num_workers=1)
    said = 'the train loader is not cached and stays as it is: it takes 200 bytes, more than the limit of 199 bytes'
    with pytest.warns(UserWarning, match=said):
        assert cache(dl, NEED - 1) is dl
    assert isinstance(cache(dl, NEED), MemoryLoader)


def test_only_one_batch_is_decoded_of_a_loader_that_does_not_fit():
    ds = items()
    with pytest.warns(UserWarning, match='not cached'): cache(DataLoader(ds, 4), NEED - 1)
    assert sum(ds.seen) == 4


def test_the_limit_is_for_both_loaders_and_half_of_what_is_available_unless_given(monkeypatch):
    dls = DataLoaders(*get_dls(items(), items(), 4))
    with pytest.warns(UserWarning, match='valid loader.* it takes 200 bytes, more than .* 199 bytes') as caught:
        new = dls.cached(memory=2*NEED - 1)
    assert caught[0].filename == __file__
    assert isinstance(new.train, MemoryLoader)
    assert new.valid is dls.valid
    for available, kind in ((4*NEED, MemoryLoader), (4*NEED - 2, DataLoader)):
        monkeypatch.setattr(cached, 'available_memory', lambda n=available: n)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            assert type(dls.cached().valid) is kind


@pytest.mark.parametrize(('n', 'said'), [(999, '999 bytes'), (1500, '1.5 kB'), (47_040_000, '47 MB'),
                                         (3.21e11, '321 GB')])
def test_sizes_have_a_readable_unit(n, said): assert cached._bytes(n) == said


class Stream(IterableDataset):
    def __iter__(self): return iter(range(4))


class Unsized:
    def __getitem__(self, i): return i


class OwnOrder(DataLoader):
    def __iter__(self): return reversed(list(super().__iter__()))


@pytest.mark.parametrize(('dl', 'said'), [
    (DataLoader(Stream(), 2), 'its dataset is a stream'), (DataLoader(Unsized(), 2, sampler=[1, 2]), 'is a stream'),
    (DataLoader(range(4), None), 'yields samples instead of batches'), (DataLoader([], 2), 'its dataset is empty'),
    (DataLoader(range(4), sampler=WeightedRandomSampler([1.]*4, 4)), 'order of its WeightedRandomSampler is not known'),
    (DataLoader(range(4), sampler=[3, 1]), 'order of its list'),
    (DataLoader(range(4), batch_sampler=type('Mine', (BatchSampler,), {})(range(4), 2, False)), 'order of its Mine'),
    (DataLoader(range(4), batch_sampler=BatchSampler(range(4), 2, False)), 'it was given a batch_sampler'),
    (OwnOrder(range(4), 2), 'it is a OwnOrder, not a plain DataLoader'), ((i for i in range(3)), 'it is a generator')])
def test_a_loader_without_samples_or_a_known_order_stays_with_a_warning_that_says_why(dl, said):
    with pytest.warns(UserWarning, match=f'the train loader is not cached and stays as it is: .*{said}'):
        assert cache(dl) is dl


@pytest.mark.parametrize('dl', [(), [torch.zeros(3)], MemoryLoader([1, 2], bs=1)], ids=['none', 'list', 'memory'])
def test_what_is_in_memory_stays_without_a_warning(dl): assert cache(dl) is dl


def test_random_order_with_replacement_or_of_fewer_samples_stays():
    for kw in (dict(replacement=True), dict(num_samples=3)):
        dl = DataLoader(range(4), 2, sampler=torch.utils.data.RandomSampler(range(4), **kw))
        with pytest.warns(UserWarning, match='RandomSampler'): assert cache(dl) is dl


def test_the_bar_is_removed_when_caching_fails(shown):
    with pytest.raises(TypeError): cache(DataLoader(['a'], 1))
    assert shown == ['closed']
