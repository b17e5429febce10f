"What every test has: no screen, one seed, and no folder or variable of the user's."
import os

os.environ['MPLBACKEND'] = 'agg'
os.environ['HF_HUB_OFFLINE'] = '1'

import pytest
import torch


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    torch.manual_seed(0)
    yield
    if 'matplotlib.pyplot' in __import__('sys').modules: __import__('matplotlib.pyplot').pyplot.close('all')
