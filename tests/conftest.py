"What every test has: no screen, one seed, no folder or variable of the user's, and no clock to beat."
import os
import sys

os.environ['MPLBACKEND'] = 'agg'
os.environ['HF_HUB_OFFLINE'] = '1'
os.environ['OMP_NUM_THREADS'] = '1'  # tests run side by side: more threads than cores wait for one another

import pytest
import torch
from hypothesis import settings

settings.register_profile('default', deadline=None)


@pytest.fixture(autouse=True)
def _same_start(monkeypatch):
    monkeypatch.delenv('MINIAI_DATA', raising=False)
    torch.manual_seed(0)
    yield
    pyplot = sys.modules.get('matplotlib.pyplot')
    if pyplot: pyplot.close('all')
