"The README's code blocks run in order as one program, and the model gets better."
import re
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import torch

import miniai

README = (Path(__file__).resolve().parents[1]/'README.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```', README, re.M | re.S)


@pytest.fixture
def run(monkeypatch, tmp_path):
    "Runs the blocks on part of the embedded sample. Returns their names and the validation accuracy after each fit."
    whole, fit, accuracies = miniai.fashion_mnist(source='sample', quiet=True), miniai.TrainLearner.fit, []
    part = replace(whole, x_train=whole.x_train[:4000], y_train=whole.y_train[:4000])
    def recorded_fit(self, *args, **kwargs):
        fit(self, *args, **kwargs)
        if not self.dry_run: accuracies.append(self.history[-1]['accuracy'])
    monkeypatch.setattr(miniai, 'fashion_mnist', lambda: part)
    monkeypatch.setattr(miniai.TrainLearner, 'fit', recorded_fit)
    monkeypatch.chdir(tmp_path)
    threads, names = torch.get_num_threads(), dict(__name__='__main__')
    torch.set_num_threads(1)  # the same figures on every machine
    try:
        for block in BLOCKS: exec(compile(block, 'README.md', 'exec'), names)
    finally: torch.set_num_threads(threads)
    return names, accuracies


def test_the_blocks_run_in_order_and_train_one_model_further_and_further(run, capsys):
    names, accuracies = run
    assert len(accuracies) == 9
    assert accuracies[-1] == max(accuracies) > accuracies[0] + 0.05
    learn = names['learn']
    assert [(r['epoch'], r['phase']) for r in learn.history] == [(0, 'train'), (0, 'eval')]
    assert type(learn.opt) is miniai.AdamW
    assert len(plt.get_fignums()) == 3


def test_it_fits_in_five_minutes():
    assert len(README.splitlines()) <= 150
    assert len(BLOCKS[0].splitlines()) <= 12


def test_every_file_that_it_links_to_exists():
    links = re.findall(r'\]\((?!http)([^)#]+)', README)
    assert [link for link in links if not (Path(__file__).resolve().parents[1]/link).exists()] == []
