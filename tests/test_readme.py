"The README's code blocks run in order as one program, and the model gets better."
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import miniai

README = (Path(__file__).resolve().parents[1]/'README.md').read_text()
BLOCKS = re.findall(r'^```python\n(.*?)^```', README, re.M | re.S)


@pytest.fixture
def run(monkeypatch, tmp_path):
    "Runs the blocks on the embedded sample. Returns their names and the validation accuracy after each fit."
    load, fit, accuracies = miniai.fashion_mnist, miniai.TrainLearner.fit, []
    def recorded_fit(self, *args, **kwargs):
        fit(self, *args, **kwargs)
        if not self.dry_run: accuracies.append(self.history[-1]['accuracy'])
    monkeypatch.setattr(miniai, 'fashion_mnist', lambda: load(source='sample'))
    monkeypatch.setattr(miniai.TrainLearner, 'fit', recorded_fit)
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in BLOCKS: exec(compile(block, 'README.md', 'exec'), names)
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
