"Exported models: the predictor's probabilities from a process without miniai, for batches of any size."
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from miniai import DataLoaders
from miniai.inference.export import ExportError, _compare
from predicting import flat, named, tabular, two_inputs
from small import equal, learner, loaders

PT2 = """
import os, sys
sys.modules['miniai'] = None
import torch
folder, found = sys.argv[1], {}
for name in [f for f in os.listdir(folder) if f.endswith('.pt2')]:
    about, inputs = {'miniai.json': ''}, torch.load(f'{folder}/{name}.inputs')
    run = torch.export.load(f'{folder}/{name}', extra_files=about).module()
    found[name] = [run(*(x[:n] for x in inputs)) for n in (1, 2, 5, 7)], about['miniai.json']
torch.save(found, f'{folder}/found')
"""
ONNX = """
import os, sys
sys.modules['miniai'] = sys.modules['torch'] = None
import numpy, onnxruntime
folder = sys.argv[1]
for name in [f for f in os.listdir(folder) if f.endswith('.onnx')]:
    session = onnxruntime.InferenceSession(f'{folder}/{name}', providers=['CPUExecutionProvider'])
    with numpy.load(f'{folder}/{name}.npz') as f: arrays = [f[nm] for nm in f.files]
    names = [i.name for i in session.get_inputs()]
    found = [session.run(None, {nm: a[:n] for nm, a in zip(names, arrays)})[0] for n in (1, 2, 5, 7)]
    numpy.savez(f'{folder}/{name}.npz', *found, about=str(session.get_modelmeta().custom_metadata_map))
"""


def alone(code, folder): subprocess.run([sys.executable, '-c', code, str(folder)], check=True)


def multi_label(): return flat(nn.BCEWithLogitsLoss(), 3, lambda x: (x[:, :3] > 0).float())
def one_logit(): return flat(F.binary_cross_entropy_with_logits, 1, lambda x: (x[:, :1] > 0).float())
def log_probabilities():
    return flat(F.nll_loss, 3, lambda x: (x[:, 0] > 0).long(), nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)))
def color(): return named(channels=3)
def gray(): return named(n_epochs=2)
def resnet(): return named('resnet', widths=[4, 8])
def numbers(): return tabular('value')


def half():
    learn = named()
    learn.model.to(torch.bfloat16)
    return learn


def given(learn, n=7):
    "Inputs as an exported model takes them, and the predictor's probabilities for them."
    predict, kept = learn.predictor(), [t[:n] for t in learn.dls.train.tensors[:learn.dls.train.n_inp]]
    return predict.recipe.raw(kept), predict.probabilities(kept)


def check(found, want):
    for part in found: torch.testing.assert_close(part, want[:len(part)], rtol=1e-5, atol=1e-5)
    assert [len(part) for part in found] == [1, 2, 5, 7]


IN_PT2 = [gray, resnet, tabular, two_inputs, log_probabilities, half]
IN_ONNX = [color, numbers, two_inputs, one_logit, multi_label]


@pytest.fixture(scope='module')
def pt2(tmp_path_factory):
    "What another process makes of exported models: outputs and metadata, next to the predictor's outputs."
    folder, want = tmp_path_factory.mktemp('pt2'), {}
    for make in IN_PT2:
        learn = make()
        inputs, want[make] = given(learn)
        torch.save(list(inputs), f'{learn.export(folder/f"{make.__name__}.pt2")}.inputs')
    assert not [nm for nm in os.listdir(folder) if nm.endswith('.part')]
    alone(PT2, folder)
    found = torch.load(folder/'found')
    return {make: (*found[f'{make.__name__}.pt2'], want[make]) for make in IN_PT2}


@pytest.fixture(scope='module')
def onnx(tmp_path_factory):
    for package in ('onnx', 'onnxscript', 'onnxruntime'): pytest.importorskip(package)
    folder, want = tmp_path_factory.mktemp('onnx'), {}
    for make in IN_ONNX:
        learn = make()
        inputs, want[make] = given(learn)
        np.savez(f'{learn.export(folder/f"{make.__name__}.onnx")}.npz', *[x.numpy() for x in inputs])
    alone(ONNX, folder)
    found = {make: np.load(folder/f'{make.__name__}.onnx.npz') for make in IN_ONNX}
    return {make: ([torch.from_numpy(f[f'arr_{i}']) for i in range(4)], f['about'].item(), want[make])
            for make, f in found.items()}


@pytest.mark.parametrize('make', IN_PT2)
def test_a_pt2_file_gives_the_predictors_probabilities_without_miniai(make, pt2):
    found, about, want = pt2[make]
    check(found, want)
    assert json.loads(about)['torch'] == torch.__version__


@pytest.mark.parametrize('make', IN_ONNX)
def test_an_onnx_file_gives_the_predictors_probabilities_without_torch(make, onnx):
    found, about, want = onnx[make]
    check(found, want)
    assert ('numbers' in about) == (make is numbers)


def test_the_file_says_classes_inputs_and_outputs(pt2):
    about = json.loads(pt2[gray][1])
    assert (about['classes'], about['outputs']) == (['bag', 'coat', 'shoe'], 'classes')
    assert about['inputs'] == [dict(shape=['batch', 12, 12], dtype='uint8')]


def test_missing_values_of_a_table_are_filled_inside(tmp_path):
    learn = tabular()
    numbers, codes = given(learn, 40)[0]
    assert numbers.isnan().any()
    run = torch.export.load(learn.export(tmp_path/'m.pt2')).module()
    names = learn.dls.recipe.classes
    row = run(torch.tensor([[float('nan'), -1.]]), torch.tensor([[1]]))[0].tolist()
    want = learn.predictor()(dict(a=None, b=-1., c=learn.dls.recipe.categories['c'][0])).probabilities
    assert row == pytest.approx([want[nm] for nm in names], abs=1e-6)
    assert codes.dtype == torch.int64


def test_a_learner_whose_loaders_have_no_recipe_exports_its_model_for_its_inputs(tmp_path):
    learn = learner()
    x = learn.dls.train[0][0]
    found = torch.export.load(learn.export(str(tmp_path/'m.pt2'))).module()(x[:3])
    torch.testing.assert_close(found, learn.predictor().probabilities([x[:3]]))


def test_exporting_changes_nothing_in_the_learner_or_in_random_states(tmp_path):
    x, y = torch.randn(40, 4), torch.randint(0, 3, (40,))
    def shuffled(): return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 8, shuffle=True)
    learn = learner(dls=DataLoaders(shuffled(), shuffled()))
    learn.fit(1)
    before = torch.get_rng_state(), {k: v.clone() for k, v in learn.model.state_dict().items()}, learn.history
    learn.model.train()
    learn.export(tmp_path/'m.pt2')
    assert equal(before, (torch.get_rng_state(), dict(learn.model.state_dict()), learn.history))
    assert learn.model.training


class Noise(nn.Module):
    def forward(self, x): return x + torch.randn_like(x)


class Mean(nn.Module):
    "A sample's output depends on the others."
    def forward(self, x): return x - x.mean(0)


class Branches(nn.Module):
    def forward(self, x): return x if x.sum() > 0 else -x


@pytest.mark.parametrize(('model', 'said'), [
    (Noise(), r'differs from the original by up to .*random'), (Branches(), r'torch\.export cannot export this model'),
    (Mean(), 'depend on the others')])
def test_what_cannot_be_exported_or_differs_leaves_the_old_file_alone(model, said, tmp_path):
    learn = learner(model=nn.Sequential(nn.Linear(4, 3), model))
    (tmp_path/'m.pt2').write_text('old')
    with pytest.raises(ExportError, match=said): learn.export(tmp_path/'m.pt2')
    assert [p.read_text() for p in tmp_path.iterdir()] == ['old']


def test_too_little_data_other_endings_and_missing_folders_are_errors(tmp_path):
    learn = learner()
    with pytest.raises(ValueError, match=r"export writes \.pt2 or \.onnx files, got .*m\.pth"):
        learn.export(tmp_path/'m.pth')
    with pytest.raises(FileNotFoundError, match=r'no folder .*nowhere to export to'):
        learn.export(tmp_path/'nowhere/m.pt2')
    learn.dls = DataLoaders([], [])
    with pytest.raises(ExportError, match='the loaders give no batch'): learn.export(tmp_path/'m.pt2')
    learn.dls = DataLoaders([], [(torch.zeros(1, 4), torch.zeros(1))])
    with pytest.raises(ExportError, match='two samples or more'): learn.export(tmp_path/'m.pt2')
    assert list(tmp_path.iterdir()) == []


def test_the_training_data_serve_if_there_is_no_validation(tmp_path):
    learn = learner()
    learn.dls = DataLoaders(loaders().train, [])
    assert learn.export(tmp_path/'m.pt2').exists()


@pytest.mark.parametrize('missing', ['onnx', 'onnxruntime', 'onnxscript'])
def test_without_the_packages_the_error_says_what_to_install(missing, monkeypatch, tmp_path):
    from types import ModuleType
    for nm in ('onnx', 'onnxruntime', 'onnxscript'):
        monkeypatch.setitem(sys.modules, nm, None if nm == missing else ModuleType(nm))
    with pytest.raises(ImportError, match=rf"needs the package {missing}: pip install 'miniai-torch\[export\]'"):
        learner().export(tmp_path/'m.onnx')


@pytest.mark.parametrize(('found', 'want', 'said'), [
    ([.5, .5], [.5, .50002], 'by up to 2e-05'), ([[.5]], [.5], r'in shape, \(1, 1\) for \(1,\)'),
    ([float('nan')], [.5], 'by up to nan')])
def test_a_file_that_computes_something_else_is_refused(found, want, said, tmp_path):
    with pytest.raises(ExportError, match=said): _compare(torch.tensor(found), torch.tensor(want), tmp_path)
    _compare(torch.tensor([1000.]), torch.tensor([1000.005]), tmp_path)  # numbers are compared by their size
