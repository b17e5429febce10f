"Models by name, for the data's channels and classes."
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from miniai.models.by_name import MODELS, build_model, function_at
from miniai.models.convnet import get_model
from miniai.models.layers import act_gr

COLOR, TABLE = dict(channels=3, outputs=5), dict(numbers=4, categories=[3, 7], outputs=2)


def params(model): return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize('name', [nm for nm, row in MODELS.items() if row.data == 'images'])
@pytest.mark.parametrize('size', [(28, 28), (40, 33), (64, 96)])
def test_our_image_models_take_images_of_any_size_and_number_of_channels(name, size):
    assert build_model(name, COLOR).cpu()(torch.randn(4, 3, *size)).shape == (4, 5)


def test_the_table_model_takes_numbers_and_categories():
    assert build_model('table', TABLE)(torch.randn(6, 4), torch.zeros(6, 2, dtype=torch.long)).shape == (6, 2)


@pytest.mark.parametrize('name', [nm for nm, row in MODELS.items() if row.data == 'images'])
def test_the_number_of_parameters_is_what_the_help_says(name):
    thousands = int(MODELS[name].about.split()[-3])
    assert params(build_model(name, dict(channels=1, outputs=10))) == pytest.approx(1000*thousands, rel=0.1)


def test_pooling_changes_no_bit_for_images_that_end_as_one_pixel():
    torch.manual_seed(0)
    named = build_model('simple', dict(channels=1, outputs=10)).cpu()
    torch.manual_seed(0)
    plain, x = get_model(act_gr, norm=nn.BatchNorm2d).cpu(), torch.randn(8, 1, 28, 28)
    assert torch.equal(named(x), plain(x))


def test_a_model_keeps_its_recipe_and_takes_its_own_options():
    model = build_model('resnet', COLOR, widths=[4, 8])
    assert model.recipe == dict(name='resnet', facts=COLOR, options=dict(widths=[4, 8]))
    again = build_model(model.recipe['name'], model.recipe['facts'], **model.recipe['options'])
    again.load_state_dict(model.state_dict())


@pytest.fixture
def module(monkeypatch):
    mine = ModuleType('mine')
    def head(outputs, hidden=3): return nn.Sequential(nn.Linear(2, hidden), nn.Linear(hidden, outputs))
    def everything(**facts): return nn.Linear(facts['channels'], facts['outputs'])
    mine.head, mine.everything, mine.number, mine.wrong = head, everything, 3, lambda: 'text'
    def named(act='relu', norm=True, betas=(.1, .2), free=None): return nn.Identity()
    mine.named = named
    monkeypatch.setitem(sys.modules, 'mine', mine)


@pytest.mark.usefixtures('module')
def test_a_users_function_gets_the_facts_that_it_has_parameters_for():
    assert build_model('mine:head', COLOR, hidden=7)[1].weight.shape == (5, 7)
    assert build_model('mine:everything', COLOR).weight.shape == (5, 3)
    build_model('mine:named', COLOR, act='gelu', norm=False, betas=[1, 2], free='anything')


@pytest.mark.usefixtures('module')
@pytest.mark.parametrize(('name', 'facts', 'options', 'error', 'said'), [
    ('resnt', COLOR, {}, ValueError, "unknown model 'resnt'; did you mean 'resnet'"),
    ('qqq', COLOR, {}, ValueError, "choose from simple, resnet, timm:NAME or module:function"),
    ('table', COLOR, {}, ValueError, 'table is for a table, and the data are images: choose from simple, resnet'),
    ('simple', TABLE, {}, ValueError, 'simple is for images, and the data are a table: choose from table'),
    ('simple', COLOR, dict(width=3), TypeError, "simple has no option width; did you mean 'widths'?"),
    ('simple', COLOR, dict(size=3), TypeError, 'simple has no option size; it has widths'),
    ('simple', COLOR, dict(channels=3), TypeError, 'simple has no option channels; it has widths'),
    ('simple', COLOR, dict(widths=5), TypeError,
     r'option widths of the model simple must be a list of whole numbers above 0, such as .*\(8, 16, 32, 64\), got 5'),
    ('simple', COLOR, dict(widths=[8, .5]), TypeError, r'got \[8, 0\.5\]'),
    ('resnet', COLOR, dict(widths=[0]), TypeError, r'numbers above 0, .* got \[0\]'),
    ('table', TABLE, dict(dropout='much'), TypeError, "must be a number, such as its default 0.5, got 'much'"),
    ('table', TABLE, dict(dropout=True), TypeError, 'a number, .* got True'),
    ('table', TABLE, dict(dropout=2), ValueError, 'the model table cannot be made with dropout=2: dropout prob'),
    ('mine:named', COLOR, dict(act=3), TypeError, "must be text, such as its default 'relu', got 3"),
    ('mine:named', COLOR, dict(norm='false'), TypeError, "must be True or False, such as its default True, got 'fa"),
    ('mine:named', COLOR, dict(betas=[.1, 'x']), TypeError, 'must be a list of numbers'),
    ('mine:head', COLOR, dict(size=3), TypeError, 'mine:head has no option size; it has hidden'),
    ('mine:tail', COLOR, {}, ValueError, "cannot import 'mine:tail': .*tail"),
    ('nowhere:f', COLOR, {}, ValueError, "cannot import 'nowhere:f': No module named 'nowhere'"),
    ('mine:number', COLOR, {}, ValueError, "'mine:number' is of type int, not a function"),
    ('mine:wrong', COLOR, {}, TypeError, 'mine:wrong returned a str, not a model'),
    ('timm:resnet18', TABLE, {}, ValueError, 'timm:resnet18 is for images')])
def test_what_does_not_exist_or_fit_is_an_error_that_says_what_would(name, facts, options, error, said):
    with pytest.raises(error, match=said): build_model(name, facts, **options)


def test_function_at_imports_the_function(): assert function_at('torch.nn:Linear') is nn.Linear


def test_a_model_of_timm_is_made_for_the_channels_and_classes(monkeypatch):
    timm = ModuleType('timm')
    timm.list_models = lambda: ['resnet18', 'vit_tiny']
    timm.create_model = lambda name, in_chans, num_classes, pretrained=False: nn.Linear(in_chans, num_classes)
    monkeypatch.setitem(sys.modules, 'timm', timm)
    model = build_model('timm:resnet18', COLOR, pretrained=False)
    assert (model.weight.shape, model.recipe['name']) == ((5, 3), 'timm:resnet18')
    with pytest.raises(ValueError, match="no model 'resnet81'; did you mean resnet18"):
        build_model('timm:resnet81', COLOR)


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ValueError, match=r"pip install 'miniai-torch\[vision\]'"): build_model('timm:x', COLOR)
