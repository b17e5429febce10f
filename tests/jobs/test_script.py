"The script of a run trains to the same weights as the run."
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from miniai.checkpoint import load
from miniai.jobs.config import ConfigError, TrainConfig
from miniai.jobs.script import SCHEDULES, ScriptConfig, script_of, write_script
from miniai.jobs.train import train
from tiny import write_tiny


@pytest.fixture
def table(tmp_path):
    r = np.random.default_rng(0)
    df = pd.DataFrame(dict(a=r.normal(size=60), kind=r.choice(['x', 'y'], 60), price=r.normal(size=60), id=range(60),
                           part=['train']*50 + ['valid']*10))
    df.to_csv(tmp_path/'t.csv', index=False)
    return tmp_path/'t.csv'


def weights_of_script(folder, tmp_path):
    write_script(ScriptConfig(folder, tmp_path/'script.py'))
    subprocess.run([sys.executable, tmp_path/'script.py'], cwd=tmp_path, check=True, capture_output=True)
    return load(tmp_path/'model.safetensors')['model']


@pytest.mark.parametrize('kind', ['fashion', 'table'])
def test_a_script_trains_to_the_bits_of_the_run(kind, table, tmp_path):
    (tmp_path/'fmnist').mkdir()
    given = dict(data=str(write_tiny(tmp_path/'fmnist', 200, 40)), opt='beta2=0.9', precision='bfloat16') \
        if kind == 'fashion' else dict(data=str(table), target='price', schedule='warmup-cosine', net='widths=[8]',
                                    drop='id', valid='part')
    out = tmp_path/'run'
    train(TrainConfig(**given, epochs=2, batch_size=32, device='cpu', stats=False, out=str(out)))
    want, found = load(out/'model.safetensors')['model'], weights_of_script(out, tmp_path)
    assert want.keys() == found.keys()
    assert all(torch.equal(want[nm], found[nm]) for nm in want)


MINE = """
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset
from miniai import DataLoaders

def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=g), torch.arange(60) % 5, torch.arange(60) % 3

def loaders():
    *x, y = data()
    return DataLoaders.from_arrays(tuple(x), y, bs=8)

def loaders_of_torch():
    x, _, y = data()
    return DataLoaders(*(DataLoader(TensorDataset(x, y), 8, shuffle=shuffle) for shuffle in (True, False)))

class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.lin, self.emb = nn.Linear(4, 3), nn.Embedding(5, 3)

    def forward(self, a, i): return self.lin(a) + self.emb(i)

def linear(): return nn.Linear(4, 3)
def schedule(opt, n): return LinearLR(opt, 1., 0.1, total_iters=n)
"""


@pytest.mark.parametrize('given', [
    dict(data='my_script:loaders', model='my_script:Sum', schedule='my_script:schedule'),
    dict(data='my_script:loaders_of_torch', model='my_script:linear', optimizer='torch.optim:SGD', lr=0.1)])
def test_a_script_with_functions_of_your_own_trains_to_the_bits_of_the_run(given, tmp_path, monkeypatch):
    (tmp_path/'my_script.py').write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, 'my_script', raising=False)
    train(TrainConfig(**given, epochs=2, device='cpu', stats=False, out=str(tmp_path/'run')))
    want, found = load(tmp_path/'run'/'model.safetensors')['model'], weights_of_script(tmp_path/'run', tmp_path)
    assert want.keys() == found.keys()
    assert all(torch.equal(want[nm], found[nm]) for nm in want)


@pytest.mark.parametrize('options', [
    dict(optimizer='torch.optim:SGD', opt='momentum=0.5'), dict(optimizer='sgd'), dict(data='sample'),
    dict(compile=True, layout="channels-last"), dict(data="mine:loaders"), dict(model="mine:net"),
    dict(schedule="mine:schedule"), dict(data='hub:me/pets', valid='test', target='kind'),
    *(dict(schedule=name) for name in SCHEDULES)])
def test_every_option_gives_a_script_that_python_can_read(options):
    config = TrainConfig(**dict(lr=0.1, epochs=3, device='cpu', layout='channels-first') | options)
    name = config.model if config.model != 'auto' else 'simple'
    text = script_of(config, dict(outputs='classes', net=dict(name=name), recipe=None))
    compile(text, 'script.py', 'exec')
    if config.optimizer == 'sgd': assert 'cycle_momentum=False' in text
    if config.data.startswith('hub'): assert "from_hub('me/pets', valid='test', y='kind', bs=128, seed=42)" in text
    if config.optimizer == 'torch.optim:SGD': assert 'partial(SGD, momentum=0.5)' in text


def test_a_script_that_exists_and_a_folder_without_a_run_are_refused(tmp_path):
    (tmp_path/'a.py').write_text('mine')
    with pytest.raises(ConfigError, match=r'a\.py exists'): write_script(ScriptConfig(tmp_path, tmp_path/'a.py'))
    with pytest.raises(ConfigError, match='is not the folder of a finished run'):
        write_script(ScriptConfig(tmp_path, tmp_path/'b.py'))
