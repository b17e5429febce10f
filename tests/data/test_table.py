"Rows of a table as inputs, compared with what scikit-learn and pandas make of them; and what a recipe does later."
import datetime
import pickle
from copy import deepcopy
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from miniai import DataLoaders, checkpoint
from miniai.data.memory import MemoryLoader
from miniai.data.recipe import Recipe
from miniai.data.split import split_rows
from miniai.data.table import TableRecipe
from miniai.data.table_files import TableError

load = DataLoaders.from_table
RNG = np.random.default_rng(0)
N = 60
DF = pd.DataFrame(dict(a=RNG.normal(5, 3, N), b=RNG.integers(0, 9, N), c=RNG.choice(['x', 'y', 'é'], N),
                       flag=RNG.random(N) > .5, y=RNG.choice(['no', 'yes'], N)))


def with_gaps(df, *columns, every=5):
    missing = np.arange(len(df)) % every == 0
    return df.assign(**{c: (df[c].astype(object) if df[c].dtype == bool else df[c]).mask(missing) for c in columns})


def whole(dl):
    "Inputs and targets of all rows in the order of the arrays."
    return next(iter(MemoryLoader(*dl.tensors, bs=10**6, n_inp=dl.n_inp)))


# Against scikit-learn

@settings(max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([(1, 0), (10, 2000), (1e-6, 0), (1e6, -1e5)]))
def test_numbers_are_filled_with_the_median_scaled_and_flagged_as_by_scikit_learn(seed, scale_and_shift):
    preprocessing, impute = pytest.importorskip('sklearn.preprocessing'), pytest.importorskip('sklearn.impute')
    rng, (scale, shift) = np.random.default_rng(seed), scale_and_shift
    x = rng.normal(size=(40, 4))*scale + shift
    x[:, 3] = .1  # constant
    x[rng.random((40, 4)) < [.3, 0, .1, 0]] = np.nan
    df = pd.DataFrame(x, columns=list('abcd')).assign(y=rng.normal(size=40))
    train, held_out = split_rows(40, .25, seed)
    if np.isnan(x[train]).all(0).any(): return
    dls = load(df, 'y', valid=.25, seed=seed)
    imputer, scaler = impute.SimpleImputer(strategy='median'), preprocessing.StandardScaler()
    scaler.fit(imputer.fit_transform(x[train]))
    flagged = np.isnan(x[train]).any(0)
    assert dls.recipe.flags == [c for c, there in zip('abcd', flagged, strict=True) if there]
    y = preprocessing.StandardScaler().fit(df.y.to_numpy()[train, None])
    for dl, rows in ((dls.train, train), (dls.valid, held_out)):
        expected = np.concatenate([scaler.transform(imputer.transform(x[rows])), np.isnan(x[rows])[:, flagged]], 1)
        numbers, targets = whole(dl)
        np.testing.assert_allclose(numbers, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(targets, y.transform(df.y.to_numpy()[rows, None])[:, 0], rtol=1e-5, atol=1e-5)
        assert numbers.dtype == targets.dtype == torch.float32


@given(st.lists(st.sampled_from([None, 'b', 'a', 'ü', 'B', '10', '9']), min_size=10, max_size=30))
def test_categories_are_numbered_from_1_as_by_scikit_learn_and_0_is_missing_or_unknown(values):
    preprocessing = pytest.importorskip('sklearn.preprocessing')
    df = pd.DataFrame(dict(c=pd.Series(values, dtype=object), y=[0, 1]*(len(values)//2) + [0]*(len(values) % 2)))
    dls = load(df, 'y', cat=['c'], valid=[1, 2, 3])
    known = df.c.drop([1, 2, 3]).dropna()
    if not len(known): return
    encoder = preprocessing.OrdinalEncoder(handle_unknown='use_encoded_value', unknown_value=-1,
                                           encoded_missing_value=-1).fit(known.to_numpy()[:, None])
    expected = encoder.transform(df.c.where(df.c.notna(), '?').to_numpy()[:, None])[:, 0] + 1
    empty, codes = dls.recipe.read(df)[0]
    assert codes[:, 0].tolist() == expected.tolist()
    assert (empty.shape, codes.dtype) == ((len(df), 0), torch.int64)
    assert dls.recipe.facts == dict(numbers=0, categories=[len(set(known)) + 1], outputs=2)


# Which columns are what

@pytest.mark.parametrize(('column', 'values'), [
    (['p', 'q']*30, ['p', 'q']), ([True, False]*30, ['False', 'True']), ([True, None, False]*20, ['False', 'True']),
    (pd.array([True, None]*30, 'boolean'), ['True']), (pd.Categorical([3, 1]*30), ['1', '3']),
    (pd.array(['p', None]*30, 'string'), ['p']), ([datetime.date(2020, 1, 1)]*60, ['2020-01-01']),
    ([None, 'k']*30, ['k'])])
def test_text_bools_and_categories_are_categories(column, values):
    recipe = load(DF[['a', 'y']].assign(new=column), 'y').recipe
    assert recipe.categories == dict(new=values)
    assert list(recipe.numbers) == ['a']


@pytest.mark.parametrize('column', [
    range(60), [1, None, 2]*20, pd.array([1, None]*30, 'Int64'), pd.array([1.5, None]*30, 'Float64'),
    np.arange(60, dtype=np.uint8), np.arange(60, dtype=np.float32), [2**53]*30 + [1]*30])
def test_numbers_of_any_dtype_are_numbers(column):
    df = DF[['c', 'y']].assign(new=column)
    recipe = load(df, 'y').recipe
    x = pd.Series(column).astype('Float64').to_numpy(float, na_value=np.nan)[split_rows(60, .2, 0)[0]]
    x = np.where(np.isnan(x), np.nanmedian(x), x)
    assert list(recipe.categories) == ['c']
    assert recipe.numbers['new'] == pytest.approx(dict(fill=np.median(x), mean=x.mean(), std=x.std() or 1.))


def test_cat_and_cont_name_all_columns_of_their_kind_and_without_them_the_dtype_decides():
    df = DF.assign(text=[f'{i}.5' for i in range(N)], many=[f'id{i}' for i in range(N)])
    recipe = load(df, 'y', cont=['text', 'a']).recipe
    assert (list(recipe.numbers), list(recipe.categories)) == (['text', 'a'], ['c', 'flag', 'many'])
    recipe = load(df, 'y', cat=['b', 'many']).recipe
    assert (list(recipe.numbers), list(recipe.categories)) == (['a'], ['b', 'many'])
    recipe = load(df, 'y', cat='b', cont='a').recipe
    assert (list(recipe.numbers), list(recipe.categories)) == (['a'], ['b'])
    assert list(load(df, 'y', cat=[], drop='many').recipe.numbers) == ['a', 'b']
    assert list(load(df, 'y', drop=['many', 'text', 'c']).recipe.categories) == ['flag']


def test_decimals_are_numbers_if_named():
    df = DF[['y']].assign(price=[Decimal(f'{i}.25') for i in range(N)])
    assert load(df, 'y', cont=['price']).recipe.numbers['price']['fill'] % 1 in (.25, .75)


@pytest.mark.parametrize(('value', 'n'), [(.1, 60), (1e9 + .1, 60), (-3, 7), (.3, 1000)])
def test_a_constant_column_becomes_0(value, n):
    df = pd.DataFrame(dict(k=[value]*n, y=np.arange(n)*1.5))
    numbers, _ = whole(load(df, 'y').train)
    assert numbers.abs().max() < 1e-6
    assert load(df, 'y').recipe.read(pd.DataFrame(dict(k=[value + 1])))[0][0].item() == pytest.approx(1, abs=1e-6)


def test_columns_may_have_numbers_as_names(tmp_path):
    df = pd.DataFrame(RNG.normal(size=(20, 4)))
    recipe = load(df, 3).recipe
    checkpoint.save(tmp_path/'r', recipe.to_dict())
    new = Recipe.from_dict(checkpoint.load(tmp_path/'r'))
    assert torch.equal(new.read(df)[0][0], recipe.read(df)[0][0])
    assert torch.equal(new.target(df[3]), recipe.target(df[3]))


# Targets

@pytest.mark.parametrize(('y', 'classes'), [
    (['b', 'a']*30, ['a', 'b']), ([True, False]*30, ['False', 'True']), ([2, 10, 1]*20, ['1', '2', '10']),
    ([2., 10., 1.]*20, ['1', '2', '10']), (pd.Categorical(['b', 'a']*30), ['a', 'b']),
    (pd.array([1, 2]*30, 'Int64'), ['1', '2']), (list(range(20))*3, [str(i) for i in range(20)]),
    (['10', '9', 'x']*20, ['9', '10', 'x'])])
def test_text_bools_and_few_whole_numbers_are_classes_in_order(y, classes):
    dls = load(DF.assign(y=y), 'y', valid=.3)
    assert dls.classes == dls.recipe.classes == classes
    found = torch.cat([whole(dl)[-1] for dl in (dls.train, dls.valid)])
    assert sorted(classes[i] for i in found) == sorted(str(v).removesuffix('.0') for v in y)
    assert found.dtype == torch.int64
    by_hand = dls.recipe.target(pd.Series(y))
    assert [classes[i] for i in by_hand] == [str(v).removesuffix('.0') for v in y]
    assert dls.recipe.facts['outputs'] == len(classes)


@pytest.mark.parametrize('y', [np.arange(60)*1.5, list(range(60)), [.1]*60, [1.5, 2]*30])
def test_other_numbers_are_scaled_by_training(y):
    dls = load(DF.assign(y=y), 'y')
    train = np.array(y, float)[split_rows(60, .2, 0)[0]]
    assert dls.classes is None
    assert dls.recipe.target_mean == pytest.approx(train.mean())
    assert dls.recipe.target_std == pytest.approx(train.std() if np.ptp(train) else 1.)
    np.testing.assert_allclose(whole(dls.train)[-1], (train - train.mean())/(train.std() if np.ptp(train) else 1.),
                               rtol=1e-5, atol=1e-6)


def test_a_class_of_which_all_rows_are_drawn_for_validation_stays_in_training():
    rows = split_rows(60, .2, 0)[1].tolist()
    y = pd.Series(['a', 'b']*30)
    y[rows[0]] = y[rows[1]] = 'rare'
    dls = load(DF.assign(y=y), 'y')
    assert dls.classes == ['a', 'b', 'rare']
    assert (dls.train.n, dls.valid.n) == (50, 10)
    assert (whole(dls.train)[-1] == 2).sum() == 2
    with pytest.raises(TableError, match='y has the class rare, which the training rows lack'):
        load(DF.assign(y=y), 'y', valid=rows)


def test_classes_says_whether_there_are_classes():
    df = DF.assign(y=[1, 2, 3]*20, text=['1.5', '2']*30, many=[f'{i}' for i in range(N)])
    assert load(df, 'y', classes=False).classes is None
    assert load(df, 'text', classes=False).classes is None
    assert load(df.assign(y=[1.5, 2.]*30), 'y', classes=True).classes == ['1.5', '2']


def test_rows_without_a_target_are_an_error_that_names_one_or_are_skipped_and_counted():
    df = DF.set_index(pd.Index(range(100, 160)))
    df.loc[117, 'y'] = None
    with pytest.raises(TableError, match=r'y to predict is empty in 1 of 48 rows, such as row 117: .*skip_bad=True'):
        load(df, 'y', valid=range(12))
    with pytest.warns(UserWarning, match='1 of 48 rows have no y and are skipped') as w:
        dls = load(df, 'y', valid=range(12), skip_bad=True)
    assert w[0].filename == __file__
    assert (dls.train.n, dls.valid.n) == (47, 12)
    assert dls.classes == ['no', 'yes']


# Only the training rows count

def test_nothing_is_fitted_on_validation_rows():
    df = with_gaps(DF, 'a')
    other = df.iloc[48:].assign(a=1e6, c='new', b=None, flag=None)
    recipes = [load(df.iloc[:48], 'y', valid=v).recipe for v in (df.iloc[48:], other)]
    assert recipes[0].to_dict() == recipes[1].to_dict()
    numbers, codes, _ = whole(load(df.iloc[:48], 'y', valid=other).valid)
    assert (codes == 0).all()
    b = recipes[0].numbers['b']
    assert numbers[:, 1].tolist() == pytest.approx([(b['fill'] - b['mean'])/b['std']]*12, abs=1e-6)


@pytest.mark.parametrize('change', [
    lambda df: df.astype(dict(b='float32', a='float16')).assign(a=df.a), lambda df: df.assign(b=df.b.astype(str)),
    lambda df: df.assign(flag=df.flag.astype(object)), lambda df: df[df.columns[::-1]], lambda df: df.assign(extra='x'),
    lambda df: df.astype(dict(c='category', y='category')), lambda df: df.convert_dtypes(),
    lambda df: df.set_index(df.b), lambda df: df.to_dict('records')])
def test_other_dtypes_order_and_columns_in_validation_make_no_difference(change):
    expected, found = (load(DF, 'y', valid=v).valid for v in (DF.iloc[:20], change(DF.iloc[:20])))
    for a, b in zip(whole(expected), whole(found), strict=True): assert torch.equal(a, b)


# Later rows

RECIPE = load(with_gaps(DF, 'a', 'c', 'flag'), 'y').recipe


@pytest.mark.parametrize('i', [0, 1, 17])
def test_a_row_in_any_form_is_that_of_the_table(tmp_path, i):
    df = with_gaps(DF, 'a', 'c', 'flag')
    df.to_csv(tmp_path/'t.csv', index=False)
    df.to_json(tmp_path/'t.jsonl', orient='records', lines=True)
    expected, _ = RECIPE.read(df)
    for x in (df.iloc[i], df.iloc[i].to_dict(), df.drop(columns='y').iloc[i]):
        found, single = RECIPE.read(x)
        assert single
        for a, b in zip(found, expected, strict=True): assert torch.equal(a, b[i:i + 1])
    for x in (df.to_dict('records'), tmp_path/'t.csv', str(tmp_path/'t.jsonl')):
        found, single = RECIPE.read(x)
        assert not single
        for a, b in zip(found, expected, strict=True): torch.testing.assert_close(a, b)


def test_an_unknown_or_missing_value_is_category_0_or_the_median_with_a_flag():
    (numbers, codes), _ = RECIPE.read(dict(a=None, b=3, c='never seen', flag=None))
    a = RECIPE.numbers['a']
    assert numbers[0, [0, 2]].tolist() == pytest.approx([(a['fill'] - a['mean'])/a['std'], 1], abs=1e-6)
    assert codes.tolist() == [[0, 0]]


@pytest.mark.parametrize('values', [[True, False, None], [1, 0, None], [1., 0., np.nan], ['True', 'False', None]])
def test_bools_of_training_may_be_0_and_1_later(values):
    x = pd.DataFrame(dict(a=1., b=1, c='x', flag=pd.Series(values)))
    assert RECIPE.read(x)[0][1][:, 1].tolist() == [2, 1, 0]


@pytest.mark.parametrize(('x', 'said'), [
    (dict(a=1, b=1, c=['x'], flag=True), r"the column c holds neither numbers nor text, but values such as \['x'\]"),
    (dict(a=1), 'the table lacks what the model was trained on: b, c, flag'), ([], 'no rows'), (None, 'no rows'),
    (dict(a='abc', b=1, c='x', flag=True), "the column a should hold numbers, and row 0 has 'abc'"),
    (dict(a=1, b=[1, 2], c='x', flag=True), r'the column b should hold numbers, and row 0 has \[1, 2\]'),
    (dict(a=1, b=np.inf, c='x', flag=True), 'the column b should hold numbers, and row 0 has inf'),
    (5, 'no table can be made of type int'), ('t.txt', 't.txt is no table')])
def test_rows_that_do_not_fit_are_an_error_that_says_what_is_wrong(x, said):
    with pytest.raises(TableError, match=said): RECIPE.read(x)


def test_a_test_loader_has_the_bits_of_validation_and_targets_where_there_are_some():
    dls = load(DF, 'y', valid=DF.iloc[:20], bs=8)
    for x, y in ((DF.iloc[:20], None), (DF.drop(columns='y').iloc[:20], DF.y[:20]),
                 (DF.drop(columns='y').iloc[:20], DF.y[:20].tolist())):
        for a, b in zip(dls.valid, dls.test(x, y), strict=True): assert all(map(torch.equal, a, b))
    assert [len(b) for b in dls.test(DF.drop(columns='y'))] == [2]*4
    with pytest.raises(TableError, match='y has the class maybe, which the training rows lack'):
        dls.test(DF.assign(y='maybe'))


def test_targets_of_a_test_loader_are_scaled_as_in_training():
    dls = load(DF, 'a', drop=['c'])
    expected = (DF.a - dls.recipe.target_mean)/dls.recipe.target_std
    for y in (None, DF.a, DF.a.tolist(), DF.a.to_numpy()):
        np.testing.assert_allclose(torch.cat([b[-1] for b in dls.test(DF, y)]), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('make', [
    lambda: RECIPE, lambda: load(DF, 'a').recipe, lambda: load(DF[['c', 'y']], 'y').recipe,
    lambda: load(DF[['a', 'b']], 'b').recipe])
def test_a_recipe_in_a_checkpoint_gives_the_same_batches(tmp_path, make):
    recipe, df = make(), with_gaps(DF, 'c')
    checkpoint.save(tmp_path/'r', recipe.to_dict())
    new = Recipe.from_dict(checkpoint.load(tmp_path/'r'))
    assert isinstance(new, TableRecipe)
    assert vars(new) == vars(recipe)
    for a, b in zip(recipe.test(df), new.test(df), strict=True): assert all(map(torch.equal, a, b))


@pytest.mark.parametrize('shift', [0, 2e9])
def test_the_module_fills_and_scales_as_the_loader_does_even_far_from_zero(shift):
    df = with_gaps(DF.assign(a=DF.a + shift), 'a')
    recipe = load(df, 'y').recipe
    kept, _ = recipe.read(df)
    numbers = torch.from_numpy(df[['a', 'b']].to_numpy(float))
    for inputs in ((numbers, kept[1]), recipe.raw(kept)):
        for found, expected in zip(recipe.module()(*inputs), kept, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    about = recipe.described
    assert [d['shape'] for d in about] == [['batch', 2], ['batch', 2]]
    assert [d['dtype'] for d in about] == [str(t.dtype).removeprefix('torch.') for t in recipe.raw(kept)]
    assert [d['columns'] for d in about] == [['a', 'b'], ['c', 'flag']]


@pytest.mark.parametrize('copied', [deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_loaders_of_a_table_are_copied_and_pickled(copied):
    dls = load(DF, 'y', bs=8)
    new = copied(dls)
    for a, b in zip(dls.train, new.train, strict=True): assert all(map(torch.equal, a, b))
    assert new.recipe.to_dict() == dls.recipe.to_dict()


def test_show_gives_rows_of_the_training_part_in_their_own_units():
    df = pd.DataFrame(dict(a=np.arange(40.), kind=['x', None]*20, price=np.arange(40.)*2 + 7))
    df.loc[::5, 'a'] = np.nan
    dls = DataLoaders.from_table(df, 'price', valid=range(30, 40))
    shown = dls.show(6)
    assert len(shown) == 6
    rows = ((shown.price - 7)/2).round().astype(int)
    assert rows.is_unique
    assert rows.max() < 30
    want = df.iloc[rows].reset_index(drop=True)
    pd.testing.assert_frame_equal(shown[['a', 'kind']], want[['a', 'kind']], check_dtype=False, rtol=1e-4)
    assert shown.price.tolist() == want.price.tolist()  # without the errors of float32
    assert shown.price.tolist() == dls.show(6).price.tolist()


def test_a_table_without_rows_is_an_error_and_rows_may_come_one_after_the_other():
    table = pd.DataFrame(dict(a=np.arange(20.), y=['no', 'yes']*10))
    recipe = DataLoaders.from_table(table, 'y').recipe
    with pytest.raises(TableError, match='the table has no rows'): recipe.read(table[:0])
    rows = table.to_dict('records')
    assert torch.equal(recipe.read(iter(rows))[0][0], recipe.read(rows)[0][0])
