"The data that a job names."
import sys
from contextlib import nullcontext
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from miniai.data import DataLoaders, fashion_mnist
from miniai.data.picture_files import PictureError
from miniai.jobs import data
from miniai.jobs.build import build_model
from miniai.jobs.config import ConfigError, LRFindConfig, TrainConfig
from miniai.jobs.data import build_data, columns_of
from miniai.jobs.registry import DATA
from tiny import write_tiny


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return write_tiny(tmp_path_factory.mktemp('fmnist'), 41, 9)


def test_the_loaders_hold_the_folders_images_in_batches_of_the_size_asked_for(folder, capsys):
    dls = build_data(TrainConfig(data=str(folder), batch_size=16))
    assert [len(y) for _, y in dls.train] == [16, 16, 9]
    assert [x.shape for x, _ in dls.valid] == [(9, 1, 28, 28)]
    assert capsys.readouterr().out == f'Fashion-MNIST, 41 training and 9 test images, from {folder}\n'


def test_the_seed_decides_the_order(folder):
    orders = [torch.cat([y for _, y in build_data(TrainConfig(data=str(folder), seed=s)).train]) for s in (1, 1, 2)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])


def test_a_name_in_the_registry_is_its_data_set(monkeypatch, folder):
    asked = []
    monkeypatch.setitem(DATA, 'hub', DATA['hub']._replace(load=lambda: asked.append('hub') or fashion_mnist(folder)))
    build_data(LRFindConfig(data='hub'))
    assert asked == ['hub']


@pytest.fixture
def photos(tmp_path):
    "Gray and color pictures of two classes, one of them damaged."
    for i, (name, mode) in enumerate([('cat', 'L'), ('dog', 'RGB')]*10):
        (tmp_path/'photos'/name).mkdir(parents=True, exist_ok=True)
        Image.new(mode, (40 + i, 30), i).save(tmp_path/'photos'/name/f'{i}.png')
    (tmp_path/'photos'/'cat'/'x.jpg').write_bytes(b'no picture')
    return tmp_path/'photos'


def test_a_folder_of_pictures_is_loaded_with_the_options_of_the_job(photos, capsys):
    config = TrainConfig(data=str(photos), size=16, valid=.5, skip_bad=True, batch_size=4)
    with pytest.warns(UserWarning, match='1 of 21 pictures cannot be read and are skipped'): dls = build_data(config)
    assert (dls.classes, dls.train.n, dls.valid.n) == (['cat', 'dog'], 10, 10)
    assert next(iter(dls.train))[0].shape == (4, 3, 16, 16)
    assert '10 samples in memory' in capsys.readouterr().out
    config = TrainConfig(data=str(photos), skip_bad=True)
    with pytest.warns(UserWarning, match='1 of 21'): dls = build_data(config)
    assert next(iter(dls.train))[0].shape[2:] == (30, 30)
    with pytest.raises(PictureError, match=r'1 of 21 pictures cannot be read.*\n.*x.jpg'):
        build_data(TrainConfig(data=str(photos)))


def test_a_table_is_loaded_with_the_column_to_predict(tmp_path):
    pd.DataFrame(dict(a=np.arange(20.), y=['no', 'yes']*10)).to_csv(tmp_path/'t.csv', index=False)
    dls = build_data(TrainConfig(data=str(tmp_path/'t.csv'), target='y', valid=.25))
    assert (dls.classes, dls.train.n, dls.valid.n) == (['no', 'yes'], 15, 5)
    with pytest.raises(ConfigError, match='is a table: say which column to predict with --target'):
        build_data(TrainConfig(data=str(tmp_path/'t.csv')))


def test_a_function_returns_the_loaders(monkeypatch):
    mine, loaders = ModuleType('mine'), DataLoaders([1], [2])
    mine.data, mine.wrong = lambda: loaders, lambda: 3
    monkeypatch.setitem(sys.modules, 'mine', mine)
    assert build_data(TrainConfig(data='mine:data')) is loaders
    with pytest.raises(ConfigError, match='mine:wrong must return DataLoaders, and returned 3'):
        build_data(TrainConfig(data='mine:wrong'))
    with pytest.raises(ConfigError, match="cannot import 'mine:none'"): build_data(TrainConfig(data='mine:none'))


def test_a_data_set_of_the_hub_is_loaded_with_the_options_of_the_job(monkeypatch):
    asked, loaders = [], DataLoaders([1], [2])
    monkeypatch.setattr(data, 'from_hub', lambda *args, **kwargs: asked.append((args, kwargs)) or loaders)
    config = TrainConfig(data='hub:me/pets', valid=.3, batch_size=5, seed=7, size=32, target='kind', skip_bad=True)
    assert build_data(config) is loaders
    assert asked == [(('me/pets', .3), dict(bs=5, seed=7, size=32, y='kind', skip_bad=True))]


def test_options_for_other_data_are_refused(photos, tmp_path):
    pd.DataFrame(dict(a=range(20), y=[0, 1]*10)).to_csv(tmp_path/'t.csv')
    for config, said in ((dict(data=str(photos), target='y'), 'is a folder of pictures, which --target is not for'),
                         (dict(data=str(photos), drop='y'), 'which --drop is not for: leave it out'),
                         (dict(data=str(tmp_path/'t.csv'), target='y', size=8), 'is a table, which --size is not for')):
        with pytest.raises(ConfigError, match=said): build_data(TrainConfig(**config))


@pytest.mark.parametrize('word', ['sample', 'mine:data', 'tiny'])
@pytest.mark.parametrize(('option', 'value'), [
    ('valid', 'test'), ('valid', .3), ('target', 'y'), ('size', 8), ('skip_bad', True), ('drop', 'a'), ('cat', 'a'),
    ('cont', 'a'), ('classes', 'no')])
def test_data_with_parts_of_their_own_take_no_option(word, option, value, folder):
    word = str(folder) if word == 'tiny' else word
    with pytest.raises(ConfigError, match=f"which --{option.replace('_', '-')} is not for: leave it out"):
        build_data(TrainConfig(data=word, **{option: value}))


def test_columns_are_categories_numbers_or_classes_as_the_options_say(tmp_path):
    pd.DataFrame(dict(a=[1, 2]*10, b=range(20), c=range(20), y=[0, 1]*10)).to_csv(tmp_path/'t.csv', index=False)
    config = TrainConfig(data=str(tmp_path/'t.csv'), target='y', cat='a', cont='b, c', classes='no')
    dls = build_data(config)
    assert ([*dls.recipe.categories], [*dls.recipe.numbers], dls.classes) == (['a'], ['b', 'c'], None)
    assert columns_of(config) == dict(cat=['a'], cont=['b', 'c'], classes=False)
    assert build_data(TrainConfig(data=config.data, target='y')).classes == ['0', '1']


@pytest.mark.parametrize('options', [dict(valid='{0}/cat'), dict(valid=.001)])
def test_a_value_that_does_not_fit_the_data_is_a_mistake_in_the_options(photos, options):
    options = {nm: v.format(photos) if isinstance(v, str) else v for nm, v in options.items()}
    with pytest.raises(ConfigError, match=r'valid|validation'), pytest.warns(UserWarning, match='1 of 21') \
            if options['valid'] == .001 else nullcontext():
        build_data(TrainConfig(data=str(photos), skip_bad=True, **options))


def test_validation_may_be_a_column_or_another_table_and_columns_are_dropped(tmp_path):
    table = pd.DataFrame(dict(a=range(20), b=range(20), c=range(20), part=['train']*16 + ['valid']*4, y=[0, 1]*10))
    table.to_csv(tmp_path/'t.csv', index=False)
    dls = build_data(TrainConfig(data=str(tmp_path/'t.csv'), target='y', valid='part', drop='a, c'))
    assert (dls.train.n, dls.valid.n, [*dls.recipe.numbers]) == (16, 4, ['b'])
    dls = build_data(TrainConfig(data=str(tmp_path/'t.csv'), target='y', valid=str(tmp_path/'t.csv')))
    assert (dls.train.n, dls.valid.n) == (20, 20)


def test_what_is_nowhere_is_a_mistake_in_the_options():
    with pytest.raises(ConfigError, match="no data at 'nowhere': give a folder of pictures, a table"):
        build_data(TrainConfig(data='nowhere'))


@pytest.mark.parametrize('bs', [1, 5, 20, 40])
def test_a_last_batch_of_one_image_is_refused_for_the_resnet_before_training(folder, bs):
    with pytest.raises(ConfigError, match=f'batch_size {bs} leaves a last batch of 1 out of 41 images.*choose another'):
        build_data(TrainConfig(data=str(folder), model='resnet', batch_size=bs))
    build_data(TrainConfig(data=str(folder), model='simple', batch_size=bs))


@pytest.mark.parametrize('bs', [3, 39, 41, 1024])
def test_the_resnet_takes_every_other_batch_size(folder, bs):
    dls = build_data(TrainConfig(data=str(folder), model='resnet', batch_size=bs))
    model = build_model(TrainConfig(model='resnet'), dls).train()
    assert all(model(x).shape == (len(y), 10) for x, y in dls.train)


