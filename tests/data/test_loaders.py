"Pairs of loaders, from arrays, datasets and a Hugging Face DatasetDict."
import pickle
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, TensorDataset

from miniai.data import MemoryLoader, SeededSamples
from miniai.data.loaders import DataLoaders, Dataset, collate_dict, get_dls, inplace, last_batch_size
from miniai.data.picture_files import PictureError
from miniai.data.recipe import Recipe
from miniai.data.table_files import TableError
from picture_folders import in_classes, write_folder

hf = pytest.importorskip('datasets')


@inplace
def halved(b):
    "Halve the inputs."
    b['x'] = [torch.tensor(v)/2 for v in b['x']]


def rows(n, **more): return hf.Dataset.from_dict(dict(y=list(range(n)), x=[[float(i), 1.] for i in range(n)], **more))


@pytest.fixture
def dd(): return hf.DatasetDict(train=rows(10), valid=rows(5), test=rows(2))


def test_inplace_returns_what_it_changed_and_keeps_name_and_docs():
    b = {'x': [2., 4.]}
    assert halved(b) is b
    assert b['x'] == [1., 2.]
    assert (halved.__name__, halved.__doc__) == ('halved', 'Halve the inputs.')
    assert inplace(lambda b: 'ignored')(b) is b


def test_a_dataset_is_a_sequence_of_pairs():
    ds = Dataset([1, 2, 3], 'abc')
    assert len(ds) == 3
    assert ds[1] == (2, 'b')
    assert ds[:2] == ([1, 2], 'ab')
    x, y = Dataset(torch.arange(3), torch.arange(3)*2)[torch.tensor([2, 0])]
    assert (x.tolist(), y.tolist()) == ([2, 0], [4, 0])


def test_a_dataset_of_unequal_lengths_is_an_error():
    said = 'inputs and targets must have the same length, got 3 and 2'
    with pytest.raises(ValueError, match=said): Dataset([1, 2, 3], [1, 2])


@given(st.permutations(['a', 'b', 'c']), st.permutations(['a', 'b', 'c']))
def test_collate_dict_gives_a_tuple_in_the_order_of_the_features(features, keys):
    ds = type('HasFeatures', (), dict(features=dict.fromkeys(features)))
    items = [{k: ord(k)*10 + i for k in keys} for i in range(3)]
    batch = collate_dict(ds)(items)
    assert type(batch) is tuple
    assert [b.tolist() for b in batch] == [[ord(k)*10 + i for i in range(3)] for k in features]


def test_collate_dict_can_be_pickled_as_loaders_with_spawned_workers_need(dd):
    collate = pickle.loads(pickle.dumps(collate_dict(dd['train'])))
    assert [b.tolist() for b in collate([dict(x=1, y=2)])] == [[2], [1]]


def test_get_dls_gives_a_shuffled_loader_and_one_in_order_with_batches_twice_as_large():
    ds = TensorDataset(torch.arange(40))
    train, valid = get_dls(ds, ds, 4)
    batches = [b.tolist() for b, in train]
    assert [len(b) for b in batches] == [4]*10
    order = [i for b in batches for i in b]
    assert order != list(range(40))
    assert sorted(order) == list(range(40))
    assert [b.tolist() for b, in valid] == [list(range(i, i + 8)) for i in range(0, 40, 8)]


def test_get_dls_draws_as_plain_pytorch_does():
    ds = TensorDataset(torch.arange(40))
    torch.manual_seed(5)
    ours = [b.tolist() for b, in get_dls(ds, ds, 4)[0]]
    torch.manual_seed(5)
    assert ours == [b.tolist() for b, in DataLoader(ds, batch_size=4, shuffle=True)]


def test_get_dls_passes_its_other_arguments_to_both_loaders():
    ds = TensorDataset(torch.arange(9))
    loaders = get_dls(ds, ds, 2, drop_last=True, collate_fn=list)
    assert [len(list(dl)) for dl in loaders] == [4, 2]
    assert all(dl.collate_fn is list for dl in loaders)


def test_data_loaders_are_any_two_iterables_that_may_be_replaced():
    dls = DataLoaders([1], ())
    assert (dls.train, dls.valid) == ([1], ())
    dls.train, dls.valid = (), [2]
    assert (dls.train, dls.valid) == ((), [2])


def test_from_dd_trains_on_one_split_shuffled_and_validates_on_the_other_in_order(dd):
    dls = DataLoaders.from_dd(dd.with_format('torch'), 4)
    train, valid = list(dls.train), list(dls.valid)
    assert [len(y) for y, _ in train] == [4, 4, 2]
    assert sorted(torch.cat([y for y, _ in train]).tolist()) == list(range(10))
    assert not isinstance(dls.train.sampler, SequentialSampler)
    (y, x), = valid
    assert y.tolist() == [0, 1, 2, 3, 4]
    assert x.tolist() == [[i, 1.] for i in range(5)]


def test_from_dd_applies_the_dataset_s_transform(dd):
    (y, x), = DataLoaders.from_dd(dd.with_transform(halved), 4).valid
    assert torch.equal(x, torch.stack([y/2, torch.full((5,), .5)], 1))


def test_from_dd_without_as_tuple_gives_dicts(dd):
    batch, = DataLoaders.from_dd(dd.with_transform(halved), 4, as_tuple=False).valid
    assert type(batch) is dict
    assert list(batch) == ['y', 'x']
    assert batch['y'].tolist() == [0, 1, 2, 3, 4]


def test_from_dd_of_one_feature_gives_tuples_of_one(dd):
    batch, = DataLoaders.from_dd(dd.remove_columns('x'), 4).valid
    assert type(batch) is tuple
    assert [b.tolist() for b in batch] == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize('as_tuple', [True, False])
def test_from_dd_works_with_workers(dd, as_tuple):
    dls = DataLoaders.from_dd(dd.with_transform(halved), 2, as_tuple=as_tuple, num_workers=1)
    assert dls.train.num_workers == dls.valid.num_workers == 1
    batches = [b if as_tuple else (b['y'], b['x']) for b in dls.valid]
    assert torch.cat([y for y, _ in batches]).tolist() == [0, 1, 2, 3, 4]
    assert torch.cat([x for _, x in batches])[:, 0].tolist() == [0, .5, 1, 1.5, 2]


@pytest.mark.parametrize('workers', [0, 1])
def test_from_dd_takes_datasets_whose_samples_are_seeded(dd, workers):
    seeded = {nm: SeededSamples(ds.with_format('torch')) for nm, ds in dd.items()}
    ours, plain = (DataLoaders.from_dd(d, 4, num_workers=workers).valid for d in (seeded, dd.with_format('torch')))
    for a, b in zip(ours, plain, strict=True): assert all(map(torch.equal, a, b))


@pytest.mark.parametrize('ds', [TensorDataset(torch.arange(4)), SeededSamples([1]), SimpleNamespace(features=None)])
def test_a_dataset_without_features_is_an_error_that_says_what_to_do_unless_there_is_a_collate_fn(ds):
    with pytest.raises(TypeError, match=f'a {type(ds).__name__} has no features .*pass collate_fn, or as_tuple=Fal'):
        DataLoaders.from_dd(dict(train=ds, valid=ds), 2)
    if not hasattr(ds, '__len__'): return
    assert DataLoaders.from_dd(dict(train=ds, valid=ds), 2, collate_fn=list).train.collate_fn is list
    assert len(DataLoaders.from_dd(dict(train=ds, valid=ds), 2, as_tuple=False).valid) == 1


def test_from_dd_passes_its_other_arguments_to_the_loaders(dd):
    dls = DataLoaders.from_dd(dd, 4, drop_last=True, collate_fn=partial(sorted, key=lambda r: -r['y']))
    assert len(list(dls.train)) == 2
    assert [r['y'] for r in next(iter(DataLoaders.from_dd(dd, 4, collate_fn=list).valid))] == [0, 1, 2, 3, 4]
    assert all(r[0]['y'] == max(o['y'] for o in r) for r in dls.train)


def test_from_dd_takes_any_mapping_of_names_to_datasets():
    dls = DataLoaders.from_dd(dict(a=rows(4), b=rows(3)), 2, as_tuple=False)
    assert [len(dls.train), len(dls.valid)] == [2, 1]


@pytest.mark.parametrize(('names', 'train', 'valid'), [
    (['train', 'test'], 'train', 'test'), (['test', 'train'], 'train', 'test'), (['test', 'valid'], None, None),
    (['test', 'validation', 'training'], 'training', 'validation'), (['a', 'b', 'c'], 'a', 'b'),
    (['val', 'a', 'b'], 'a', 'val'), (['a', 'train'], 'train', 'a'), (['a', 'b', 'train'], 'train', 'a'),
    (['dev', 'test', 'train'], 'train', 'dev'), (['unsupervised', 'eval', 'train', 'test'], 'train', 'eval'),
    (['train', 'validation', 'valid'], 'train', 'valid')])
def test_from_dd_takes_splits_by_their_usual_names_in_any_order_and_others_as_they_come(names, train, valid):
    dd = hf.DatasetDict({nm: hf.Dataset.from_dict(dict(y=[i])) for i, nm in enumerate(names)})
    if train is None:
        said = r"no split to train on, only \['test', 'valid'\]: name one 'train'"
        with pytest.raises(ValueError, match=said): DataLoaders.from_dd(dd, 2)
    else:
        dls = DataLoaders.from_dd(dd, 2)
        taken = [next(iter(dl))[0].item() for dl in (dls.train, dls.valid)]
        assert taken == [names.index(train), names.index(valid)]


def test_a_pair_of_loaders_shows_the_split_of_a_dataset_that_knows_it():
    ds = hf.Dataset.from_dict(dict(y=[1, 2]), split='validation')
    assert repr(DataLoaders(DataLoader(ds), ())).startswith('DataLoaders(train: DataLoader, split validation, 2 samp')


def test_from_dd_of_one_split_is_an_error_that_says_what_to_do(dd):
    said = r"needs two splits, for train and valid, and has \['train'\]: split it with train_test_split"
    with pytest.raises(ValueError, match=said): DataLoaders.from_dd(hf.DatasetDict(train=dd['train']), 4)


def test_from_dd_of_a_subclass_makes_the_subclass(dd):
    class Mine(DataLoaders): pass
    assert type(Mine.from_dd(dd, 4)) is Mine


class Stream(IterableDataset):
    def __iter__(self): return iter([1])


class NoLength:
    def __len__(self): raise NotImplementedError
    def __iter__(self): return iter([1])


@pytest.mark.parametrize(('dl', 'said'), [
    (DataLoader(TensorDataset(torch.arange(9000)), 4), 'DataLoader, 9,000 samples, 2,250 batches of 4'),
    (DataLoader(Stream(), 4), 'DataLoader'), ([1], 'list, 1 batch'), ((), 'tuple, 0 batches'), (None, 'NoneType'),
    (iter([1]), 'list_iterator'), (NoLength(), 'NoLength'),
    (MemoryLoader(torch.arange(9), bs=2), '9 samples in memory (int64), 5 batches of 2, in order')])
def test_a_pair_of_loaders_shows_what_each_one_is(dl, said):
    class Mine(DataLoaders): pass
    assert repr(DataLoaders(dl, [])) == f'DataLoaders(train: {said},\n            valid: list, 0 batches)'
    assert repr(Mine([], dl)) == f'Mine(train: list, 0 batches,\n     valid: {said})'


def ran(dls, seed, epochs=2):
    torch.manual_seed(seed)
    return [[t.tolist() for t in b] for _ in range(epochs) for dl in (dls.train, dls.valid) for b in dl]


@pytest.mark.filterwarnings('ignore:.*max number of worker:UserWarning')
def test_an_ordinary_loader_gives_the_same_batches_for_the_same_seed_with_any_number_of_workers(dd):
    tensors = TensorDataset(torch.arange(10)), TensorDataset(torch.arange(5))
    makers = [lambda n: DataLoaders.from_dd(dd.with_transform(halved), 3, num_workers=n),
              lambda n: DataLoaders(*get_dls(*tensors, 3, num_workers=n))]
    for make in makers:
        alone = ran(make(0), 7)
        assert ran(make(1), 7) == ran(make(4), 7) == alone != ran(make(0), 8)


def arrays(n=20, side=4): return torch.randint(0, 256, (n, side, side), dtype=torch.uint8), torch.arange(n)
def drawn(dl): return [i for _, y in dl for i in y.tolist()]


@given(st.integers(5, 40), st.sampled_from([.2, .5]), st.integers(0, 9), st.integers(1, 9))
def test_from_arrays_splits_and_shuffles_by_seed_without_a_copy(n, fraction, seed, bs):
    x, y = arrays(n)
    dls = DataLoaders.from_arrays(x, y, fraction, bs, seed)
    train, valid = drawn(dls.train), drawn(dls.valid)
    assert sorted(train + valid) == list(range(n))
    assert len(valid) == round(n*fraction)
    assert drawn(dls.valid) == valid == sorted(valid)
    assert sorted(drawn(dls.train)) == sorted(train)
    assert drawn(DataLoaders.from_arrays(x, y, fraction, bs, seed).train) == train
    assert (dls.train.bs, dls.valid.bs) == (bs, bs*2)
    for dl in (dls.train, dls.valid): assert [t.data_ptr() for t in dl.tensors] == [x.data_ptr(), y.data_ptr()]


def test_from_arrays_takes_a_validation_set_of_its_own():
    (x, y), (xv, yv) = arrays(20), arrays(6)
    dls = DataLoaders.from_arrays(x.numpy(), y.numpy(), valid=(xv, yv), bs=8, drop_last=True, source='here')
    assert sorted(drawn(dls.train.batches(0))) == sorted(permuted(20, 0, 0)[:16])
    assert drawn(dls.valid) == list(range(6))
    assert dls.train.tensors[0].data_ptr() == x.data_ptr()
    assert [dl.source for dl in (dls.train, dls.valid)] == ['here']*2
    torch.testing.assert_close(next(iter(dls.valid))[0], xv[:, None]/255)


def permuted(n, seed, epoch):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed*1_000_003 + epoch)).tolist()


@pytest.mark.parametrize('shape', [(30, 4, 4), (30, 3, 4, 4)])
def test_from_arrays_normalizes_by_the_training_part_alone(shape):
    x = np.random.default_rng(0).integers(0, 200, shape, np.uint8)
    dls = DataLoaders.from_arrays(x, np.arange(30), .5, 7, normalize=True)
    xt = x.reshape(30, -1, 4, 4)[sorted(drawn(dls.train))]/255
    mean, std = (f(xt, axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    for dl in (dls.train, dls.valid):
        for xb, yb in dl:
            np.testing.assert_allclose(xb, (x.reshape(30, -1, 4, 4)[yb]/255 - mean)/std, rtol=1e-4, atol=1e-5)


def test_from_arrays_normalizes_by_a_given_pair_and_leaves_integers():
    x, y = arrays()
    xb, yb = next(iter(DataLoaders.from_arrays(x, y, normalize=(.3, .2)).valid))
    torch.testing.assert_close(xb, (x[yb][:, None]/255 - .3)/.2)
    ids, _ = next(iter(DataLoaders.from_arrays(y.reshape(10, 2), y[:10]).valid))
    assert ids.dtype == torch.int64


def test_from_arrays_sends_batches_to_a_device():
    xb, yb = next(iter(DataLoaders.from_arrays(*arrays(), device='meta', normalize=True).train))
    assert (xb.device.type, yb.device.type, xb.dtype) == ('meta', 'meta', torch.float32)


@pytest.mark.parametrize(('given', 'error', 'said'), [
    (dict(y=torch.arange(3)), ValueError, 'must have the same length, got 20 and 3'),
    (dict(x=torch.zeros(0, 4), y=torch.zeros(0)), ValueError, 'the training arrays have no rows'),
    (dict(valid=(torch.zeros(0, 4, 4), [])), ValueError, 'the validation arrays have no rows'),
    (dict(valid=1.), ValueError, 'must be between 0 and 1, got 1.0'),
    (dict(valid=.01), ValueError, 'leaves none for validation'),
    (dict(valid='x'), TypeError, r'a fraction, indices or a pair \(x_valid, y_valid\), got a str'),
    (dict(x=torch.zeros(20, 8, 8, 3)), ValueError, r'shape \(20, 8, 8, 3\) .* pass channels_last=True or channels_l'),
    (dict(valid=((np.zeros((3, 4, 4)), np.zeros(3)), [1, 2, 3])), ValueError, 'valid has 2 inputs and 1 targets, tr'),
    (dict(x=(torch.zeros(20, 3), torch.zeros(20)), normalize=(0., 1.)), ValueError, 'must be True or False'),
    (dict(valid=(torch.zeros(3, 4, 5), [1, 2, 3])), ValueError, r'got torch.uint8 \(4, 4\) and torch.float32 \(4, 5\)'),
    (dict(valid=(torch.zeros(3, 4, 4).byte(), [1., 2., 3.])), ValueError, 'y must have the same dtype'),
    (dict(x=torch.arange(20), normalize=True), ValueError, 'got torch.int64'),
    (dict(normalize=(0., 0.)), ValueError, 'std above 0'), (dict(bs=0), ValueError, 'must be 1 or more, got 0'),
    (dict(x='images'), TypeError, 'cannot make a tensor from type str')])
def test_from_arrays_says_what_is_wrong(given, error, said):
    x, y = arrays()
    with pytest.raises(error, match=said): DataLoaders.from_arrays(**dict(x=x, y=y) | given)


@pytest.mark.parametrize('make', [np.array, torch.tensor, list, lambda rows: rows])
def test_from_arrays_takes_the_indices_of_a_fold(make):
    x, y = np.random.default_rng(0).random((12, 3)), np.arange(12)
    fold = make(range(3, 6))
    dls = DataLoaders.from_arrays(x, y, valid=fold, bs=4, normalize=True)
    rest = [*range(3), *range(6, 12)]
    assert drawn(dls.valid) == [3, 4, 5]
    assert sorted(drawn(dls.train)) == rest
    xb, yb = next(iter(dls.valid))
    np.testing.assert_allclose(xb, (x[yb] - x[rest].mean(0))/x[rest].std(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('own', [True, False])
def test_from_arrays_takes_several_inputs_and_targets_of_any_dtype_each_normalized_by_itself(own):
    r = np.random.default_rng(0)
    table, images, ids = r.normal(5, 2, (30, 3)), r.integers(0, 256, (30, 6, 6, 3), np.uint8), np.arange(30, dtype='i4')
    y, weight = np.arange(30) % 2, r.random(30)
    pair = tuple(a[20:] for a in (table, images, ids)), (y[20:], weight[20:])
    dls = DataLoaders.from_arrays((table, images, ids), (y, weight), pair if own else range(20, 30), 7, normalize=True)
    train = slice(0, 30 if own else 20)
    for loader in (dls.train, dls.valid):
        for tb, ib, db, yb, wb in loader:
            np.testing.assert_allclose(tb, (table[db] - table[train].mean(0))/table[train].std(0), rtol=1e-4, atol=1e-5)
            im = images.transpose(0, 3, 1, 2)/255
            mean, std = (f(im[train], axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
            np.testing.assert_allclose(ib, (im[db] - mean)/std, rtol=1e-4, atol=1e-5)
            assert (db.dtype, wb.dtype, yb.tolist()) == (torch.int64, torch.float32, y[db].tolist())
    for a, t in zip((table, images, ids, y, weight), dls.train.tensors, strict=True):
        assert np.shares_memory(a, t.numpy())


@pytest.mark.parametrize(('shape', 'given', 'moved'), [
    ((6, 7, 8, 3), None, True), ((6, 7, 8, 1), None, True), ((6, 3, 8, 3), None, False), ((6, 16, 4, 4), None, False),
    ((6, 3, 8, 3), True, True), ((6, 7, 8, 3), False, False), ((6, 7, 8), None, False), ((6, 7, 8), True, False),
    ((6, 7, 8, 5), None, False), ((6, 7, 8, 5), True, True)])
@pytest.mark.parametrize('dtype', ['u1', 'f4', 'i4'])
def test_from_arrays_moves_the_channels_of_images_whose_shape_is_clear_or_that_are_said_to_have_them_last(
        shape, given, moved, dtype):
    x = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    if dtype == 'f4' and given is None and moved: return  # an error, see below
    batches = list(DataLoaders.from_arrays(x, np.arange(6), range(3), 2, channels_last=given).train)
    expected = x/255 if dtype == 'u1' else x
    if moved and (given or dtype == 'u1'): expected = expected.transpose(0, 3, 1, 2)
    elif x.ndim == 3 and dtype == 'u1': expected = expected[:, None]
    for xb, yb in batches:
        np.testing.assert_allclose(xb, expected[yb.numpy()], rtol=1e-6)
        assert xb.is_contiguous()


# A loader put in later

def normalized():
    return DataLoaders.from_arrays(np.random.default_rng(0).random((20, 3)), np.arange(20), normalize=True)


@pytest.mark.parametrize('new', [lambda: MemoryLoader(np.zeros((4, 3)), bs=2), lambda: [(torch.zeros(4, 3),)],
                                 lambda: DataLoader(TensorDataset(torch.zeros(4, 3)))])
def test_a_loader_that_is_not_normalized_as_the_other_is_reported_when_it_is_put_in(new):
    said = r'the inputs of valid, a .*, are normalized .*, and those of train by mean \[.*\] and .*train.like\(x, y\)'
    dls = normalized()
    with pytest.warns(UserWarning, match=said) as warned: dls.valid = new()
    assert warned[0].filename == __file__
    with pytest.warns(UserWarning, match=said): DataLoaders(normalized().train, new())
    dls = DataLoaders((), normalized().valid)
    with pytest.warns(UserWarning, match='the inputs of train, .* those of valid'): dls.train = new()


def test_a_normalized_loader_put_next_to_one_that_is_not_is_reported():
    dls = DataLoaders.from_arrays(torch.zeros(20, 3), torch.arange(20))
    with pytest.warns(UserWarning, match='valid, .* by mean .* and those of train by nothing'):
        dls.valid = normalized().valid


def test_a_loader_that_is_normalized_alike_an_empty_one_and_unknown_ones_are_not_reported():
    dls = normalized()
    dls.valid = dls.valid.like(np.ones((5, 3)), np.arange(5))
    dls.valid = ()
    dls.train = ()
    DataLoaders([1], DataLoader(TensorDataset(torch.zeros(4, 3))))
    plain = DataLoaders.from_arrays(torch.zeros(20, 3), torch.arange(20))
    plain.valid = [1]


def test_from_arrays_and_cached_keep_a_subclass_and_its_attributes(dd):
    class Mine(DataLoaders): pass
    assert type(Mine.from_arrays(*arrays())) is Mine
    dls = Mine.from_dd(dd.with_format('torch'), 4)
    dls.note = 'mine'
    cached = dls.cached()
    assert (type(cached), cached.note) == (Mine, 'mine')
    assert isinstance(dls.train, DataLoader)
    assert isinstance(cached.train, MemoryLoader)


# What users have: folders, tables, and other data for the same model

def test_loaders_that_are_not_from_memory_or_whose_batches_are_no_tuples_have_no_recipe(dd):
    ordinary = DataLoaders.from_dd(dd.with_format('torch'), 4)
    assert ordinary.recipe is None
    assert ordinary.cached().recipe is None
    assert DataLoaders([], []).recipe is None
    with pytest.raises(ValueError, match='make the loader yourself'): ordinary.test(torch.zeros(2, 3))


def test_a_recipe_is_that_of_the_loader_in_memory_whichever_it_is_and_follows_it():
    dls = DataLoaders.from_arrays(torch.randn(20, 3), torch.arange(20) % 2, normalize=([1., 2., 3.], [1., 1., 1.]))
    assert dls.recipe.to_dict()['scalings'] == [dict(mean=[1., 2., 3.], std=[1., 1., 1.], channels_last=False)]
    with pytest.warns(UserWarning, match='normalized'): dls.train = [1]
    assert dls.recipe.scalings[0]['mean'] == [1., 2., 3.]


def test_names_given_to_classes_are_those_of_the_recipe_and_targets_may_be_names():
    x, y = torch.randn(20, 3), torch.arange(20) % 2
    dls = DataLoaders.from_arrays(x, y, bs=8)
    assert dls.classes is None
    dls.classes = ['no', 'yes']
    assert dls.recipe.classes == ['no', 'yes']
    assert torch.cat([yb for _, yb in dls.test(x[:5], ['no', 'yes', 'no', 'yes', 'yes'])]).tolist() == [0, 1, 0, 1, 1]


def test_classes_of_a_folder_or_table_get_other_names_and_test_data_may_have_either(tmp_path):
    write_folder(tmp_path, in_classes())
    table = pd.DataFrame(dict(a=range(10), y=[0, 1]*5))
    for dls, data in ((DataLoaders.from_folder(tmp_path), tmp_path), (DataLoaders.from_table(table, 'y'), table)):
        before, old = dls.recipe, dls.test(data).tensors[-1]
        dls.classes = ['no', 'yes']
        assert dls.recipe.classes == dls.classes == ['no', 'yes'] != before.classes
        recipe = Recipe.from_dict(dls.recipe.to_dict())
        assert torch.equal(recipe.test(data).tensors[-1], old)
        assert recipe.target(['yes', 'no']).tolist() == [1, 0]
        dls.classes = dls.classes[::-1]
        assert torch.equal(dls.test(data).tensors[-1], old)  # what the data are called comes first
        for wrong in ('no', ['no'], None):
            with pytest.raises(ValueError, match='classes must be 2 names, for yes, no, got'): dls.classes = wrong
    numbers = DataLoaders.from_table(table, 'y', classes=False)
    with pytest.raises(ValueError, match='the data have no classes to name'): numbers.classes = ['no', 'yes']


def test_a_test_loader_has_the_batch_size_and_device_of_validation():
    dls = DataLoaders.from_arrays(torch.randn(20, 3), torch.arange(20) % 2, bs=4, device='meta')
    test = dls.test(torch.randn(20, 3), torch.zeros(20))
    assert [(len(xb), xb.device.type) for xb, _ in test] == [(8, 'meta'), (8, 'meta'), (4, 'meta')]
    assert len(dls.test(torch.randn(20, 3), bs=3)) == 7


def test_from_folder_and_from_table_keep_a_subclass(tmp_path):
    class Mine(DataLoaders): pass
    write_folder(tmp_path, in_classes())
    table = pd.DataFrame(dict(a=range(10), y=[0, 1]*5))
    for dls in (Mine.from_folder(tmp_path), Mine.from_table(table, 'y')):
        assert type(dls) is Mine
        assert dls.recipe.classes == dls.classes
        assert dls.cached().train is dls.train


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    path = tmp_path_factory.mktemp('photos')
    write_folder(path, in_classes())
    write_folder(path, ['one/a/1.png', 'one/a/2.png', 'loose/1.png', 'loose/a/1.png', 'none/a.txt.png/x/1.png'])
    write_folder(path, in_classes(split='more/train/') + in_classes(classes='abc', split='more/valid/'))
    write_folder(path, in_classes(split='held/valid/'))
    write_folder(path, in_classes(split='damaged/'))
    (path/'damaged'/'b'/'2.png').write_bytes(b'')
    (path/'empty'/'a').mkdir(parents=True)
    (path/'empty'/'a'/'1.heic').write_bytes(b'')
    write_folder(path, in_classes(split='good/'))
    return path


@pytest.mark.parametrize(('folder', 'given', 'error', 'said'), [
    ('nowhere', {}, FileNotFoundError, 'no folder .*nowhere'),
    ('good/a/1.png', {}, FileNotFoundError, r'no folder .*1\.png'),
    ('empty', {}, PictureError, r'no pictures that Pillow reads in .*empty, but files such as 1\.heic'),
    ('one', {}, PictureError, 'are of one class, a: there must be a folder for each of two'),
    ('loose', {}, PictureError, r'such as 1\.png, .* move 1 of them into folders for their classes'),
    ('more', {}, PictureError, 'validation has the class c, which training lacks'),
    ('held', {}, PictureError, 'has the folder valid, but none called train'),
    ('damaged', {}, PictureError, r'1 of 12 pictures cannot be read.*skip_bad=True:\n.*2\.png: it is empty'),
    ('good', dict(size=0), ValueError, 'size must be a number of pixels, or a height and a width, got 0'),
    ('good', dict(size='224'), ValueError, "got '224'"), ('good', dict(channels=4), ValueError, '1 for gray or 3'),
    ('good', dict(fit='pad'), ValueError, "fit must be 'crop' or 'squash', got 'pad'"),
    ('good', dict(valid=1.5), ValueError, 'between 0 and 1, got 1.5'),
    ('good', dict(valid=.01), ValueError, 'leaves none for validation'),
    ('good', dict(valid=[1, 1]), ValueError, 'the same index twice'),
    ('good', dict(valid=[12]), ValueError, '12 samples'),
    ('good', dict(valid=None), TypeError, 'a fraction, another folder, the indices .* of a path, got a None'),
    ('good', dict(valid=range(6)), PictureError, 'no picture of a is left for training, and validation has some'),
    ('good', dict(valid='nowhere'), FileNotFoundError, 'no folder nowhere, which valid names'),
    ('good', dict(normalize=3), ValueError, 'True, False, or a pair of mean and standard deviation, got 3'),
    ('good', dict(normalize=([.5]*3, [0.]*3)), ValueError, 'std above 0'),
    ('good', dict(normalize=([.5]*2, [.5]*2)), ValueError, 'one for each channel'),
    ('good', dict(bs=0), ValueError, 'the batch size must be 1 or more, got 0'),
    ('good', dict(workers=-1), ValueError, 'workers must be 1 or more, got -1')])
def test_from_folder_says_what_is_wrong(photos, folder, given, error, said):
    with pytest.raises(error, match=said): DataLoaders.from_folder(photos/folder, **given)


TABLE = pd.DataFrame(dict(price=np.linspace(1, 9, 120), kind=['a', 'b']*60, day=pd.date_range('2020', periods=120),
                          id=[f'id {i}' for i in range(120)], tags=[[1]]*120, gap=[None]*119 + [1.],
                          inf=[np.inf]*120, y=['no', 'yes']*60))
FINE = TABLE[['price', 'kind', 'y']]


@pytest.mark.parametrize(('table', 'given', 'error', 'said'), [
    ('nowhere.csv', {}, FileNotFoundError, r'no file nowhere\.csv'),
    ('table.xlsx', {}, TableError, r'table\.xlsx is no table that can be read: give \.csv'),
    (5, {}, TableError, 'no table can be made of type int'), (FINE.iloc[:0], {}, TableError, 'the table has no rows'),
    (FINE, dict(y='Y'), TableError, "no column 'Y'; it has price, kind, y"),
    (FINE, dict(cont=['prize']), TableError, "no column 'prize'; did you mean 'price'?"),
    (FINE, dict(drop='kin'), TableError, "no column 'kin'; did you mean 'kind'?"),
    (FINE, dict(cat=['y']), TableError, 'y is the column to predict: it cannot be an input'),
    (FINE, dict(cat=['kind'], cont=['kind']), TableError, 'the column kind is there twice'),
    (FINE[['kind', 'kind', 'y']], {}, TableError, 'the column kind is there twice'),
    (FINE[['y']], {}, TableError, 'no column but y to predict from'),
    (FINE, dict(cont=['kind']), TableError, "the column kind should hold numbers, and row 0 has 'a': .* in cat"),
    (TABLE[['day', 'y']], {}, TableError, 'the column day holds dates: turn them into numbers, such as year'),
    (TABLE[['id', 'y']], {}, TableError, 'id has 96 different values in 96 rows, so it says little about others: drop'),
    (TABLE[['tags', 'y']], {}, TableError, r'tags holds neither numbers nor text, but values such as \[1\]: drop it'),
    (TABLE[['inf', 'y']], {}, TableError, 'inf should hold numbers, and row 0 has inf'),
    (TABLE[['gap', 'y']], dict(valid=[119]), TableError, 'gap has no number in the training rows: drop it'),
    (FINE.assign(y='no'), {}, TableError, 'y has a single class, no: there must be two'),
    (FINE.assign(y=None), {}, TableError, 'the column y to predict is empty'),
    (FINE.assign(y=[None] + ['no', 'yes']*59 + ['no']), dict(valid=[5]), TableError,
     r'empty in 1 of 119 rows, such as row 0: drop them, or use skip_bad=True'),
    (FINE.assign(y=TABLE.id), {}, TableError, 'y to predict has 96 different values in 96 rows: .*classes=True'),
    (FINE.assign(y=TABLE.day), {}, TableError, 'y holds dates'),
    (FINE, dict(classes=False), TableError, "y should hold numbers, and row 0 has 'no'"),
    (FINE, dict(valid=0), ValueError, 'between 0 and 1, got 0'),
    (FINE, dict(valid='split'), TableError, "valid is 'split', which is neither a column of the table nor a file"),
    (FINE, dict(valid='kind'), TableError, "kind names no row for validation: it should say 'train' or 'valid'"),
    (FINE, dict(valid=[120]), ValueError, 'there are 120 samples'),
    (FINE, dict(valid=FINE[['price', 'y']]), TableError, 'the table lacks what the model was trained on: kind'),
    (FINE, dict(valid=FINE[['price', 'kind']]), TableError, 'the validation table lacks the column y to predict'),
    (FINE, dict(valid=FINE.assign(y='maybe')), TableError, 'y has the class maybe, which the training rows lack'),
    (FINE, dict(valid=FINE.assign(price='cheap')), TableError, "price should hold numbers, and row 0 has 'cheap'"),
    (FINE, dict(bs=0), ValueError, 'the batch size must be 1 or more, got 0')])
def test_from_table_says_what_is_wrong(table, given, error, said):
    with pytest.raises(error, match=said): DataLoaders.from_table(table, **dict(y='y') | given)


@given(st.integers(1, 40), st.integers(1, 10), st.booleans())
def test_the_size_of_the_last_batch_is_known_before_it_is_loaded(n, bs, drop_last):
    ds = TensorDataset(torch.arange(n))
    for dl in (DataLoader(ds, bs, shuffle=True, drop_last=drop_last),
               MemoryLoader(*ds.tensors, bs=bs, drop_last=drop_last),
               DataLoader(ds, batch_sampler=BatchSampler(SequentialSampler(ds), bs, drop_last))):
        *_, last = [None, *dl]
        if last is not None: assert last_batch_size(dl) == len(last[0])


def test_the_size_of_the_last_batch_of_other_loaders_is_not_known():
    own = DataLoader(TensorDataset(torch.arange(3)), batch_sampler=[[0, 1], [2]])
    assert [last_batch_size(dl) for dl in (own, [1, 2], DataLoader(range(3), batch_size=None))] == [None]*3
