"The jobs that use a trained model: its folder is all they need."
import csv
import json
import shutil
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

from miniai.data import DataLoaders, fashion_mnist
from miniai.data.loaders import get_dls
from miniai.data.pictures import PictureRecipe
from miniai.inference.model_file import load
from miniai.jobs.config import ConfigError, TrainConfig
from miniai.jobs.train import train
from miniai.jobs.use import (
    EvaluateConfig,
    ExportConfig,
    PredictConfig,
    evaluate_run,
    export_run,
    predict_run,
)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Shoes and trousers, as PNG files in a folder for each."
    path, data = tmp_path_factory.mktemp('photos'), fashion_mnist(source='sample', quiet=True)
    for name, c in (('boot', 9), ('trouser', 1)):
        (path/name).mkdir()
        for i, x in enumerate(data.x_train[data.y_train == c][:60].numpy()):
            Image.fromarray(x).save(path/name/f'{i}.png')
    return path


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'photos'
    train(TrainConfig(data=str(photos), epochs=2, batch_size=16, device='cpu', stats=False, out=str(out)))
    return out


@pytest.fixture(scope='module')
def table(tmp_path_factory):
    path, r = tmp_path_factory.mktemp('tables')/'t.csv', np.random.default_rng(0)
    a, kind = r.normal(size=200), r.choice(['x', 'y'], 200)
    pd.DataFrame(dict(a=a, kind=kind, price=3*a + (kind == 'x') + 100)).to_csv(path, index=False)
    return path


@pytest.fixture(scope='module')
def table_run(table, tmp_path_factory):
    out = tmp_path_factory.mktemp('runs')/'table'
    train(TrainConfig(data=str(table), target='price', epochs=2, device='cpu', stats=False, out=str(out)))
    return out


def probabilities(run, files):
    "Those of the model in the run, computed in plain PyTorch."
    recipe = load(run).recipe
    x = torch.stack([torch.from_numpy(np.array(Image.open(f).convert('L'))) for f in files]).unsqueeze(1)/255
    return load(run).model((x - recipe.mean)/recipe.std).softmax(1)


def test_the_run_s_model_knows_classes_size_and_scaling(run, photos):
    recipe = load(run).recipe
    assert isinstance(recipe, PictureRecipe)
    assert (recipe.classes, tuple(recipe.size), recipe.channels) == (['boot', 'trouser'], (28, 28), 1)


def test_evaluate_prints_the_figures_of_the_validation_data_or_of_others(run, photos, capsys):
    capsys.readouterr()
    evaluate_run(EvaluateConfig(run))
    said = capsys.readouterr().out
    assert 'boot' in said
    assert str(sum(int(line.split()[1]) for line in said.splitlines() if line.startswith(('boot', 'trouser')))) == '24'
    evaluate_run(EvaluateConfig(run, data=str(photos), json=True))
    found = json.loads(capsys.readouterr().out)
    files = sorted(photos.rglob('*.png'), key=lambda p: (p.parent.name, p.name))
    truth = torch.tensor([['boot', 'trouser'].index(f.parent.name) for f in files])
    assert found['accuracy'] == pytest.approx((probabilities(run, files).argmax(1) == truth).double().mean().item())
    assert sum(map(sum, found['confusion'])) == 120


def test_predictions_come_as_lines_as_json_and_as_csv(run, photos, tmp_path, capsys):
    files = [photos/'boot'/'1.png', photos/'trouser'/'2.png']
    ps = probabilities(run, files)
    capsys.readouterr()
    predict_run(PredictConfig(run, tuple(files)))
    lines = capsys.readouterr().out.splitlines()
    best = [('boot', 'trouser')[i] for i in ps.argmax(1)]
    for line, f, name, p in zip(lines, files, best, ps.max(1).values, strict=True):
        assert line.split() == [str(f), name, f'({p:.1%})']
    predict_run(PredictConfig(run, (photos/'boot',), json=True))
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 60
    assert {*rows[0]} == {'input', 'label', 'probability', 'probabilities'}
    predict_run(PredictConfig(run, tuple(files), csv=str(tmp_path/'out.csv')))
    found = list(csv.DictReader((tmp_path/'out.csv').read_text('utf-8').splitlines()))
    torch.testing.assert_close(torch.tensor([[float(r['boot']), float(r['trouser'])] for r in found]), ps.detach())


def test_a_table_s_numbers_are_predicted_and_evaluated_in_their_own_units(table_run, table, capsys):
    capsys.readouterr()
    predict_run(PredictConfig(table_run, (table,)))
    found = [float(line.split()[-1]) for line in capsys.readouterr().out.splitlines()]
    assert len(found) == 200
    evaluate_run(EvaluateConfig(table_run, data=str(table), json=True))
    truth = pd.read_csv(table).price
    rmse = np.sqrt(((np.array(found) - truth)**2).mean())
    assert json.loads(capsys.readouterr().out)['rmse'] == pytest.approx(rmse, rel=1e-3)


def test_a_model_is_exported_with_the_run_s_own_validation_data(run, tmp_path, capsys):
    export_run(ExportConfig(run, tmp_path/'m.pt2'))
    assert 'm.pt2' in capsys.readouterr().out
    whole, data = torch.export.load(tmp_path/'m.pt2').module(), fashion_mnist(source='sample', quiet=True)
    x = data.x_train[:5]
    recipe = load(run).recipe
    want = load(run).model((x.unsqueeze(1)/255 - recipe.mean)/recipe.std).softmax(1)
    torch.testing.assert_close(whole(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('job', 'said'), [
    (lambda run, t: predict_run(PredictConfig(run, (t, t))), 'no picture|cannot read'),
    (lambda run, t: evaluate_run(EvaluateConfig(run/'model.safetensors')), 'is not the folder of a run: name data'),
    (lambda run, t: predict_run(PredictConfig(run, ())), 'say what to predict: pictures, folders of pictures')])
def test_what_cannot_be_used_is_named(run, table, job, said):
    with pytest.raises(ValueError, match=said): job(run, table)


@pytest.fixture
def own(monkeypatch, tmp_path):
    "The runs of functions that return arrays and torch's loaders."
    mine, x, y = ModuleType('mine'), torch.randn(40, 4), torch.arange(40) % 3
    mine.arrays = lambda: DataLoaders.from_arrays(x, y)
    mine.torchs = lambda: DataLoaders(*get_dls(TensorDataset(x, y), TensorDataset(x, y), 8))
    mine.net = lambda: nn.Linear(4, 3)
    monkeypatch.setitem(sys.modules, 'mine', mine)
    for name in ('arrays', 'torchs'):
        train(TrainConfig(data=f'mine:{name}', model='mine:net', epochs=1, device='cpu', stats=False,
                          out=str(tmp_path/name)))
    return tmp_path, x


@pytest.mark.parametrize('name', ['arrays', 'torchs'])
def test_a_model_of_arrays_is_exported_with_the_run_s_data_and_takes_no_other_data(own, name, photos, capsys):
    folder, x = own
    export_run(ExportConfig(folder/name, folder/'m.pt2', allow_code=True))
    whole = torch.export.load(folder/'m.pt2').module()
    torch.testing.assert_close(whole(x), load(folder/name, allow_code=True).model(x).softmax(1))
    evaluate_run(EvaluateConfig(folder/name, allow_code=True))
    for job in (evaluate_run, export_run):
        more = [folder/'n.pt2'] if job is export_run else []
        config = (ExportConfig if more else EvaluateConfig)(folder/name, *more, data=str(photos), allow_code=True)
        with pytest.raises(ConfigError, match='takes neither pictures nor tables, and --data is one of them'):
            job(config)


def test_data_that_are_nowhere_are_a_mistake_in_the_options(run):
    with pytest.raises(ConfigError, match="no data at 'sample': give a folder of pictures or a table, or leave"):
        evaluate_run(EvaluateConfig(run, data='sample'))
    with pytest.raises(ConfigError, match="cannot use device 'nope' here"):
        evaluate_run(EvaluateConfig(run, device='nope'))


def test_a_run_whose_pictures_moved_between_training_and_validation_is_not_evaluated(photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path/'copy')
    monkeypatch.chdir(tmp_path)
    train(TrainConfig(data='copy', epochs=1, device='cpu', stats=False, out='run'))
    (tmp_path/'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path/'elsewhere')
    evaluate_run(EvaluateConfig(tmp_path/'run'))
    shutil.copy(photos/'boot'/'1.png', tmp_path/'copy'/'boot'/'new.png')
    with pytest.raises(ConfigError, match='had 96 samples for training and 24 for validation, and now there are 97'):
        evaluate_run(EvaluateConfig(tmp_path/'run'))
    evaluate_run(EvaluateConfig(tmp_path/'run', data=str(tmp_path/'copy')))
    export_run(ExportConfig(tmp_path/'run', tmp_path/'m.pt2'))


def test_a_table_s_model_takes_one_table(table_run, table):
    with pytest.raises(ConfigError, match='the model takes one table, and 2 files were given'):
        predict_run(PredictConfig(table_run, (table, table)))
