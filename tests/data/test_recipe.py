"A recipe of arrays gives the batches of the loader that it was taken from, and survives a checkpoint."
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from miniai import DataLoaders, checkpoint
from miniai.data.recipe import RECIPES, Recipe

KINDS = {'floats': np.random.default_rng(0).normal(2, 3, (20, 5)), 'float tensor': torch.randn(20, 5)*3 + 2,
         'pixels': np.random.default_rng(0).integers(0, 256, (20, 5), dtype=np.uint8),
         'images': torch.randn(20, 6, 6, 3)*3 + 2}


def loaders(kind, **given):
    return DataLoaders.from_arrays(KINDS[kind], np.arange(20), valid=range(12, 20), bs=4, normalize=True,
                                   channels_last=True if kind == 'images' else None, **given)


def batches_alike(a, b):
    pairs = list(zip(a, b, strict=True))
    return bool(pairs) and all(len(x) == len(y) and all(map(torch.equal, x, y)) for x, y in pairs)


@pytest.mark.parametrize('kind', KINDS)
def test_a_test_loader_has_the_bits_of_validation(kind):
    dls = loaders(kind)
    x, y = KINDS[kind][12:], np.arange(12, 20)
    assert batches_alike(dls.valid, dls.test(x, y))
    assert [len(b) for b in dls.test(x)] == [1]
    assert [len(b[0]) for b in dls.test(x, bs=3)] == [3, 3, 2]


@pytest.mark.parametrize('kind', KINDS)
def test_a_recipe_in_a_checkpoint_gives_the_same_batches(tmp_path, kind):
    recipe = loaders(kind).recipe
    checkpoint.save(tmp_path/'r', recipe.to_dict())
    new = Recipe.from_dict(checkpoint.load(tmp_path/'r'))
    assert vars(new) == vars(recipe)
    assert batches_alike(recipe.test(KINDS[kind]), new.test(KINDS[kind]))


@pytest.mark.parametrize('kind', KINDS)
def test_the_scaling_as_a_module_gives_what_the_loader_gives(kind):
    recipe = loaders(kind).recipe
    kept, _ = recipe.read(KINDS[kind])
    (xb, *_), = recipe.test(KINDS[kind])
    tensors = [torch.as_tensor(np.asarray(kept[0]), dtype=getattr(torch, recipe.dtypes[0]))]
    out, = recipe.module()(*recipe.raw(tensors))
    torch.testing.assert_close(out, xb, rtol=1e-5, atol=1e-6)
    assert [d['shape'] for d in recipe.described] == [['batch', *KINDS[kind].shape[1:]]]


@pytest.mark.parametrize('kind', KINDS)
def test_a_single_sample_is_told_from_many(kind):
    recipe, x = loaders(kind).recipe, KINDS[kind]
    for sample, expected, single in ((x[3], x[3:4], True), (x[3:4], x[3:4], False), (x[3:7], x[3:7], False)):
        (a,), is_single = recipe.read(sample)
        np.testing.assert_array_equal(a, expected)
        assert is_single == single
    assert recipe.read(np.asarray(x[3]).tolist() if kind != 'pixels' else x[3])[1]


def test_several_inputs_are_a_tuple(tmp_path):
    x, ids = np.random.default_rng(0).normal(2, 3, (20, 5)), np.arange(40).reshape(20, 2)
    dls = DataLoaders.from_arrays((x, ids), np.arange(20), valid=range(12, 20), bs=4, normalize=True)
    assert batches_alike(dls.valid, dls.test((x[12:], ids[12:]), np.arange(12, 20)))
    assert dls.recipe.read((x[0], ids[0]))[1]
    with pytest.raises(ValueError, match='the model takes 2 inputs, and 1 were given'): dls.test(x)
    checkpoint.save(tmp_path/'r', dls.recipe.to_dict())
    assert vars(Recipe.from_dict(checkpoint.load(tmp_path/'r'))) == vars(dls.recipe)


@pytest.mark.parametrize(('kind', 'x', 'said'), [
    ('floats', np.zeros((2, 4)), r'trained on inputs of shape \(5,\), got \(4,\)'), ('floats', 3., 'shape'),
    ('floats', np.zeros((2, 5), int), 'trained on float32, got int64'),
    ('floats', np.zeros((2, 5), np.uint8), 'trained on float32, got uint8'),
    ('pixels', np.zeros((2, 5)), 'trained on uint8, got float64'), ('floats', ['a'], 'shape')])
def test_inputs_of_another_shape_or_kind_are_an_error(kind, x, said):
    with pytest.raises(ValueError, match=said): loaders(kind).recipe.read(x)


@given(st.lists(st.sampled_from('abc'), min_size=1))
def test_targets_by_name_are_the_places_of_classes_and_others_stay(names):
    recipe = Recipe([(2,)], ['float32'], [{}], classes=['b', 'c', 'a'])
    assert recipe.target(names).tolist() == recipe.target(np.array(names)).tolist() == ['bca'.index(nm) for nm in names]
    numbers = np.arange(len(names))
    assert recipe.target(numbers) is numbers


def test_an_unknown_class_is_an_error_that_names_all_that_are_known():
    with pytest.raises(ValueError, match='unknown class x, y: the model knows a, b'):
        Recipe([(2,)], ['float32'], [{}], classes=['a', 'b']).target(['y', 'a', 'x'])


def test_numbers_to_predict_are_scaled():
    recipe = Recipe([(2,)], ['float32'], [{}], target_mean=3., target_std=2.)
    np.testing.assert_array_equal(recipe.target(np.array([3., 7.])), [0., 2.])


@pytest.mark.parametrize(('y', 'classes'), [
    (np.arange(20) % 3, ['0', '1', '2']), (np.arange(20)*10**9, None), (np.arange(20.), None),
    (np.zeros((20, 2), int), None)])
def test_whole_numbers_to_predict_are_places_of_classes_unless_they_are_large(y, classes):
    recipe = DataLoaders.from_arrays(KINDS['floats'], y).recipe
    assert recipe.classes == classes
    assert recipe.facts == dict(shapes=[[5]], outputs=len(classes or [0]))


def test_a_recipe_of_an_unknown_kind_is_an_error_that_names_the_known_ones():
    assert {*RECIPES} == {'arrays', 'pictures', 'table'}
    with pytest.raises(ValueError, match=r"unknown recipe 'sound': this version knows .*pictures"):
        Recipe.from_dict(dict(kind='sound'))
