"The speedrun in examples/: every target trains, is reproducible, and uses the test images once, after training."
import importlib.util
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from miniai.data import fashion_mnist
from small import same

PATH = Path(__file__).resolve().parents[1]/'examples'/'speedrun.py'
TARGETS = ['90.6', '92', '93', '94']


@pytest.fixture(scope='module')
def sr():
    spec = importlib.util.spec_from_file_location('speedrun', PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def data():
    d = fashion_mnist(source='sample', quiet=True)
    return replace(d, x_train=d.x_train[:24], y_train=d.y_train[:24], x_valid=d.x_valid[:20], y_valid=d.y_valid[:20])


def short(sr, target): return sr.TARGETS[target] | dict(epochs=1, bs=12)


@pytest.mark.parametrize('target', TARGETS)
def test_a_target_trains_and_its_result_depends_on_the_seed_only(sr, data, target):
    nets = [sr.train(data.x_train, data.y_train, seed, **short(sr, target)).state_dict() for seed in (1, 1, 2)]
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


def test_there_are_settings_for_each_target_in_a_file_below_150_lines(sr):
    assert list(sr.TARGETS) == TARGETS
    assert len(PATH.read_text().splitlines()) < 150


class Watched:
    "Data that logs each access to its test images."
    def __init__(self, data, log): self.data, self.log = data, log
    def __getattr__(self, name):
        if name.endswith('_valid'): self.log.append('test')
        return getattr(self.data, name)


def test_a_run_uses_the_test_images_once_after_training(sr, data, monkeypatch):
    log, trained = [], sr.train
    def train(*args, **kwargs):
        out = trained(*args, **kwargs)
        log.append('trained')
        return out
    monkeypatch.setattr(sr, 'train', train)
    took, score = sr.run(Watched(data, log), 1, short(sr, '92'))
    assert log == ['trained', 'test', 'test']  # images, labels
    assert took > 0
    assert 0 <= score <= 100


def test_held_out_images_are_training_images_that_are_not_trained_on(sr, data):
    ids = torch.arange(24)
    marked = replace(data, x_train=ids[:, None, None].expand(24, 28, 28), y_train=ids)
    folds = [sr.held_out(marked, seed) for seed in range(12)]
    for d in folds:
        assert sorted([*d.y_train.tolist(), *d.y_valid.tolist()]) == ids.tolist()
        assert torch.equal(d.x_valid[:, 0, 0], d.y_valid)
        assert torch.equal(d.x_train[:, 0, 0], d.y_train)
    assert torch.equal(torch.cat([d.y_valid for d in folds]), ids)


def test_the_loader_mirrors_every_image_in_every_epoch(sr, data):
    dl = sr.MirroringLoader(data.x_train, data.y_train, bs=12)
    first, second = (torch.cat([x for x, _ in dl]) for _ in range(2))
    assert torch.equal(second, data.x_train[:, None].float()/255)
    assert torch.equal(first, second.flip(3))


def test_a_score_uses_the_image_its_four_diagonal_shifts_and_their_mirror_images(sr, data):
    class Seeing(torch.nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), 10)
    for shift, places in ((0, [(1, 1)]), (1, [(1, 1), (2, 2), (2, 0), (0, 2), (0, 0)])):
        seen = []
        sr.score(Seeing(), data.x_valid, data.y_valid, shift)
        x = (data.x_valid[:, None].float()/255 - sr.MEAN)/sr.STD
        padded = torch.nn.functional.pad(x, (1,)*4, value=-sr.MEAN/sr.STD)
        windows = [padded[:, :, i:i + 28, j:j + 28] for i, j in places]
        for got, want in zip(seen, [u for w in windows for u in (w, w.flip(3))], strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_score_averages_predictions_over_an_image_and_its_mirror_image(sr):
    class Sides(torch.nn.Module):
        "Class 0 for a bright left half, and class 1 with more confidence for a bright right half."
        def forward(self, x): return torch.stack([x[..., :14].mean((1, 2, 3)), 2*x[..., 14:].mean((1, 2, 3))], 1)
    x = torch.zeros(4, 28, 28, dtype=torch.uint8)
    x[:, :, :14] = 255
    assert sr.score(Sides(), x, torch.tensor([1, 1, 1, 0])) == 75  # the image alone is class 0, its mirror image 1


def test_the_command_line_prints_each_run_then_the_mean_and_the_ratio_to_the_notebook(sr, data, monkeypatch, capsys):
    monkeypatch.setattr(sr, 'fashion_mnist', lambda: data)
    monkeypatch.setitem(sr.TARGETS, '92', short(sr, '92'))
    monkeypatch.setattr(torch, 'set_num_threads', lambda n: None)
    sr.main(['--target', '92', '--seed', '5', '--runs', '2', '--measure', '--tune'])
    out = capsys.readouterr().out
    assert re.findall(r'^seed (\d): [\d.]+ % in [\d.]+ s, T [\d.]+ s$', out, re.M) == ['5', '6']
    last = r'^2 runs: mean [\d.]+ % held out, standard deviation [\d.]+, median [\d.]+ s, [\d.]+ T$'
    assert re.search(last, out, re.M)
